"""The output directory of a training run: what may be started in it, and where a stopped run goes on.

    <output>/adapter_config.json, adapter_model.safetensors,
             head.json, task.json                                        the adapter to keep
    <output>/checkpoints/run.json                                        the options of a run that has not finished
    <output>/checkpoints/checkpoint-<step>/                              its last and its best state

Knows nothing of models and training loops.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_aot.task_card import CARD_NAME

CHECKPOINTS = "checkpoints"
RUN_NAME = "run.json"
# What a run may have left in its output directory; whatever else is there belongs to the user and is never touched.
ARTIFACTS = (
    CARD_NAME,
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "aot_table.safetensors",
    "config.json",
    "head.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class RunFolder:
    """The output directory of one run.

    Attributes:
        output: The directory.
    """

    output: Path

    @property
    def checkpoints(self) -> Path:
        """Directory of the run's checkpoints while it goes on."""
        return self.output.resolve() / CHECKPOINTS

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written completely; the trainer's state is what is written last."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    def check(self, options: Mapping[str, Any], resume: bool, overwrite: bool) -> Path | None:
        """Say whether a run may start here, without changing anything.

        Args:
            options: What decides the run, as JSON values; a resumed run must have the same.
            resume: Whether to go on with a stopped run.
            overwrite: Whether to replace what is here.

        Returns:
            The checkpoint to go on from, or None to start anew.

        Raises:
            FileExistsError: There is a run here, or files that saving would replace, and neither `resume` nor
                `overwrite` was given.
            FileNotFoundError: There is nothing to resume.
            ValueError: The stopped run had other options.
        """
        started = (self.checkpoints / RUN_NAME).is_file()
        finished = not started and (self.output / CARD_NAME).is_file()
        if self.output.exists() and not self.output.is_dir():
            raise FileExistsError(f"expected a directory as output, got the file {self.output}; choose another path")
        if resume:
            if not started:
                state = "a finished one" if finished else "none"
                raise FileNotFoundError(
                    f"expected an interrupted run to resume in {self.output}, got {state}; drop --resume"
                    + (" and pass --overwrite to train again" if finished else "")
                )
            self._check_same(options)
            return self.last_checkpoint()
        if (started or finished) and not overwrite:
            state, remedy = ("an interrupted", "--resume to go on, ") if started else ("a finished", "")
            raise FileExistsError(
                f"expected no run in {self.output}, got {state} one; pass {remedy}--overwrite to replace it, or "
                "another output"
            )
        foreign = [name for name in ARTIFACTS if (self.output / name).exists()]
        if foreign and not overwrite:
            raise FileExistsError(
                f"expected an output without {', '.join(foreign)}, which saving would replace, got them in "
                f"{self.output}; pass another output, or --overwrite to replace them"
            )
        return None

    def _check_same(self, options: Mapping[str, Any]) -> None:
        before: dict[str, Any] = json.loads((self.checkpoints / RUN_NAME).read_text(encoding="utf-8"))
        for name, value in options.items():
            if before.get(name) != value:
                raise ValueError(
                    f"expected {name}={before.get(name)!r} as in the interrupted run in {self.output}, got {value!r}; "
                    "pass the same options with --resume, or --overwrite to start anew"
                )

    def begin(self, options: Mapping[str, Any]) -> None:
        """Discard the checkpoints of an earlier run and note the options of this one."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.checkpoints.mkdir(parents=True)
        (self.checkpoints / RUN_NAME).write_text(json.dumps(options, indent=2), encoding="utf-8")

    def end(self) -> None:
        """Discard the checkpoints of a run whose adapter is saved."""
        shutil.rmtree(self.checkpoints)

    def stored_bytes(self) -> int:
        """Bytes of the adapter, its configuration and its table, not of checkpoints and of the user's own files."""
        files = (self.output / name for name in ARTIFACTS)
        return sum(file.stat().st_size for file in files if file.is_file())
