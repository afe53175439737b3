"""Train one task on one backbone with one method: options in, result out, everything else on disk.

Knows nothing of terminals and of the methods' insides. The loop is `transformers.Trainer`'s.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase, TrainingArguments

from peft_aot.features import collator, encode
from peft_aot.fusion import fuse
from peft_aot.head_card import given_options
from peft_aot.inference import Logits
from peft_aot.loading import ADAPTER_CONFIG, pick_device
from peft_aot.loop import SCORE, ProgressReporter, StopRequest, TaskTrainer, load_weights, stop_on_interrupt
from peft_aot.metrics import compute_scores, mean_score
from peft_aot.preparation import Prepared, TrainOptions, prepare
from peft_aot.progress import ProgressCallback, TrainingInterrupted
from peft_aot.run_folder import ARTIFACTS
from peft_aot.staging import staged
from peft_aot.stored import StoredTuner
from peft_aot.task_card import TaskCard, save_card

__all__ = ["TrainOptions", "TrainResult", "train"]

WARMUP = 0.06  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class TrainResult:
    """What a finished training run left.

    Attributes:
        card: The task card, also on disk as `task.json`; `card.scores` holds the best checkpoint's scores.
        output: Directory with the adapter.
        score: Mean of the task's metrics at the best checkpoint.
        steps: Optimizer steps done.
        train_seconds: Seconds spent training in this process, evaluations included.
        trainable_parameters: Numbers trained, head included.
        stored_bytes: Bytes of the files to keep: adapter, head, table if fused.
    """

    card: TaskCard
    output: Path
    score: float
    steps: int
    train_seconds: float
    trainable_parameters: int
    stored_bytes: int


def _arguments(options: TrainOptions, prepared: Prepared, total_steps: int) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(prepared.run.checkpoints),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        learning_rate=prepared.card.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=int(WARMUP * total_steps),
        lr_scheduler_type="linear",
        seed=options.seed,
        bf16=prepared.card.precision == "bf16",
        use_cpu=pick_device().type == "cpu",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # 1 would make the trainer delete, at a stop, all but the best
        metric_for_best_model=SCORE,
        greater_is_better=True,
        logging_steps=max(1, min(10, total_steps // 10)),
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:  # DataParallel would multiply the batch, and adapters beside modules refuse it
        arguments._n_gpu = 1
    return arguments


def _head_rates(
    options: TrainOptions, model: torch.nn.Module, new_modules: tuple[str, ...]
) -> dict[torch.nn.Parameter, float]:
    """Return the learning rates that are not the method's: those of the head."""
    if options.head_learning_rate is None:
        return {}
    named = (item for item in model.named_parameters() if item[1].requires_grad)
    return {p: options.head_learning_rate for n, p in named if any(f".{module}." in f".{n}" for module in new_modules)}


def _save(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, card: TaskCard, output: Path, fused: bool
) -> None:
    """Replace what a run keeps in `output` by this model, all or nothing."""
    with staged(output, ADAPTER_CONFIG if isinstance(model, PeftModel) else "config.json", ARTIFACTS) as folder:
        save_card(card, folder)  # first, since the model card quotes it
        model.save_pretrained(str(folder))  # type: ignore[operator]
        if card.method == "full":
            tokenizer.save_pretrained(str(folder))
        if fused:
            fuse(folder, card.base_model, progress=False)


def train(
    options: TrainOptions, on_progress: ProgressCallback | None = None, stop: StopRequest | None = None
) -> TrainResult:
    """Train, keep the checkpoint with the best validation score, and save it in `options.output`.

    Args:
        options: What to train.
        on_progress: Called after every step and every evaluation. A KeyboardInterrupt raised in it, like Ctrl-C,
            stops the run after the step it is in.
        stop: A request to stop that the caller watches over; without one, Ctrl-C is taken as such.

    Returns:
        What was trained, and how well.

    Raises:
        TrainingInterrupted: The run was stopped; its last state is saved and `resume=True` goes on from it.
        Diverged: The loss or the logits are no longer finite; the checkpoints so far are left.
        ValueError, FileNotFoundError, FileExistsError, ConnectionError: Bad input; nothing was changed.
    """
    prepared = prepare(options)
    task, backbone, card = prepared.task, prepared.backbone, prepared.card
    transformers.set_seed(options.seed)
    model: torch.nn.Module = backbone.model
    if prepared.config is not None:
        model = get_peft_model(backbone.model, prepared.config)
        if isinstance(model.base_model, StoredTuner):  # in checkpoints too
            model.base_model.say_of_head(model.active_adapter, given_options({"max_length": card.max_length}, None))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    features = encode(prepared.train.items, backbone.tokenizer, task.kind, card.max_length)
    questions = encode(prepared.validation.items, backbone.tokenizer, task.kind, card.max_length)

    def score(logits: Logits) -> dict[str, float]:
        scores = compute_scores(task.metrics, prepared.validation.items, logits)
        return {**scores, SCORE: mean_score(scores)}

    steps_per_epoch = -(-len(features) // options.batch_size)
    total_steps = options.max_steps or int(-(-steps_per_epoch * options.epochs // 1))
    if prepared.checkpoint is None:
        prepared.run.begin(prepared.record)
    with stop_on_interrupt() if stop is None else nullcontext(stop) as stop:
        reporter = ProgressReporter(stop, steps_per_epoch, on_progress)
        trainer = TaskTrainer(
            model,
            _arguments(options, prepared, total_steps),
            features,
            questions,
            collator(backbone.tokenizer, task.kind),
            score,
            card.precision,
            reporter,
            options.patience,
            _head_rates(options, model, backbone.new_modules),
        )
        trainer.train(resume_from_checkpoint=None if prepared.checkpoint is None else str(prepared.checkpoint))
    state = trainer.state
    card = dataclasses.replace(card, steps=state.global_step, epochs=round(float(state.epoch or 0.0), 4))
    model = model.cpu()
    if stop.requested and state.global_step < state.max_steps:
        _save(model, backbone.tokenizer, card, options.output, fused=False)
        raise TrainingInterrupted(
            f"stopped after step {state.global_step} of {state.max_steps}; the adapter of that step is in "
            f"{options.output}; run the same command with --resume to go on"
        )
    best = prepared.run.checkpoints / f"checkpoint-{state.best_global_step}"
    load_weights(model, best)
    logged = next(
        entry
        for entry in reversed(state.log_history)
        if entry["step"] == state.best_global_step and f"eval_{SCORE}" in entry
    )
    names = [name for name in logged if name.startswith("eval_") and name != f"eval_{SCORE}"]
    scores = {name.removeprefix("eval_"): float(logged[name]) for name in names}
    card = dataclasses.replace(card, scores=scores, complete=True)
    _save(model, backbone.tokenizer, card, options.output, options.fuse)
    prepared.run.end()
    return TrainResult(
        card=card,
        output=options.output,
        score=mean_score(scores),
        steps=state.global_step,
        train_seconds=reporter.elapsed(),
        trainable_parameters=trainable,
        stored_bytes=prepared.run.stored_bytes(),
    )
