"""Runs one after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from peft_aot.loop import stop_on_interrupt

from .execute import execute
from .executor import RunListener
from .options import CompareOptions
from .records import Run


def run_here(options: CompareOptions, runs: Sequence[Run], listener: RunListener) -> None:
    """Execute runs in order.

    Args:
        options: The comparison.
        runs: What to run.
        listener: Told how it goes.

    Raises:
        KeyboardInterrupt: After Ctrl-C; a run that was over by then has been given to `listener.finished`.
    """
    with stop_on_interrupt() as stop:
        for run in runs:
            listener.started(run)
            listener.finished(execute(options, run, partial(listener.progress, run), stop))
            if stop.requested:
                raise KeyboardInterrupt
