"""What an adapter's outputs mean, in the file beside it: written with every adapter, kept by it on other backbones."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

from backbones import build, inputs
from models import METHODS, adapted, config
from peft_aot import AoTConfig, AoTModel
from peft_aot.adapter_head import describe_head
from peft_aot.head_card import HEAD_FILE, HeadCard, read_head_card, write_head_card
from peft_aot.info import describe, lines
from test_files import broken, other_shape

MOODS = ("neg", "neutral", "pos")
GIVEN: dict[str, Any] = {"max_length": 64, "truncation": "only_first", "add_special_tokens": False}
for_all = pytest.mark.parametrize("method", METHODS)
on_both = pytest.mark.parametrize("name", ["bert", "roberta"])


def named(name: str = "bert", task: str = "SEQ_CLS", labels: tuple[str, ...] = MOODS, **fields: Any) -> PeftModel:
    """An adapter on a backbone whose configuration names these labels."""
    model = adapted(name, task, num_labels=len(labels), **fields)
    model.get_base_model().config.id2label = dict(enumerate(labels))
    return model


def card_of(folder: Path) -> HeadCard:
    return read_head_card(folder / HEAD_FILE)


def card_after(model: PeftModel, folder: Path, **options: Any) -> HeadCard:
    model.save_pretrained(folder, **options)
    return card_of(folder)


def saved(folder: Path, **options: Any) -> Path:
    """An adapter with three named labels."""
    named(method=options.pop("method", "aot")).save_pretrained(folder, **options)
    return folder


# what is written


def test_the_file(tmp_path: Path) -> None:
    saved(tmp_path, tokenizer_args={"max_length": 128})
    assert json.loads((tmp_path / HEAD_FILE).read_text(encoding="utf-8")) == {
        "format_version": 1,
        "task_type": "SEQ_CLS",
        "problem_type": "single_label_classification",
        "num_labels": 3,
        "id2label": {"0": "neg", "1": "neutral", "2": "pos"},
        "tokenizer_args": {"max_length": 128},
        "pooling": "mean",
    }


KINDS: dict[str, tuple[str, str | None, tuple[str, ...], str | None]] = {
    "single label": ("SEQ_CLS", None, MOODS, "single_label_classification"),
    "multi label": ("SEQ_CLS", "multi_label_classification", MOODS, "multi_label_classification"),
    "regression": ("SEQ_CLS", None, ("score",), "regression"),
    "regression of two": ("SEQ_CLS", "regression", ("x", "y"), "regression"),
    "tokens": ("TOKEN_CLS", None, ("O", "B-PER", "I-PER"), None),
}


@on_both
@pytest.mark.parametrize("kind", KINDS)
def test_heads_with_labels(kind: str, name: str, tmp_path: Path) -> None:
    task, problem_type, labels, expected = KINDS[kind]
    model = named(name, task, labels)
    model.get_base_model().config.problem_type = problem_type
    card = card_after(model, tmp_path / "first")
    assert card == HeadCard(task, expected, labels)
    other = PeftModel.from_pretrained(build(name, task, num_labels=7), tmp_path / "first")
    assert card_after(other, tmp_path / "second") == card, "its own, not the other backbone's"


@on_both
@pytest.mark.parametrize("task", ["FEATURE_EXTRACTION", "QUESTION_ANS", "MULTIPLE_CHOICE"])
def test_heads_without_labels(task: str, name: str, tmp_path: Path) -> None:
    expected = HeadCard(None if task == "MULTIPLE_CHOICE" else task, pooling="cls")
    assert card_after(adapted(name, task), tmp_path / "first", pooling="cls") == expected
    loaded = PeftModel.from_pretrained(build(name, task), tmp_path / "first")
    assert card_after(loaded, tmp_path / "second") == expected


def test_a_generating_model_has_no_labels(tmp_path: Path) -> None:
    assert card_after(adapted("gpt2", "CAUSAL_LM"), tmp_path) == HeadCard("CAUSAL_LM")


@for_all
def test_every_method_writes_and_keeps_it(method: str, tmp_path: Path) -> None:
    card = card_of(saved(tmp_path / "first", method=method, tokenizer_args=GIVEN))
    assert card == HeadCard("SEQ_CLS", "single_label_classification", MOODS, GIVEN)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path / "first", adapter_name="mood")
    loaded.save_pretrained(tmp_path / "second")
    assert card_of(tmp_path / "second" / "mood") == card


def test_adapters_of_one_model_keep_their_own(tmp_path: Path) -> None:
    saved(tmp_path / "mood")
    model = named(labels=("no", "yes"))
    model.load_adapter(tmp_path / "mood", "mood")
    model.save_pretrained(tmp_path / "both")
    assert card_of(tmp_path / "both").labels == ("no", "yes")
    assert card_of(tmp_path / "both" / "mood").labels == MOODS


def test_an_older_one_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path, tokenizer_args=GIVEN)
    assert card_after(named(labels=("no", "yes")), tmp_path) == HeadCard(
        "SEQ_CLS", "single_label_classification", ("no", "yes")
    )


def without_card(folder: Path) -> Path:
    saved(folder)
    (folder / HEAD_FILE).unlink()
    return folder


def test_a_head_that_nothing_is_known_of_has_plain_labels(tmp_path: Path) -> None:
    backbone = build("bert", num_labels=1)
    backbone.config.problem_type = "regression"
    loaded = PeftModel.from_pretrained(backbone, without_card(tmp_path / "first"))
    assert card_after(loaded, tmp_path / "second") == HeadCard(
        "SEQ_CLS", "single_label_classification", ("LABEL_0", "LABEL_1", "LABEL_2")
    )


def test_a_head_of_one_output_that_nothing_is_known_of(tmp_path: Path) -> None:
    named(labels=("score",)).save_pretrained(tmp_path / "first")
    (tmp_path / "first" / HEAD_FILE).unlink()
    loaded = PeftModel.from_pretrained(build("bert", num_labels=3), tmp_path / "first")
    assert card_after(loaded, tmp_path / "second") == HeadCard("SEQ_CLS", "regression", ("LABEL_0",))


def test_values_put_in_with_a_head_of_another_size(tmp_path: Path) -> None:
    five = adapted("bert", num_labels=5)
    five.save_pretrained(tmp_path / "five")
    model = PeftModel.from_pretrained(build("bert"), saved(tmp_path / "first", tokenizer_args=GIVEN))
    set_peft_model_state_dict(model, load_file(tmp_path / "five" / "adapter_model.safetensors"))
    card = card_after(model, tmp_path / "second")
    assert card.labels == tuple(f"LABEL_{index}" for index in range(5)) and card.tokenizer_args == GIVEN


def test_a_pooler_that_is_trained_along_is_no_head(tmp_path: Path) -> None:
    backbone = build("bert", num_labels=3)
    backbone.config.id2label = dict(enumerate(MOODS))
    model = get_peft_model(backbone, config("bert", "SEQ_CLS", modules_to_save=["pooler", "classifier"]))
    assert card_after(model, tmp_path).labels == MOODS


@pytest.mark.parametrize("keys", [int, str], ids=["int", "str"])
def test_names_may_be_numbered_by_numbers_or_text(keys: Callable[[int], object], tmp_path: Path) -> None:
    model = adapted("bert")
    model.get_base_model().config.id2label = {keys(1): "yes", keys(0): "no"}
    assert card_after(model, tmp_path).labels == ("no", "yes")
    model.get_base_model().config.id2label = {keys(7): "yes", keys(8): "no"}
    assert card_after(model, tmp_path).labels == ("LABEL_0", "LABEL_1")


def test_an_adapter_without_a_head_has_the_backbones_labels(tmp_path: Path) -> None:
    backbone = build("bert", num_labels=3)
    backbone.config.id2label = dict(enumerate(MOODS))
    tuner = AoTModel(backbone, AoTConfig(r=4, task_type="SEQ_CLS"), "default")
    card = tuner.head_card("default", {})
    assert card.labels == MOODS
    tuner.note_head_card("default", card)
    backbone.config.id2label = {0: "no", 1: "yes"}
    assert tuner.head_card("default", {}) == card


def test_a_backbone_without_a_configuration() -> None:
    about = AoTConfig(task_type="SEQ_CLS")
    assert describe_head(nn.Linear(2, 2), about, "default", HeadCard(None)) == HeadCard("SEQ_CLS")


# what the user says


def test_given_options_are_remembered(tmp_path: Path) -> None:
    model = named()
    assert card_after(model, tmp_path / "1", tokenizer_args=GIVEN).tokenizer_args == GIVEN
    assert card_after(model, tmp_path / "2", pooling="cls").tokenizer_args == GIVEN
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path / "2")
    card = card_after(loaded, tmp_path / "3", tokenizer_args={})
    assert card == HeadCard("SEQ_CLS", "single_label_classification", MOODS, {}, "cls")
    assert card_after(loaded, tmp_path / "4") == card


def test_labels_follow_the_backbone_until_the_adapter_is_loaded(tmp_path: Path) -> None:
    model = adapted("bert", num_labels=3)
    assert card_after(model, tmp_path, tokenizer_args=GIVEN).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    model.get_base_model().config.id2label = dict(enumerate(MOODS))
    assert card_after(model, tmp_path) == HeadCard("SEQ_CLS", "single_label_classification", MOODS, GIVEN)


REFUSED: dict[str, dict[str, Any]] = {
    r"expected tokenizer_args to be a dict, got 128; pass such a one": {"tokenizer_args": 128},
    r"expected tokenizer_args that are known, got 'max_lenght'; did you mean 'max_length'\?": {
        "tokenizer_args": {"max_lenght": 128}
    },
    r"expected tokenizer_args that are known, got 'padding'; choose one of max_length, tr": {
        "tokenizer_args": {"padding": True}
    },
    r"expected tokenizer_args\['max_length'\] to be an int of at least 1, got 0; pass such a one": {
        "tokenizer_args": {"max_length": 0}
    },
    r"expected tokenizer_args\['max_length'\] to be an int of at least 1, got True; pass such a one": {
        "tokenizer_args": {"max_length": True}
    },
    r"expected tokenizer_args\['truncation'\] to be a bool or one of longest_first, .*, only_second, got 'yes'; pass": {
        "tokenizer_args": {"truncation": "yes"}
    },
    r"expected tokenizer_args\['add_special_tokens'\] to be a bool, got 1; pass such a one": {
        "tokenizer_args": {"add_special_tokens": 1}
    },
    r"expected pooling to be one of mean, cls, got 'max'; pass one of them": {"pooling": "max"},
    r"expected pooling to be one of mean, cls, got \['cls'\]; pass one of them": {"pooling": ["cls"]},
}


@pytest.mark.parametrize(("message", "options"), REFUSED.items(), ids=range(len(REFUSED)))
def test_wrong_options_are_refused_before_anything_is_written(
    message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = named()
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "adapter", **options)
    with pytest.raises(ValueError, match=message):
        model.push_to_hub("me/adapter", **options)  # the hub is not there: nothing asks it
    assert not (tmp_path / "adapter").exists() and model.base_model.head_cards == {}


# what is remembered


def broken_with(folder: Path, card: HeadCard) -> Path:
    """An adapter that cannot be loaded, with a card."""
    broken(folder, "aot", other_shape)
    write_head_card(card, folder)
    return folder


def test_a_load_that_fails_leaves_the_cards_as_before(tmp_path: Path) -> None:
    bad = broken_with(tmp_path / "bad", HeadCard("SEQ_CLS", "single_label_classification", ("no", "yes")))
    model = PeftModel.from_pretrained(build("bert"), saved(tmp_path / "first", tokenizer_args=GIVEN))
    before = dict(model.base_model.head_cards)
    for name in ("default", "second"):
        with pytest.raises(RuntimeError, match="size mismatch"):
            model.load_adapter(bad, name)
        assert model.base_model.head_cards == before
    assert card_after(model, tmp_path / "second").labels == MOODS


def test_a_card_that_cannot_be_fetched_undoes_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PeftModel.from_pretrained(build("bert"), saved(tmp_path / "first"))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AoTModel, "find_head_card", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.load_adapter(tmp_path / "first", "second")
    assert list(model.peft_config) == list(model.base_model.head_cards) == ["default"]


def test_loading_over_an_adapter_brings_its_card(tmp_path: Path) -> None:
    named(labels=("no", "yes")).save_pretrained(tmp_path / "other")
    model = PeftModel.from_pretrained(build("bert"), saved(tmp_path / "first", tokenizer_args=GIVEN))
    model.load_adapter(tmp_path / "other", "default")
    assert card_after(model, tmp_path / "again").labels == ("no", "yes")
    model.load_adapter(without_card(tmp_path / "bare"), "default")
    assert model.base_model.head_cards == {}
    assert card_after(model, tmp_path / "plain") == HeadCard(
        "SEQ_CLS", "single_label_classification", ("LABEL_0", "LABEL_1", "LABEL_2")
    )


def test_a_deleted_adapter_has_no_card(tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(build("bert"), saved(tmp_path))
    model.load_adapter(tmp_path, "second")
    model.delete_adapter("second")
    assert list(model.base_model.head_cards) == ["default"]


def test_copies_and_pickles_have_cards_of_their_own(tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(build("bert"), saved(tmp_path / "first", tokenizer_args=GIVEN))
    for index, twin in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        assert card_after(twin, tmp_path / f"{index}", tokenizer_args={}).labels == MOODS
        assert twin.base_model.head_cards["default"].tokenizer_args == {}
    assert model.base_model.head_cards["default"].tokenizer_args == GIVEN


def test_a_sum_of_adapters_has_the_card_of_its_head(tmp_path: Path) -> None:
    saved(tmp_path / "mood", tokenizer_args=GIVEN)
    model = named(labels=("no", "yes"))
    model.load_adapter(tmp_path / "mood", "mood")
    model.base_model.add_weighted_adapter(["mood", "default"], [0.5, 0.5], "first")
    model.base_model.add_weighted_adapter(["default", "mood"], [0.5, 0.5], "second")
    model.save_pretrained(tmp_path / "sums", selected_adapters=["first", "second"])
    assert card_of(tmp_path / "sums" / "first") == card_of(tmp_path / "mood")
    assert card_of(tmp_path / "sums" / "second").labels == ("no", "yes")


def test_checkpoints_of_a_trainer(tmp_path: Path) -> None:
    model = named(method="aot")
    batch = inputs("bert", "SEQ_CLS", batch=4)
    data = [{**{key: value[i] for key, value in batch.items()}, "labels": torch.tensor(i % 3)} for i in range(4)]
    settings = {"per_device_train_batch_size": 2, "max_steps": 2, "save_steps": 1, "report_to": "none"}
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, load_best_model_at_end=True, eval_strategy="steps",
        eval_steps=1, **settings,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=data, eval_dataset=data).train()
    expected = HeadCard("SEQ_CLS", "single_label_classification", MOODS)
    assert card_of(tmp_path / "checkpoint-1") == card_of(tmp_path / "checkpoint-2") == expected
    assert card_after(model, tmp_path / "kept") == expected, "after the best one was loaded over the last"


# what is read


VALID: dict[str, Any] = {
    "format_version": 1,
    "task_type": "SEQ_CLS",
    "problem_type": None,
    "num_labels": 2,
    "id2label": {"0": "no", "1": "yes"},
    "tokenizer_args": {"truncation": True},
    "pooling": "mean",
}


def test_read_what_was_written(tmp_path: Path) -> None:
    card = HeadCard("SEQ_CLS", "multi_label_classification", ("schön", "日"), GIVEN, "cls")
    write_head_card(card, tmp_path)
    assert card_of(tmp_path) == card
    (tmp_path / HEAD_FILE).write_text(json.dumps(VALID), encoding="utf-8")
    assert card_of(tmp_path) == HeadCard("SEQ_CLS", None, ("no", "yes"), {"truncation": True})


REPLACEMENTS: list[tuple[dict[str, Any], str]] = [
    ({"format_version": 2}, r"expected format_version 1 in {}, got 2; use a peft_aot that writes it"),
    (
        {"more": 1},
        r"expected the fields format_version, .* in {}, got format_version, .*, more; save the adapter again",
    ),
    ({"task_type": 3}, r"expected task_type to be a str or null in {}, got 3; save"),
    (
        {"problem_type": "ranking"},
        r"expected problem_type to be null or one of single_label_classification, .* in {}, got 'ranking'; save",
    ),
    ({"id2label": ["no", "yes"]}, r"expected id2label to name a label per output in {}, got \['no', 'yes'\]; save"),
    ({"id2label": {"0": "no", "1": 1}}, r"expected id2label to name a label per output in {}, got .*; save"),
    (
        {"id2label": {"1": "no", "2": "yes"}},
        r"expected id2label to number its labels 0 to 1 in {}, got 1, 2; save the adapter again",
    ),
    (
        {"id2label": {"0": "yes", "1": "yes"}},
        r"expected labels that differ, and none empty, in id2label in {}, got .*; set",
    ),
    (
        {"id2label": {"0": "no", "1": ""}},
        r"expected labels that differ, and none empty, in id2label in {}, got .*; set",
    ),
    ({"id2label": {"0": "no", "1": "\ud800"}}, r"expected labels in Unicode in {}, got half of a surrogate pair; save"),
    ({"num_labels": 3}, r"expected num_labels to be 2 as in id2label in {}, got 3; save the adapter again"),
    (
        {"tokenizer_args": {"max_length": "128"}},
        r"expected tokenizer_args\['max_length'\] to be an int of at least 1 in {}, got '128'; save the adapter again",
    ),
    ({"tokenizer_args": None}, r"expected tokenizer_args to be a dict in {}, got None; save the adapter again"),
    ({"tokenizer_args": {"a": 1}}, r"expected tokenizer_args that are known in {}, got 'a'; choose one of"),
    ({"pooling": "max"}, r"expected pooling to be one of mean, cls in {}, got 'max'; save the adapter again"),
]
BROKEN = [
    *[(json.dumps({**VALID, **change}), message) for change, message in REPLACEMENTS],
    ('{"format_version": ', r"expected a head card in {}, got unreadable JSON \(.*\); save the adapter again"),
    ("[1]", r"expected a head card in {}, got \[1\]; save the adapter again"),
    ("{}", r"expected format_version 1 in {}, got None; use"),
    ('{"format_version": 1}', r"expected the fields .* in {}, got format_version; save the adapter again"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=range(len(BROKEN)))
def test_damaged_files_are_refused_with_their_path(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / HEAD_FILE
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message.format(path)):
        read_head_card(path)


def test_text_that_is_none(tmp_path: Path) -> None:
    (tmp_path / HEAD_FILE).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"got unreadable JSON \(.*\); save the adapter again"):
        card_of(tmp_path)


def test_an_adapter_is_loaded_without_a_damaged_card(tmp_path: Path) -> None:
    (saved(tmp_path / "first") / HEAD_FILE).write_text("{}", encoding="utf-8")
    model = adapted("bert")
    with pytest.warns(UserWarning, match=r"expected format_version 1 in .* The adapter is loaded without it\.") as seen:
        model.load_adapter(tmp_path / "first", "second")
    assert seen[-1].filename == __file__
    assert list(model.peft_config) == ["default", "second"] and model.base_model.head_cards == {}


@pytest.mark.parametrize(
    ("card", "got"),
    [
        (HeadCard("SEQ_CLS", None, ("no", "yes")), "SEQ_CLS with 2 labels"),
        (HeadCard("TOKEN_CLS", None, MOODS), "TOKEN_CLS with 3 labels"),
    ],
    ids=["size", "kind"],
)
def test_an_adapter_is_loaded_without_another_ones_card(card: HeadCard, got: str, tmp_path: Path) -> None:
    write_head_card(card, saved(tmp_path))
    with pytest.warns(
        UserWarning,
        match=rf"expected a card for SEQ_CLS with 3 labels in .*, got one for {got}; save the adapter again\. The",
    ):
        model = PeftModel.from_pretrained(build("bert"), tmp_path)
    assert model.base_model.head_cards == {}


def test_a_card_of_another_task_beside_an_adapter_without_labels(tmp_path: Path) -> None:
    adapted("bert", "FEATURE_EXTRACTION").save_pretrained(tmp_path)
    write_head_card(HeadCard("SEQ_CLS", None, MOODS), tmp_path)
    with pytest.warns(UserWarning, match=r"expected a card for FEATURE_EXTRACTION in .*, got one for SEQ_CLS with 3"):
        PeftModel.from_pretrained(build("bert", "FEATURE_EXTRACTION"), tmp_path)


def test_a_card_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)

    def refuse(path: Path) -> HeadCard:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("peft_aot.adapter_head.read_head_card", refuse)
    with pytest.warns(UserWarning, match=r"expected a head.json that can be read, got .*denied.*; make it readable"):
        model = PeftModel.from_pretrained(build("bert"), tmp_path)
    assert model.base_model.head_cards == {}


# what is told


def words(path: Path) -> dict[str, str]:
    return dict(lines(describe(path)))


def test_info(tmp_path: Path) -> None:
    found = words(saved(tmp_path, tokenizer_args=GIVEN))
    assert found["labels"] == "neg, neutral, pos" and "pooling" not in found
    assert found["tokenizer arguments"] == "max_length=64, truncation=only_first, add_special_tokens=False"
    named(labels=tuple("abcdefgh")).save_pretrained(tmp_path)
    assert words(tmp_path)["labels"] == "a, b, c, d, e, f, ... (8)"
    (tmp_path / HEAD_FILE).write_text("{}", encoding="utf-8")
    assert words(tmp_path)[HEAD_FILE].startswith("not usable: expected format_version 1 in")
    (tmp_path / HEAD_FILE).unlink()
    assert not {"labels", "pooling", "tokenizer arguments", HEAD_FILE} & set(words(tmp_path))


def test_info_of_feature_extraction(tmp_path: Path) -> None:
    adapted("bert", "FEATURE_EXTRACTION").save_pretrained(tmp_path, pooling="cls")
    found = words(tmp_path)
    assert found["pooling"] == "cls" and "labels" not in found
