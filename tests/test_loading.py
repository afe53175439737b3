"""Backbones with fresh heads: sizes, what the checkpoint lacks, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from peft_aot.loading import load_backbone, load_tokenizer, load_trained, pick_precision
from peft_aot.task_card import TaskCard, save_card
from tiny_text import write_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("bb"))


def test_heads_have_the_size_and_names_of_the_labels(folder: Path) -> None:
    model = load_backbone(str(folder), "classification", ("x", "y", "z")).model
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert model.num_labels == 3
    regression = load_backbone(str(folder), "regression", ()).model
    assert (regression.num_labels, regression.config.problem_type) == (1, "regression")
    assert model.dtype == torch.float32


def test_a_head_of_another_size_in_the_checkpoint_is_replaced(folder: Path, tmp_path: Path) -> None:
    load_backbone(str(folder), "classification", ("x", "y", "z")).model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), "classification", ("a", "b"))
    assert backbone.model.num_labels == 2 and backbone.new_modules == ("classifier",)
    assert backbone.model.classifier.weight.isfinite().all()


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_a_pooler_that_the_checkpoint_lacks_is_found_beside_the_head(folder: Path, kind: str) -> None:
    backbone = load_backbone(str(folder), kind, ("x", "y"))  # type: ignore[arg-type]
    assert backbone.new_modules == ("bert.pooler", "classifier")


def test_modules_between_backbone_and_head_are_found(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    DistilBertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path), "classification", ("x", "y")).new_modules == ("classifier", "pre_classifier")


def test_a_tokenizer_without_padding_pads_with_the_end_token(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "[SEP]"


@pytest.mark.parametrize("model", ["nobody/no-such-model", "./no/such/folder"])
def test_an_unknown_model_is_refused_with_what_to_pass_instead(model: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"expected a tokenizer in '{model}', got: .*; pass the local path"):
        load_backbone(model, "classification", ("x", "y"))


def test_a_model_that_is_not_there_is_named_with_what_may_have_been_meant(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    beside = folder.with_name(f"{folder.name}x")
    with pytest.raises(FileNotFoundError, match=rf"no such folder; did you mean '{folder.name}'\? Or pass the local"):
        load_backbone(str(beside), "classification", ("x", "y"))
    (tmp_path / "models--someone--small-bert").mkdir()
    monkeypatch.setattr("peft_aot.loading.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"did you mean 'someone/small-bert'\? Or pass the local path"):
        load_backbone("someone/small-bret", "classification", ("x", "y"))
    with pytest.raises(FileNotFoundError) as found:
        load_backbone("someone/small-bert", "classification", ("x", "y"))  # cached in part
    assert "did you mean" not in str(found.value)


def test_a_folder_with_a_tokenizer_but_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    message = (
        r"expected a hub id that can be reached or a local model folder, got '.*' \(.*\); pass the local path of a"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_backbone(str(tmp_path), "classification", ("x", "y"))


def test_a_directory_without_card_or_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a directory, got .*none, which is none; pass a training"):
        load_trained(tmp_path / "none")
    save_card(TaskCard("t", "classification", ("a",), "y", ("p", "q"), (), 8, "model", "lora", "fp32"), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected adapter_config.json in .*, got none; train again"):
        load_trained(tmp_path)


def test_precision_is_what_the_user_says_or_what_the_hardware_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert pick_precision("fp32", cpu) == "fp32"
    assert pick_precision("bf16", cpu) == "bf16"
    for capabilities, expected in (({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert pick_precision("auto", cpu) == expected
