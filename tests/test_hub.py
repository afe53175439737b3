"""Pushing to a hub and loading from it, against a small server of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from peft import AutoPeftModelForSequenceClassification, PeftConfig, PeftModel

import peft_aot
from backbones import build, inputs, output
from hub_server import TOKEN, Hub, serve
from models import METHODS, adapted, config
from peft_aot.head_card import HEAD_FILE, HeadCard
from peft_aot.tables import TABLE_FILE

BATCH = inputs("bert", "SEQ_CLS")


@pytest.fixture
def hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    lfs = getattr(request, "param", True)
    with serve(lfs) as running:
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": running.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": lfs,  # large files go over HTTP; small ones the way of any client
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no_token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def pushed(model: PeftModel, **kwargs: object) -> torch.Tensor:
    model.push_to_hub("me/rte", **kwargs)
    with torch.no_grad():
        return output(model, BATCH)


def load(**kwargs: object) -> PeftModel:
    return PeftModel.from_pretrained(build("bert"), "me/rte", **kwargs)


def check(model: PeftModel, expected: torch.Tensor, table: bool, name: str = "default") -> None:
    assert (name in model.base_model.lookup.tables) is table
    with torch.no_grad():
        torch.testing.assert_close(output(model, BATCH), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hub", [True, False], ids=["lfs", "regular"], indirect=True)
def test_push_with_table_and_load(hub: Hub) -> None:
    commit = adapted("bert", fuse_on_save=True, table_dtype="float32").push_to_hub("me/rte")
    tree = hub.repositories["me/rte"].tree()
    assert {"adapter_config.json", "adapter_model.safetensors", TABLE_FILE, "README.md"} <= set(tree)
    assert commit == f"{hub.endpoint}/me/rte/commit/{commit.oid}"
    assert hub.repositories["me/rte"].messages[-1].startswith("Upload AoT P-Tuning adapter")
    assert PeftConfig.from_pretrained("me/rte").peft_type == "AOT"
    with torch.no_grad():
        expected = output(adapted("bert"), BATCH)
    check(load(), expected, table=True)
    check(load(use_table=False), expected, table=False)
    uploads = [path for method, path in hub.requests if method == "PUT"]
    assert bool(uploads) is hub.lfs


def test_push_without_table_removes_an_older_one(hub: Hub) -> None:
    expected = pushed(adapted("bert", fuse_on_save=True))
    assert TABLE_FILE in hub.repositories["me/rte"].tree()
    other = adapted("bert", seed=9, fuse_on_save=True)
    expected = pushed(other, fuse=False)
    assert TABLE_FILE not in hub.repositories["me/rte"].tree()
    check(load(), expected, table=False)
    assert "No fused table" in hub.repositories["me/rte"].tree()["README.md"].decode()


def test_what_outputs_mean_goes_along(hub: Hub) -> None:
    model = adapted("bert", num_labels=3)
    model.get_base_model().config.id2label = {0: "neg", 1: "neutral", 2: "pos"}
    pushed(model, tokenizer_args={"max_length": 16})
    tree = hub.repositories["me/rte"].tree()
    assert json.loads(tree[HEAD_FILE])["id2label"] == {"0": "neg", "1": "neutral", "2": "pos"}
    card = HeadCard("SEQ_CLS", "single_label_classification", ("neg", "neutral", "pos"), {"max_length": 16})
    assert load().base_model.head_cards == {"default": card}
    pushed(load())
    assert hub.repositories["me/rte"].tree()[HEAD_FILE] == tree[HEAD_FILE], "on a backbone with two labels"


def test_options_are_refused_before_there_is_a_repository(hub: Hub) -> None:
    with pytest.raises(ValueError, match="expected pooling to be one of mean, cls, got 'max'"):
        pushed(adapted("bert"), pooling="max")
    assert hub.repositories == {} and hub.requests == []


def test_load_adapter_beside_another(hub: Hub) -> None:
    expected = pushed(adapted("bert", fuse_on_save=True, table_dtype="float32"))
    model = adapted("bert", seed=5)
    model.load_adapter("me/rte", adapter_name="rte")
    model.set_adapter("rte")
    check(model.eval(), expected, table=True, name="rte")
    with torch.no_grad():
        mixed = output(model, BATCH, adapter_names=["rte", "default", "__base__"])
    torch.testing.assert_close(mixed[0], expected[0], atol=1e-5, rtol=1e-5)


def test_named_adapters_stand_in_folders(hub: Hub) -> None:
    model = adapted("bert", fuse_on_save=True, table_dtype="float32")
    model.add_adapter("boolq", config("bert", "SEQ_CLS", fuse_on_save=True, table_dtype="float32"))
    model.eval().set_adapter("boolq")
    expected = pushed(model, selected_adapters=["boolq"])
    tree = hub.repositories["me/rte"].tree()
    assert f"boolq/{TABLE_FILE}" in tree and TABLE_FILE not in tree and "adapter_config.json" not in tree
    assert 'adapter, subfolder="boolq", adapter_name="boolq"' in tree["README.md"].decode()
    check(load(subfolder="boolq"), expected, table=True)
    check(load(subfolder="boolq", adapter_name="b"), expected, table=True, name="b")


def test_revisions(hub: Hub) -> None:
    first = pushed(adapted("bert", fuse_on_save=True, table_dtype="float32"))
    second = pushed(
        adapted("bert", seed=9),
        revision="next",
        commit_message="another seed",
        commit_description="seed 9",
    )
    repository = hub.repositories["me/rte"]
    assert repository.messages[-1].startswith("another seed") and "seed 9" in repository.messages[-1]
    assert TABLE_FILE in repository.tree() and TABLE_FILE not in repository.tree("next")
    check(load(), first, table=True)
    check(load(revision="next"), second, table=False)
    check(load(revision=repository.heads["main"]), first, table=True)


def test_private_repositories_need_the_token(hub: Hub, anonymous: None) -> None:
    with pytest.raises(HfHubHTTPError, match="401"):
        adapted("bert").push_to_hub("me/rte")
    expected = pushed(adapted("bert", fuse_on_save=True, table_dtype="float32"), private=True, token=TOKEN)
    with pytest.raises(ValueError, match=r"Can't find 'adapter_config.json' at 'me/rte'"):
        load()
    check(load(token=TOKEN), expected, table=True)


def test_unknown_repository(hub: Hub) -> None:
    with pytest.raises(ValueError, match="Can't find 'adapter_config.json' at 'me/nothing'"):
        PeftModel.from_pretrained(build("bert"), "me/nothing")


def test_the_card_says_what_it_is_and_how_good(hub: Hub, tmp_path: Path) -> None:
    adapted("bert", fuse_on_save=True).save_pretrained(tmp_path)
    task = {"task": "rte", "scores": {"accuracy": 0.7148}}
    (tmp_path / "task.json").write_text(json.dumps(task), encoding="utf-8")
    model = PeftModel.from_pretrained(build("bert"), tmp_path)
    pushed(model, tags=["entailment"])
    tree = hub.repositories["me/rte"].tree()
    text = tree["README.md"].decode()
    for part in (
        "AoT P-Tuning adapter",
        "FC reparametrization, rank 4, 2 blocks, vocabulary 120",
        "fused lookup table (float16) is included",
        "Task: rte.",
        "| accuracy | 0.7148 |",
        "import peft_aot",
        "AutoModelForSequenceClassification.from_pretrained",
        "- entailment",
        "- aot-p-tuning",
    ):
        assert part in text, part
    assert json.loads(tree["task.json"]) == task
    edited = text + "\nTrained on a train.\n"
    repository = hub.repositories["me/rte"]
    repository.commit("main", {**tree, "README.md": edited.encode()}, "edit")
    pushed(load())
    again = repository.tree()["README.md"].decode()
    assert "Trained on a train." in again and again.count("## AoT P-Tuning adapter") == 1
    assert "| accuracy | 0.7148 |" in again, "its task.json came from the hub with it"


def test_scores_of_other_factors_are_not_claimed(hub: Hub, tmp_path: Path) -> None:
    adapted("bert").save_pretrained(tmp_path)
    (tmp_path / "task.json").write_text('{"task": "rte", "scores": {"accuracy": 0.7}}', encoding="utf-8")
    model = PeftModel.from_pretrained(build("bert"), tmp_path, is_trainable=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    pushed(model)
    tree = hub.repositories["me/rte"].tree()
    assert "task.json" not in tree and "accuracy" not in tree["README.md"].decode()


def test_fusing_what_was_pushed_without_its_table(hub: Hub, tmp_path: Path) -> None:
    expected = pushed(adapted("bert"))
    local = huggingface_hub.snapshot_download("me/rte", local_dir=tmp_path / "rte")
    report = peft_aot.fuse(local, build("bert"), dtype="float32", progress=False)
    assert report.max_row_difference <= 1e-5
    check(PeftModel.from_pretrained(build("bert"), local), expected, table=True)
    assert "lookup table (float32) is included" in Path(local, "README.md").read_text(encoding="utf-8")


def test_auto_model_finds_backbone_and_table(hub: Hub, tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path / "backbone")
    backbone = build("bert").from_pretrained(tmp_path / "backbone")
    torch.manual_seed(3)
    model = peft_aot_model(backbone)
    expected = pushed(model)
    found = AutoPeftModelForSequenceClassification.from_pretrained("me/rte")
    check(found, expected, table=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_pushed_and_loaded(method: str, hub: Hub) -> None:
    model = adapted("bert", method=method)
    with torch.no_grad():
        expected = pushed(model)
        torch.testing.assert_close(output(load(), BATCH), expected)
    repository = hub.repositories["me/rte"]
    assert repository.messages[-1].startswith(f"Upload {model.base_model.method} adapter")
    assert f"## {model.base_model.method} adapter" in repository.tree()["README.md"].decode()


def test_weights_of_the_other_format_go(hub: Hub) -> None:
    # PEFT reads adapter_model.safetensors first, whichever file is newer
    pushed(adapted("bert"))
    expected = pushed(adapted("bert", seed=9), safe_serialization=False)
    tree = hub.repositories["me/rte"].tree()
    assert "adapter_model.bin" in tree and "adapter_model.safetensors" not in tree
    check(load(), expected, table=False)


def peft_aot_model(backbone: torch.nn.Module) -> PeftModel:
    from peft import get_peft_model

    return get_peft_model(backbone, config("bert", "SEQ_CLS", fuse_on_save=True, table_dtype="float32")).eval()
