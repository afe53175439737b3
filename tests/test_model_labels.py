"""The configuration of a model says what the outputs of the active adapter mean: losses and pipelines go by it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from backbones import build, inputs
from models import METHODS, adapted, config
from peft_aot.head_card import HEAD_FILE, read_head_card
from tiny_text import write_backbone

MOODS = {0: "neg", 1: "neutral", 2: "pos"}
BATCH = inputs("bert", "SEQ_CLS")
LABELS = torch.tensor([2, 1, 0])


def saved(folder: Path, names: dict[int, str], **fields: Any) -> Path:
    model = adapted("bert", num_labels=len(names), **fields)
    model.config.id2label = names
    model.save_pretrained(folder)
    return folder


def says(model: nn.Module) -> tuple[object, ...]:
    about = model.config
    return about.num_labels, about.id2label, about.label2id, about.problem_type, model.num_labels


MOODS_SAID = (3, MOODS, {"neg": 0, "neutral": 1, "pos": 2}, "single_label_classification", 3)
SCORE_SAID = (1, {0: "score"}, {"score": 0}, "regression", 1)


@pytest.mark.parametrize("own", [1, 2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_labels_go_with_the_head_that_was_loaded(method: str, own: int, tmp_path: Path) -> None:
    backbone = build("bert", num_labels=own)
    before = says(backbone)
    model = PeftModel.from_pretrained(backbone, saved(tmp_path, MOODS, method=method)).eval()
    assert says(model) == MOODS_SAID
    found = model(**BATCH, labels=LABELS)
    torch.testing.assert_close(found.loss, F.cross_entropy(found.logits, LABELS))
    with model.disable_adapter():
        assert says(model) == before and model(**BATCH).logits.shape == (3, own)
    assert says(model) == says(copy.deepcopy(model)) == MOODS_SAID
    assert says(model.unload()) == before


def test_tokens_too(tmp_path: Path) -> None:
    adapted("bert", "TOKEN_CLS", num_labels=5).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(build("bert", "TOKEN_CLS"), tmp_path).eval()
    labels = BATCH["input_ids"] % 5
    found = model(**BATCH, labels=labels)
    torch.testing.assert_close(found.loss, F.cross_entropy(found.logits.flatten(0, 1), labels.flatten()))


def test_the_active_adapter_is_spoken_of(tmp_path: Path) -> None:
    mood, score = saved(tmp_path / "mood", MOODS), saved(tmp_path / "score", {0: "score"})
    backbone = build("bert")
    before = says(backbone)
    model = PeftModel.from_pretrained(backbone, mood).eval()
    model.load_adapter(score, "grade")
    assert says(model) == MOODS_SAID
    model.set_adapter("grade")
    assert says(model) == SCORE_SAID
    targets = torch.tensor([0.1, 0.2, 0.3])
    found = model(**BATCH, labels=targets)
    torch.testing.assert_close(found.loss, F.mse_loss(found.logits.squeeze(), targets))
    model.add_adapter("fresh", config("bert", "SEQ_CLS"))
    model.set_adapter("fresh")
    assert says(model) == before, "its head is a copy of the backbone's"
    model.set_adapter("default")
    assert says(model) == MOODS_SAID
    model.delete_adapter("default")
    assert says(model) == {"grade": SCORE_SAID, "fresh": before}[model.active_adapter]


def test_an_adapter_that_was_not_loaded_is_saved_with_the_backbone_s_own_names(tmp_path: Path) -> None:
    """Whatever adapter is active when it is saved."""
    model = adapted("bert")
    model.config.id2label = {0: "no", 1: "yes"}
    model.load_adapter(saved(tmp_path / "mood", {0: "neg", 1: "pos"}), "mood")
    model.set_adapter("mood")
    assert model.config.id2label == {0: "neg", 1: "pos"}
    model.save_pretrained(tmp_path / "both")
    assert read_head_card(tmp_path / "both" / HEAD_FILE).labels == ("no", "yes")
    assert read_head_card(tmp_path / "both" / "mood" / HEAD_FILE).labels == ("neg", "pos")


def test_names_that_are_given_later_stay(tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(build("bert"), saved(tmp_path, {0: "neg", 1: "pos"}))
    model.config.id2label = {0: "bad", 1: "good"}
    assert model.unload().config.id2label == {0: "bad", 1: "good"}


def test_a_head_without_a_card_has_plain_names(tmp_path: Path) -> None:
    (saved(tmp_path, MOODS) / HEAD_FILE).unlink()
    model = PeftModel.from_pretrained(build("bert"), tmp_path).eval()
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert torch.isfinite(model(**BATCH, labels=LABELS).loss)


def test_an_adapter_in_training_leaves_the_backbone_its_say() -> None:
    model = get_peft_model(build("bert", num_labels=3), config("bert", "SEQ_CLS"))
    model.set_adapter("default")
    assert model.config.problem_type is None, "the loss still goes by the labels"


def test_a_load_that_fails_changes_nothing(tmp_path: Path) -> None:
    backbone = build("bert")
    before = says(backbone)
    folder = saved(tmp_path, MOODS)
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(Exception, match="."):
        PeftModel.from_pretrained(backbone, folder)
    assert says(backbone) == before


def test_labels_for_heads_of_another_size_in_a_mixed_batch(tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(build("bert", num_labels=1), saved(tmp_path / "score", {0: "score"})).eval()
    model.load_adapter(saved(tmp_path / "mood", MOODS), "mood")
    names = ["mood"] * 3
    with pytest.raises(ValueError, match="expected heads of 1 outputs when labels are passed.* got 3; call set_adap"):
        model(**BATCH, labels=LABELS, adapter_names=names)
    model.set_adapter("mood")
    found = model(**BATCH, labels=LABELS, adapter_names=names)
    torch.testing.assert_close(found.loss, F.cross_entropy(found.logits, LABELS))


def test_pipelines_name_the_labels(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "backbone")
    trained = AutoModelForSequenceClassification.from_pretrained(folder, id2label=MOODS)
    get_peft_model(trained, config("bert", "SEQ_CLS")).save_pretrained(tmp_path / "mood")
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(folder), tmp_path / "mood")
    answer = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), top_k=None)
    assert {found["label"] for found in answer(["the red dog"])[0]} == set(MOODS.values())
