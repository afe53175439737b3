"""That the lookup does no more work than it must: distinct tokens, once per stack, tables before factors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from backbones import build, inputs, output
from models import adapted, config
from peft_aot.aot.reparam import FCRows, KroneckerRows
from peft_aot.tables import Table

REPEATS = torch.tensor([[7, 7, 7, 9], [9, 7, 5, 5]])


class Counter:
    """Wraps a callable and keeps the arguments of every call."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(args)
        return self.function(*args, **kwargs)


def count_rows(model: nn.Module) -> list[Counter]:
    counters = []
    for module in model.modules():
        if isinstance(module, (FCRows, KroneckerRows)):
            module.forward = Counter(module.forward)
            counters.append(module.forward)
    return counters


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reparam", ["fc", "kron"])
def test_rows_are_computed_once_per_distinct_token(training: bool, reparam: str) -> None:
    model = adapted("bert", "FEATURE_EXTRACTION", reparam=reparam).train(training)
    counters = count_rows(model)
    output(model, {"input_ids": REPEATS})
    assert [len(counter.calls) for counter in counters] == [1, 1]
    for counter in counters:
        assert counter.calls[0][0].tolist() == [5, 7, 9]


def test_a_mixed_batch_computes_each_task_s_own_distinct_tokens() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION")
    model.add_adapter("other", config("bert", "FEATURE_EXTRACTION"))
    model.add_adapter("idle", config("bert", "FEATURE_EXTRACTION"))
    model.eval()
    counters = count_rows(model)
    output(model, {"input_ids": REPEATS.repeat(2, 1)}, adapter_names=["other", "default", "__base__", "other"])
    asked = [[call[0].tolist() for call in counter.calls] for counter in counters]
    assert asked == [[[5, 7, 9]], [[5, 7, 9]], []] * 2
    # "default" sees row 1 only: 9, 7, 5; "other" rows 0 and 3: 7, 9 and 9, 7, 5


def test_embeddings_are_looked_up_once_per_stack() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION")
    embedding = model.get_input_embeddings()
    embedding.forward = Counter(embedding.forward)
    output(model, {"input_ids": REPEATS})
    # the model's own, and one for the distinct tokens of all blocks
    assert [call[0].shape for call in embedding.forward.calls] == [(2, 4), (3,)]


def test_a_table_is_read_once_per_call_and_factors_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted("t5", "SEQ_2_SEQ_LM").save_pretrained(tmp_path, fuse=True)
    model = PeftModel.from_pretrained(build("t5", "SEQ_2_SEQ_LM"), tmp_path)
    counters = count_rows(model)
    read: list[list[int]] = []
    original = Table.rows

    def rows(self: Table, ids: torch.Tensor, *layers: slice) -> torch.Tensor:
        read.append(ids.tolist())
        return original(self, ids, *layers)

    monkeypatch.setattr(Table, "rows", rows)
    batch = {"input_ids": REPEATS, "decoder_input_ids": torch.tensor([[0, 8], [0, 6]])}
    with torch.no_grad():
        output(model, batch)
    assert read == [[5, 7, 9], [0, 6, 8]]  # encoder, decoder
    assert not any(counter.calls for counter in counters)


def test_a_table_is_not_used_where_a_gradient_could_flow(tmp_path: Path) -> None:
    adapted("bert").save_pretrained(tmp_path, fuse=True)
    model = PeftModel.from_pretrained(build("bert"), tmp_path)
    counters = count_rows(model)
    output(model, inputs("bert", "SEQ_CLS"))
    assert not any(counter.calls for counter in counters), "frozen factors: nothing to train, whatever the grad mode"
    model.set_adapter("default")  # PEFT makes the active adapter trainable
    output(model, inputs("bert", "SEQ_CLS"))
    assert all(counter.calls for counter in counters)
    with torch.no_grad():
        before = [len(counter.calls) for counter in counters]
        output(model, inputs("bert", "SEQ_CLS"))
        assert [len(counter.calls) for counter in counters] == before


def test_unpadded_hidden_states_are_refused() -> None:
    model = adapted("llama", "FEATURE_EXTRACTION")
    layer = model.base_model.model.layers[0]

    def unpad(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (args[0].flatten(0, 1).unsqueeze(0), *args[1:]), kwargs

    layer.register_forward_pre_hook(unpad, with_kwargs=True)
    with pytest.raises(ValueError, match=r"for token ids of shape \(2, 4\), got \(1, 8, 32\); use an attention"):
        output(model, {"input_ids": REPEATS})


def test_the_work_of_a_batch_does_not_grow_with_the_adapters_that_are_loaded() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION")
    model.add_adapter("other", config("bert", "FEATURE_EXTRACTION"))
    model.eval()
    model.set_table_placement(memory_budget=2**20)
    steps = []
    for idle in (0, 12):
        for number in range(idle):
            model.add_adapter(f"idle{number}", config("bert", "FEATURE_EXTRACTION"))
        model.eval()
        for names in (["default", "other"], None):
            batch = {"adapter_names": names} if names else {}
            with torch.no_grad():
                output(model, {"input_ids": REPEATS}, **batch)  # fills what is filled once
                steps.append(count_steps(lambda batch=batch: output(model, {"input_ids": REPEATS}, **batch)))
    assert steps[:2] == steps[2:] and min(steps) > 1000


def count_steps(call: Any) -> int:
    """Count the bytecodes that this package's own code executes."""
    steps = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal steps
        if "peft_aot" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return steps
