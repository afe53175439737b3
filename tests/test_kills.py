"""Fusing and saving, killed at any moment: the folder holds the old adapter or the new one, whole."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

import peft_aot
from backbones import build, inputs, output
from interruption import in_child, killed_after
from models import adapted
from peft_aot.fusion import FUSED, NOT_FUSED
from peft_aot.tables import TABLE_FILE

BATCH = inputs("bert", "SEQ_CLS")
OLD, NEW = 2, 6
"""Ranks, by which the adapters are told apart."""
TIMES = [8, pytest.param(100, marks=pytest.mark.slow)]


def answers(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return output(model, BATCH)


def adapter(rank: int, **fields: object) -> PeftModel:
    return adapted("bert", seed=rank, r=rank, table_dtype="float32", **fields)


class Killer:
    """Kills a piece of work at random moments; sooner, whenever it was done before.

    Args:
        work: The same work, to see how long it takes.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        durations = []
        for _ in range(3):
            start = time.perf_counter()
            assert in_child(work) == 0
            durations.append(time.perf_counter() - start)
        self._span = statistics.median(durations)
        self._random = random.Random(0)
        self.killed = 0

    def kill(self, work: Callable[[], object]) -> None:
        """Run the work in a child process and kill that, unless it is done first."""
        if killed_after(self._random.uniform(0, self._span), work):
            self.killed += 1
        else:
            self._span /= 2


def load(folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # none says that a table is not right
        return PeftModel.from_pretrained(build("bert"), folder)


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("fused", [False, True], ids=["without its table", "with its table"])
def test_a_save_killed_at_any_moment(fused: bool, times: int, tmp_path: Path) -> None:
    old, new = adapter(OLD, fuse_on_save=True), adapter(NEW, fuse_on_save=fused)
    expected = {OLD: answers(old), NEW: answers(new)}
    folder = tmp_path / "adapter"
    old.save_pretrained(folder)
    shutil.copytree(folder, tmp_path / "old")
    killer = Killer(lambda: new.save_pretrained(folder))
    for _ in range(times):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "old", folder)
        killer.kill(lambda: new.save_pretrained(folder))
        found = load(folder)
        rank = found.peft_config["default"].r
        torch.testing.assert_close(answers(found), expected[rank], atol=1e-5, rtol=1e-5)
        assert bool(found.base_model.lookup.tables) is (fused or rank == OLD), "its own table, or none"
    assert killer.killed, "or this test shows nothing"
    new.save_pretrained(folder)
    assert not hidden(folder), "what killed saves left is gone"


@pytest.mark.parametrize("times", TIMES)
def test_fusing_killed_at_any_moment(times: int, tmp_path: Path) -> None:
    model, backbone = adapter(OLD), build("bert")
    model.save_pretrained(tmp_path)
    expected = answers(model)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")

    def fuse(dtype: str = "float32") -> None:
        peft_aot.fuse(tmp_path, backbone, dtype=dtype, progress=False)

    killer, seen = Killer(fuse), set()
    for turn in range(times):
        if turn % 2:
            (tmp_path / TABLE_FILE).unlink(missing_ok=True)
        else:
            fuse("float16")
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
        killer.kill(fuse)
        found = load(tmp_path)
        torch.testing.assert_close(answers(found), expected, atol=2e-3, rtol=1e-3)
        table = found.base_model.lookup.tables.get("default")
        seen.add(None if table is None else table.header.dtype)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert text in (card, card.replace(NOT_FUSED, FUSED.format(dtype="float32")))
    assert killer.killed and len(seen) > 1, "or this test shows nothing"
    fuse()
    assert not hidden(tmp_path), "what killed processes left is gone"
