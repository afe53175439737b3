"""The demo from beginning to end: data, training, a fresh process that answers, the comparison.

What is finished stands in the output directory and is not done again. Knows nothing of terminals: whoever calls
passes a `Watcher`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from peft_aot.demo.carriers import locate_backbone
from peft_aot.demo.comparison import Candidate, Conditions, compare
from peft_aot.demo.data import TASKS, DemoTask, Sizes, TaskData, TaskUnavailableError, prepare, read_examples
from peft_aot.demo.finished import Run, forget_run, load_run, save_run
from peft_aot.demo.picture import draw, plots_available
from peft_aot.demo.questions import SENTENCES, Answers, Question, Questions, read_answers, write_json
from peft_aot.demo.report import markdown
from peft_aot.demo.results import Comparison, save_comparison
from peft_aot.progress import ProgressCallback
from peft_aot.tables import TABLE_FILE
from peft_aot.task import LocalFiles
from peft_aot.train import TrainOptions, train

FUSED = "AoT fused"
FACTORS = "AoT from factors"
BASELINES = {
    "head": "head only",
    "bitfit": "BitFit",
    "prompt": "prompt tuning",
    "prefix": "prefix tuning",
    "lora": "LoRA",
}


@dataclass(frozen=True)
class DemoOptions:
    """What the demo is asked to do.

    Attributes:
        output: Directory that receives everything.
        model: Hub id or local path of the backbone; None takes the carried MiniLM.
        sizes: Most examples per split.
        epochs: Passes over the training examples.
        batch_size: Examples per optimizer step.
        max_length: Longest input in tokens.
        questions: What to ask at the end.
        comparison: Whether to train and measure the other methods too.
        restart: Do everything again, whatever is finished.
    """

    output: Path
    model: str | None = None
    sizes: Sizes = field(default_factory=Sizes)
    epochs: float = 2.0
    batch_size: int = 16
    max_length: int = 64
    questions: tuple[Question, ...] = SENTENCES
    comparison: bool = True
    restart: bool = False


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and left.

    Attributes:
        model: The backbone it used.
        runs: The AoT runs by task.
        skipped: The reason for each task that was left out.
        answers: What the fresh process answered.
        comparison: The methods beside each other, if asked for.
        files: The report and the picture, if there are any.
    """

    model: str
    runs: Mapping[str, Run]
    skipped: Mapping[str, str]
    answers: Answers
    comparison: Comparison | None
    files: tuple[Path, ...]


class Watcher(Protocol):
    """Is told what goes on, as it goes on."""

    def found(self, data: TaskData) -> None:
        """The examples of a task are there."""

    def skipped(self, task: DemoTask, reason: str) -> None:
        """A task is left out."""

    def training(self, title: str) -> ProgressCallback:
        """A training begins; what is returned is told of its progress."""

    def trained(self, title: str, run: Run, reused: bool) -> None:
        """A training has ended, now or in an earlier demo."""

    def step(self, text: str) -> None:
        """Something else begins that takes a while."""

    def answered(self, answers: Answers) -> None:
        """The fresh process has answered."""

    def compared(self, comparison: Comparison) -> None:
        """The methods have been measured."""


def run_demo(options: DemoOptions, watcher: Watcher) -> DemoResult:
    """Run the demo.

    Raises:
        CarrierMissingError: No model given and none carried.
        TaskUnavailableError: Not one task could be had.
    """
    model = options.model or str(locate_backbone())
    options.output.mkdir(parents=True, exist_ok=True)
    data, skipped = _prepare_all(options, watcher)
    runs = {
        name: _train_once(options, model, one, "aot", options.output / "adapters" / name, f"AoT on {name}", watcher)
        for name, one in data.items()
    }
    watcher.step("a fresh process loads the backbone once and every adapter")
    answers = ask(_questions(options, model, runs), options.output)
    watcher.answered(answers)
    comparison, files = _compare_methods(options, model, data, runs, watcher) if options.comparison else (None, ())
    return DemoResult(model, runs, skipped, answers, comparison, files)


def ask(questions: Questions, output: Path) -> Answers:
    """Have the questions answered by a new process of this interpreter, which knows the files and nothing else.

    Raises:
        RuntimeError: The process failed; the message holds the end of what it said.
    """
    file = output / "questions.json"
    write_json(questions, file)
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "peft_aot.demo.answer", str(file)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**environment, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"expected answers from a fresh process, got exit status {done.returncode}; it said:\n{done.stderr[-2000:]}"
        )
    answers = read_answers(done.stdout.splitlines()[-1])
    write_json(answers, output / "answers.json")
    return answers


def _prepare_all(options: DemoOptions, watcher: Watcher) -> tuple[dict[str, TaskData], dict[str, str]]:
    data: dict[str, TaskData] = {}
    skipped: dict[str, str] = {}
    for task in TASKS:
        try:
            data[task.name] = prepare(task, options.output / "data" / task.name, options.sizes)
        except TaskUnavailableError as error:
            skipped[task.name] = str(error)
            watcher.skipped(task, str(error))
        else:
            watcher.found(data[task.name])
    if not data:
        raise TaskUnavailableError(
            f"expected the examples of at least one task among {[task.name for task in TASKS]}, got none; install "
            f"the packages of requirements-demo.txt, or connect to the hub"
        )
    return data, skipped


def _train_once(
    options: DemoOptions, model: str, data: TaskData, method: str, output: Path, title: str, watcher: Watcher
) -> Run:
    """Train unless the same training stands in `output` already."""
    task = LocalFiles(data.file("train"), data.file("validation"))
    wanted = TrainOptions(
        task=task,
        model=model,
        output=output,
        method=method,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=data.task.learning_rate if method == "aot" else None,
        max_length=options.max_length,
        fuse=method == "aot",
        overwrite=True,
    )
    run = None if options.restart else load_run(wanted)
    reused = run is not None
    if run is None:
        forget_run(wanted)
        run = save_run(wanted, train(wanted, watcher.training(title)))
    watcher.trained(title, run, reused)
    return run


def _questions(options: DemoOptions, model: str, runs: Mapping[str, Run]) -> Questions:
    asked = tuple(question for question in options.questions if question.task in runs)
    if not asked:
        raise ValueError(f"expected a question for one of the tasks {list(runs)}, got none; ask one")
    return Questions(model, {name: str(run.directory) for name, run in runs.items()}, asked)


def _compare_methods(
    options: DemoOptions, model: str, data: Mapping[str, TaskData], aot: Mapping[str, Run], watcher: Watcher
) -> tuple[Comparison, tuple[Path, ...]]:
    name, chosen = next(iter(data.items()))
    folder = options.output / "comparison"
    candidates = []
    for method, title in BASELINES.items():
        run = _train_once(options, model, chosen, method, folder / method, title, watcher)
        candidates.append(Candidate(title, run.directory, run.trainable_parameters, run.train_seconds))
    candidates += _aot_candidates(aot[name], folder / "aot-factors")
    comparison = compare(
        candidates,
        (FUSED, FACTORS),
        read_examples(chosen.file("test")),
        Conditions(chosen.task.title, options.model or "MiniLM-L6", chosen.used["train"], options.epochs),
        model,
        watcher.step,
    )
    watcher.compared(comparison)
    return comparison, write_comparison(comparison, options.output)


def _aot_candidates(run: Run, factors: Path) -> list[Candidate]:
    """The same adapter twice: as it is, and as if its table had never been written."""
    shutil.rmtree(factors, ignore_errors=True)
    shutil.copytree(run.directory, factors, ignore=shutil.ignore_patterns(TABLE_FILE, "checkpoints"))
    return [
        Candidate(title, directory, run.trainable_parameters, run.train_seconds, ours=True)
        for title, directory in ((FACTORS, factors), (FUSED, run.directory))
    ]


def write_comparison(comparison: Comparison, output: Path) -> tuple[Path, ...]:
    """Write a comparison as JSON, Markdown and, with matplotlib, PNG; returns the files for people."""
    save_comparison(comparison, output / "comparison.json")
    pictures: Sequence[Path] = [draw(comparison, output / "comparison.png")] if plots_available() else []
    page = output / "comparison.md"
    page.write_text(markdown(comparison, pictures[0].name if pictures else None), encoding="utf-8")
    return (page, *pictures)
