"""The training loop: `transformers.Trainer` with our order of examples, our scores, and a stop that loses nothing.

Knows nothing of tasks and methods: it is given features, a function that scores logits, and a model.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_model
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from peft_aot.features import Collate, Feature, Features
from peft_aot.inference import Logits, compute_logits
from peft_aot.progress import Progress, ProgressCallback
from peft_aot.sampling import LengthGroupedOrder
from peft_aot.signals import handling


class Diverged(ValueError):
    """The loss or the logits are no longer finite: nothing can be learned any more."""


ScoreFunction = Callable[[Logits], dict[str, float]]
SCORE = "score"


def _diverged(what: str, value: float, args: TrainingArguments, state: TrainerState) -> Diverged:
    return Diverged(
        f"expected finite {what}, got {value} at step {state.global_step} of {state.max_steps}; the training has "
        f"diverged, lower the learning rate (now {args.learning_rate:g})"
    )


class StopRequest:
    """Whether the run was asked to stop after the step it is in."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C into a request to stop after the current step; a second one interrupts at once.

    Outside the main thread nobody sends one.
    """
    stop = StopRequest()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    with handling(signal.SIGINT, handle):
        yield stop


def load_weights(model: torch.nn.Module, directory: Path) -> None:
    """Put the weights of a checkpoint into a model of the same structure.

    Not by `PeftModel.load_adapter`, which refuses to go on training prompts and prefixes.
    """
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
    else:
        load_model(model, directory / "model.safetensors")


class ProgressReporter(TrainerCallback):
    """Tells a callback how the run goes, and stops it between two steps when asked to."""

    def __init__(self, stop: StopRequest, steps_per_epoch: int, on_progress: ProgressCallback | None) -> None:
        self.stop = stop
        self.steps_per_epoch = steps_per_epoch
        self.on_progress = on_progress
        self.loss: float | None = None
        self.score: float | None = None
        self.started = 0.0
        self.first_step = 0

    def elapsed(self) -> float:
        """Seconds since training began in this process."""
        return time.monotonic() - self.started

    def _report(self, state: TrainerState, phase: str) -> None:
        if self.on_progress is None:
            return
        seconds = self.elapsed()
        done = state.global_step - self.first_step
        left = seconds / done * (state.max_steps - state.global_step) if done else None
        try:
            self.on_progress(
                Progress(
                    state.global_step,
                    state.max_steps,
                    float(state.epoch or 0.0),
                    self.loss,
                    self.score,
                    seconds,
                    left,
                    phase,
                )
            )
        except KeyboardInterrupt:
            self.stop.requested = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.started = time.monotonic()
        self.first_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Remember the loss for the next report.

        Raises:
            Diverged: It is not finite.
        """
        self.loss = kwargs["logs"].get("loss", self.loss)
        if self.loss is not None and not math.isfinite(self.loss):
            raise _diverged("loss", self.loss, args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report, and if asked to stop: save, unless the epoch is over and will be evaluated and saved anyway."""
        self._report(state, "train")
        if self.stop.requested:
            control.should_training_stop = True
            control.should_save = state.global_step % self.steps_per_epoch != 0

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep a run that stops within an epoch from evaluating there: the uninterrupted run would not."""
        within = state.global_step % self.steps_per_epoch != 0
        if self.stop.requested and within and state.global_step < state.max_steps:
            control.should_evaluate = False
            control.should_save = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Report the new score."""
        self.score = kwargs["metrics"][f"eval_{SCORE}"]
        self._report(state, "evaluate")


class TaskTrainer(Trainer):
    """`Trainer` for one task. Resuming gives the run that would have been without the interruption."""

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        train: Features,
        validation: Features,
        collate: Collate,
        score: ScoreFunction,
        precision: str,
        reporter: ProgressReporter,
        patience: int | None = None,
        rates: Mapping[torch.nn.Parameter, float] | None = None,
    ) -> None:
        stopping = [] if patience is None else [EarlyStoppingCallback(patience)]
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=collate,
            callbacks=[reporter, *stopping],
        )
        self.remove_callback(PrinterCallback)
        self.trained_model = model
        self.train_features = train
        self.validation_features = validation
        self.collate = collate
        self.score_function = score
        self.precision = precision
        self.rates = rates or {}

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, and groups of their own for parameters with a learning rate of their own."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        for group in list(optimizer.param_groups):
            for rate in dict.fromkeys(self.rates.values()):
                chosen = [p for p in group["params"] if self.rates.get(p) == rate]
                if chosen:
                    group["params"] = [p for p in group["params"] if self.rates.get(p) != rate]
                    optimizer.add_param_group({**group, "params": chosen, "lr": rate})
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Feature]:
        """Batches of similar length in an order that depends on seed and epoch alone."""
        order = LengthGroupedOrder(self.train_features.lengths, self.args.train_batch_size, self.args.seed)
        loader: DataLoader[Feature] = DataLoader(
            self.train_features, self.args.train_batch_size, sampler=order, collate_fn=self.collate
        )
        prepared: DataLoader[Feature] = self.accelerator.prepare(loader)
        return prepared

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: object = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation features exactly as `peft_aot.evaluate` does."""
        logits = compute_logits(
            self.trained_model,
            self.validation_features,
            self.collate,
            self.args.device,
            self.precision,
        )
        if not np.isfinite(logits).all():
            raise _diverged("logits", float(logits[~np.isfinite(logits)][0]), self.args, self.state)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.score_function(logits).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_weights(self.trained_model, Path(resume_from_checkpoint))
