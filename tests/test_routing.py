"""Mixed batches: who is refused, and that every example meets its own rows and its own head."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from backbones import build, inputs, output
from models import adapted, config, heads
from peft_aot.routing import tasks_of

BATCH = inputs("bert", "SEQ_CLS", batch=4)


@pytest.fixture(scope="module")
def model() -> PeftModel:
    model = adapted("bert")
    model.add_adapter("rte", config("bert", "SEQ_CLS", reparam="kron"))
    return model.eval()


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["rte"] * 3, ValueError, "expected as many adapter_names as examples, got 3 names for 4 examples; pass one"),
        (["rte"] * 2, ValueError, "got 2 names for 4 examples"),
        (["rte"], ValueError, "got 1 names for 4 examples"),
        (["rte"] * 5, ValueError, "got 5 names for 4 examples"),
        (["rte"] * 8, ValueError, "got 8 names for 4 examples"),
        ([], ValueError, "expected one adapter name per example, got an empty adapter_names; leave the argument out"),
        (["rtr"] * 4, ValueError, r"expected .*got unknown 'rtr'; did you mean 'rte'\?"),
        (["__bse__"] * 4, ValueError, r"did you mean '__base__'\?"),
        (["rte", "rte", "xyz", "rte"], ValueError, "unknown 'xyz'"),
        ("rte", TypeError, "expected adapter_names to be a list of str, got 'rte'; pass one name per example"),
        (["rte", None, "rte", "rte"], TypeError, "expected adapter_names to be a list of str"),
        ({"rte": 4}, TypeError, "expected adapter_names to be a list of str"),
    ],
)
def test_refused(model: PeftModel, names: object, kind: type[Exception], message: str) -> None:
    before = output(model, BATCH)
    with pytest.raises(kind, match=message):
        model(**BATCH, adapter_names=names)
    assert tasks_of(model.base_model) is None
    assert torch.equal(output(model, BATCH), before)


def test_generation_is_refused_alike() -> None:
    llama = adapted("llama", "CAUSAL_LM")
    batch = inputs("llama", "CAUSAL_LM")
    for count in (1, 2, 6):
        with pytest.raises(ValueError, match=f"got {count} names for 3 examples"):
            llama.generate(**batch, max_new_tokens=1, adapter_names=["default"] * count)


def test_training_mode_is_refused(model: PeftModel) -> None:
    model.train()
    try:
        with pytest.raises(ValueError, match="expected a model in evaluation mode for a mixed batch.*model.eval"):
            model(**BATCH, adapter_names=["rte"] * 4)
    finally:
        model.eval()


def several(tmp_path: Path, name: str, labels: dict[str, int]) -> tuple[PeftModel, dict[str, PeftModel]]:
    """One model with an adapter per entry, and each adapter in a model of its own."""
    alone = {}
    for seed, (adapter, count) in enumerate(labels.items()):
        alone[adapter] = adapted(name, num_labels=count, seed=seed + 20)
        alone[adapter].save_pretrained(tmp_path / adapter)
    first, *others = labels
    model = PeftModel.from_pretrained(build(name), tmp_path / first, adapter_name=first)
    for adapter in others:
        model.load_adapter(tmp_path / adapter, adapter_name=adapter)
    return model, alone


def check(model: PeftModel, alone: dict[str, PeftModel], name: str, names: list[str], seed: int = 3) -> None:
    batch = inputs(name, "SEQ_CLS", batch=len(names), seed=seed)
    with torch.no_grad():
        mixed = output(model, batch, adapter_names=names)
        for i, adapter in enumerate(names):
            one = {key: value[i : i + 1] for key, value in batch.items()}
            expected = output(alone[adapter] if adapter in alone else build(name), one)[0]
            width = len(expected)
            torch.testing.assert_close(mixed[i, :width], expected, atol=1e-5, rtol=1e-5, msg=adapter)
            assert torch.isneginf(mixed[i, width:]).all()
            torch.testing.assert_close(mixed[i].softmax(0)[:width], expected.softmax(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "llama"])
def test_heads_of_different_sizes(name: str, tmp_path: Path) -> None:
    # roberta's head is a composite of two linear layers, on which PEFT's own mixed batches fail
    model, alone = several(tmp_path, name, {"rte": 2, "trec": 6, "regression": 1})
    check(model, alone, name, ["trec", "rte", "__base__", "regression", "rte"])


def test_labels_need_heads_of_one_size(tmp_path: Path) -> None:
    model, _ = several(tmp_path, "bert", {"rte": 2, "trec": 6, "mrpc": 2})
    labels = torch.tensor([0, 1, 1, 0])
    with pytest.raises(ValueError, match="expected heads of one size when labels are passed, .*leave labels out"):
        model(**BATCH, labels=labels, adapter_names=["rte", "trec", "rte", "rte"])
    names = ["rte", "mrpc", "mrpc", "__base__"]
    with torch.no_grad():
        result = model(**BATCH, labels=labels, adapter_names=names)
    torch.testing.assert_close(result.loss, nn.functional.cross_entropy(result.logits, labels))


class TwoLayers(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(32, 8), nn.Linear(8, labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(features).tanh())


def test_heads_of_different_classes(tmp_path: Path) -> None:
    model, alone = several(tmp_path, "bert", {"rte": 2, "own": 2})
    torch.manual_seed(5)
    own = TwoLayers(4).eval()
    for each in (model, alone["own"]):
        adapter = "own" if each is model else "default"
        each.base_model.model.classifier.modules_to_save[adapter] = own
    check(model, alone, "bert", ["own", "rte", "own", "__base__"])


def test_a_head_that_returns_more_than_a_tensor() -> None:
    model = adapted("bert")

    class Pair(nn.Module):
        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return features, features

    model.base_model.model.classifier.modules_to_save["default"] = Pair()
    with pytest.raises(TypeError, match="expected a head that returns one tensor, got tuple from Pair; run the adapt"):
        model(**BATCH, adapter_names=["default", "__base__", "default", "default"])


def test_fifty_tasks_in_one_batch_in_any_order(tmp_path: Path) -> None:
    model, alone = several(tmp_path, "bert", {f"task{i}": i % 5 + 1 for i in range(50)})
    names = [*list(alone), "__base__"]
    check(model, alone, "bert", names)
    batch = inputs("bert", "SEQ_CLS", batch=len(names))
    order = list(range(len(names)))
    random.Random(0).shuffle(order)
    with torch.no_grad():
        straight = output(model, batch, adapter_names=names)
        shuffled = {key: value[order] for key, value in batch.items()}
        found = output(model, shuffled, adapter_names=[names[i] for i in order])
    torch.testing.assert_close(found, straight[order], atol=1e-5, rtol=1e-5)


def test_padding_does_not_matter(model: PeftModel) -> None:
    names = ["rte", "__base__", "default", "rte"]
    padded = {key: nn.functional.pad(value, (0, 5)) for key, value in BATCH.items()}
    with torch.no_grad():
        torch.testing.assert_close(
            output(model, padded, adapter_names=names),
            output(model, BATCH, adapter_names=names),
            atol=1e-5,
            rtol=1e-5,
        )


def test_one_task_for_all_is_the_active_adapter(model: PeftModel) -> None:
    with torch.no_grad():
        expected = output(model, BATCH)
        torch.testing.assert_close(output(model, BATCH, adapter_names=["default"] * 4), expected)
        with model.disable_adapter():
            bare = output(model, BATCH)
        torch.testing.assert_close(output(model, BATCH, adapter_names=["__base__"] * 4), bare)
    assert len(heads(model)) == 2


def test_a_head_of_a_kind_that_only_a_later_adapter_brings_is_routed_too() -> None:
    model = adapted("bert")
    output(model, BATCH, adapter_names=["default"] * 4)  # heads are routed now
    model.add_adapter("pooled", config("bert", "SEQ_CLS", modules_to_save=["pooler"]))
    with torch.no_grad():
        for parameter in model.base_model.model.bert.pooler.modules_to_save["pooled"].parameters():
            parameter.add_(0.5)
    model.eval()
    alone = {}
    for name in ("pooled", "default"):
        model.set_adapter(name)
        alone[name] = output(model, BATCH)
    mixed = output(model, BATCH, adapter_names=["pooled", "default", "pooled", "default"])
    for row, name in enumerate(["pooled", "default", "pooled", "default"]):
        torch.testing.assert_close(mixed[row], alone[name][row])
    assert not torch.allclose(alone["pooled"], alone["default"], atol=1e-2)
