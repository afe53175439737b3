"""How long a comparison will take, and in how much memory: a few training steps per method, scaled to all runs.

An estimate: other programs on the machine, early stopping and the shape of batches are not foreseen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median

import torch
from peft import get_peft_model

from peft_aot.features import Feature, collator
from peft_aot.loading import load_backbone, pick_device, pick_precision
from peft_aot.method import configure
from peft_aot.methods import get_method

from .facts import TaskFacts
from .memory import PeakMemory, release_unused
from .options import CompareOptions
from .plan import Plan
from .records import Run, RunRecord
from .space import request_of

STEPS = 2
EVALUATION_SHARE = 0.4  # time of a token in evaluation over its time in training: no backward pass


@dataclass(frozen=True)
class Speed:
    """What one method's training takes on this machine.

    Attributes:
        seconds_per_token: Of a training step.
        overhead_seconds: Of a whole run, for loading and saving.
        memory_bytes: Peak of a step on the longest batch.
    """

    seconds_per_token: float
    overhead_seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a comparison will take from here.

    Attributes:
        runs: Runs still to do.
        seconds: Seconds for them, one after the other.
        memory_bytes: Most memory of any of them.
    """

    runs: int
    seconds: float
    memory_bytes: int


class Estimator:
    """Knows the speed of every method of a comparison.

    Args:
        options: The comparison.
        facts: Its tasks.
        speeds: Method -> speed, from `measure_speed`.
    """

    def __init__(self, options: CompareOptions, facts: Sequence[TaskFacts], speeds: dict[str, Speed]) -> None:
        self.options = options
        self.facts = {task.name: task for task in facts}
        self.speeds = speeds

    def seconds(self, run: Run, records: Sequence[RunRecord] = ()) -> float:
        """Foresee one run: what runs of the method on the task took so far, or else from its speed."""
        taken = [r.train_seconds for r in records if (r.task, r.method, r.status) == (run.task, run.method, "done")]
        speed, task = self.speeds[run.method], self.facts[run.task]
        if taken:
            return median(taken) + speed.overhead_seconds
        tokens = task.train_tokens + EVALUATION_SHARE * task.validation_tokens
        return self.options.epochs * tokens * speed.seconds_per_token + speed.overhead_seconds

    def estimate(self, plan: Plan, records: Sequence[RunRecord]) -> Estimate:
        """Foresee everything that is still to be run, further seeds included."""
        finished = {record.run.key for record in records}
        todo = [run for run in plan.search() if run.key not in finished]
        seconds = sum(self.seconds(run, records) for run in todo)
        runs = len(todo)
        for task, method in plan.pairs:  # which settings the seeds will have is not known yet, but not their number
            seeds = {r.seed for r in records if (r.task, r.method) == (task, method) and 0 < r.seed < plan.seeds}
            again = 0 if plan.is_hopeless(records, task, method) else plan.seeds - 1 - len(seeds)
            runs += again
            seconds += again * self.seconds(Run(task, method, 0, {}, 0), records)
        return Estimate(runs, seconds, max(speed.memory_bytes for speed in self.speeds.values()))


def measure_speeds(
    options: CompareOptions,
    plan: Plan,
    facts: Sequence[TaskFacts],
    on_step: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Speed], dict[str, str]]:
    """Take a few training steps with every method.

    Args:
        options: The comparison.
        plan: Its runs.
        facts: Its tasks.
        on_step: Told which method is measured.

    Returns:
        Method -> speed, and method -> why the backbone refuses it, for those that cannot adapt it at all.
    """
    speeds, refused = {}, {}
    for method in plan.points:
        able = [task for task in facts if (task.name, method) not in plan.excluded]
        if able:
            on_step(method)
            try:
                speeds[method] = _measure(options, method, plan.points[method][0], able)
            except _RefusedError as error:
                refused[method] = str(error)
    return speeds, refused


class _RefusedError(Exception):
    """The backbone cannot be adapted by a method."""


def _measure(options: CompareOptions, name: str, point: dict[str, object], able: Sequence[TaskFacts]) -> Speed:
    release_unused()
    device, task = pick_device(), able[0]
    started = time.monotonic()
    with PeakMemory(device) as memory:
        backbone = load_backbone(options.model, task.task.kind, task.task.labels)
        request = request_of(point, str(backbone.model.config.model_type), task.task.kind, backbone.new_modules)
        config = configure(get_method(name), request)
        try:
            model: torch.nn.Module = backbone.model if config is None else get_peft_model(backbone.model, config)
        except (ValueError, TypeError, AttributeError) as error:
            raise _RefusedError(f"it cannot adapt this backbone: {error}") from error
        model.train().to(device)
        overhead = 2 * (time.monotonic() - started)  # loading, and about as much for saving the best epoch
        step = _Step(model, pick_precision(options.precision, device), device)
        collate = collator(backbone.tokenizer, task.task.kind)
        virtual = request.virtual_tokens if get_method(name).virtual_tokens else 0
        room = backbone.tokenizer.model_max_length - virtual  # training cuts texts to that
        order = sorted(_fitting(task, room), key=lambda index: task.train.lengths[index])
        middle = len(order) // 2 - options.batch_size // 2
        typical = collate([task.train[i] for i in order[max(0, middle) :][: options.batch_size]])
        step(typical)  # the first one allocates
        started = time.monotonic()
        for _ in range(STEPS):
            step(typical)
        seconds = (time.monotonic() - started) / STEPS
        if task.task.kind != "multiple_choice":
            longest = _longest(able, collate, options.batch_size, room)
            step({**longest, "labels": typical["labels"].new_zeros(len(longest["labels"]))})
    return Speed(seconds / typical["attention_mask"].sum().item(), overhead, memory.bytes)


def _longest(
    able: Sequence[TaskFacts], collate: Callable[[list[Feature]], dict[str, torch.Tensor]], size: int, room: int
) -> dict[str, torch.Tensor]:
    """Make the batch that needs most memory; its labels may be another task's."""
    longest = max((t for t in able if t.task.kind != "multiple_choice"), key=lambda task: max(task.train.lengths))
    order = sorted(_fitting(longest, room), key=lambda index: -longest.train.lengths[index])
    return collate([longest.train[i] for i in order[:size]])


def _fitting(task: TaskFacts, room: int) -> list[int]:
    """Name the training examples of at most `room` tokens, or the shortest one if there are none."""
    lengths = task.train.lengths
    return [i for i, length in enumerate(lengths) if length <= room] or [
        min(range(len(lengths)), key=lengths.__getitem__)
    ]


class _Step:
    """One optimizer step, as the trainer takes it."""

    def __init__(self, model: torch.nn.Module, precision: str, device: torch.device) -> None:
        self.model, self.precision, self.device = model, precision, device
        self.optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)

    def __call__(self, batch: dict[str, torch.Tensor]) -> None:
        context = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with context:
            loss = self.model(**{name: value.to(self.device) for name, value in batch.items()}).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        float(loss.detach())  # waits for an accelerator
