"""Runs one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from peft_aot.loop import stop_on_interrupt
from peft_aot.progress import Progress

from .execute import execute
from .options import CompareOptions
from .records import Run, RunRecord


def run_here(
    options: CompareOptions,
    runs: Sequence[Run],
    on_start: Callable[[Run], None],
    on_progress: Callable[[Run, Progress], None],
    on_finish: Callable[[RunRecord], None],
) -> None:
    """Execute runs in order.

    Args:
        options: The comparison.
        runs: What to run.
        on_start: Told which run begins.
        on_progress: Told how it goes.
        on_finish: Given its record; what it does is done before the next run begins.

    Raises:
        KeyboardInterrupt: After Ctrl-C; a run that was over by then has been given to `on_finish`.
    """
    with stop_on_interrupt() as stop:
        for run in runs:
            on_start(run)
            on_finish(execute(options, run, partial(on_progress, run), stop))
            if stop.requested:
                raise KeyboardInterrupt
