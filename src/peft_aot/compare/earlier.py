"""Whether what an output holds already belongs to the same comparison: the same protocol, on the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from .facts import TaskFacts
from .options import CompareOptions
from .records import CostRecord, RunRecord

ROWS = "rows"


def check_earlier(
    options: CompareOptions, facts: Sequence[TaskFacts], runs: Sequence[RunRecord], costs: Sequence[CostRecord]
) -> None:
    """Refuse to go on with records that do not compare with what would be run.

    Args:
        options: The comparison.
        facts: Its tasks; of others that have records only what all tasks share is checked.
        runs: Its records.
        costs: Its records.

    Raises:
        ValueError: They differ in an option, or in the data.
    """
    tasks = {task.name: task for task in facts}
    shared = options.protocol()
    for run in runs:
        if run.task in tasks:
            ours = options.protocol_of(run.task)
            _check_protocol(run.protocol, ours, (run.protocol.keys() | ours.keys()) - {ROWS}, options.output)
            _check_data(run, tasks[run.task], options.output)
        else:
            _check_protocol(run.protocol, shared, shared.keys(), options.output)
    for cost in costs:
        _check_protocol(cost.protocol, shared, shared.keys(), options.output)


def _check_protocol(found: Mapping[str, Any], ours: Mapping[str, Any], names: AbstractSet[str], output: Path) -> None:
    for name in sorted(names):
        if found.get(name) != ours.get(name):
            raise ValueError(
                f"expected {name}={found.get(name)!r} as in the runs in {output}, got {ours.get(name)!r}; pass the "
                "same options, or another output: scores of different protocols do not compare"
            )


def _check_data(run: RunRecord, task: TaskFacts, output: Path) -> None:
    rows = run.protocol.get(ROWS)  # lines of earlier versions have none
    if rows is not None and rows != task.rows:
        raise ValueError(
            f"expected the rows of {run.task} as in the runs in {output}, got others; read the same data, or pass "
            "another output: scores on different data do not compare"
        )
    if run.status == "done" and run.train_examples != len(task.train):
        raise ValueError(
            f"expected {run.train_examples} training examples of {run.task} as in the runs in {output}, got "
            f"{len(task.train)}; read the same data, or pass another output"
        )
