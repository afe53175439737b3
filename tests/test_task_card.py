"""The task card: round trip, atomic writes, and refusals."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from peft_aot.task_card import TaskCard, load_card, save_card

CARD = TaskCard(
    task="reviews",
    kind="classification",
    text_columns=("a", "b"),
    label_column="y",
    labels=("käse", "pos"),
    metrics=("accuracy",),
    max_length=64,
    base_model="some/model",
    method="aot",
    precision="bf16",
    scores={"accuracy": 0.5},
    partial_data=("train",),
    own_files=("f.csv", "g.csv"),
)


def test_round_trip(tmp_path: Path) -> None:
    path = save_card(CARD, tmp_path / "new")
    assert path == tmp_path / "new" / "task.json"
    assert load_card(tmp_path / "new") == CARD
    assert load_card(save_card(dataclasses.replace(CARD, own_files=None), tmp_path).parent).own_files is None


def test_a_crash_while_writing_leaves_the_old_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_card(CARD, tmp_path)

    def crash(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        save_card(dataclasses.replace(CARD, task="other"), tmp_path)
    assert load_card(tmp_path) == CARD
    assert [path.name for path in tmp_path.iterdir()] == ["task.json"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a task.json in .*, got none; pass the output directory of"):
        load_card(tmp_path)
    path = save_card(CARD, tmp_path)
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(path.read_text(encoding="utf-8")[:40], encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected a task card in .*, got unreadable JSON \(.*\); train again"):
        load_card(tmp_path)
    path.write_text(json.dumps({**whole, "format_version": 9}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected format_version 1 in .*, got 9; use a peft_aot that writes it"):
        load_card(tmp_path)
    del whole["labels"]
    path.write_text(json.dumps({**whole, "colour": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"got unknown \['colour'\] and missing \['labels'\]; train again"):
        load_card(tmp_path)
