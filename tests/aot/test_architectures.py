"""AoT on every tiny backbone and task: the naive loop, fused tables, and ids of `inputs_embeds`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

import reference
from backbones import build, cases, inputs, output
from models import adapted, dense_tables
from peft_aot.backbone import find_blocks

SOME = [("bert", "SEQ_CLS"), ("electra", "TOKEN_CLS"), ("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")]
for_all = pytest.mark.parametrize(("name", "task"), cases())
for_some = pytest.mark.parametrize(("name", "task"), SOME)


def naive_output(name: str, task: str, model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the bare backbone returns when rows are added to each block's input position by position."""
    tables = dense_tables(model)
    backbone = build(name, task)
    stored = {key.removeprefix("base_model.model."): value for key, value in model.state_dict().items()}
    clean = {}
    for key, value in stored.items():
        if ".aot_rows." not in key and "original_module" not in key:
            clean[key.replace(".base_layer", "").replace(".modules_to_save.default", "")] = value
    backbone.load_state_dict(clean)
    blocks = find_blocks(backbone)
    ids_of = {block.stack: None for block in blocks}
    for stack in ids_of:

        def see(module, args, kwargs, stack=stack):
            ids_of[stack] = args[0] if args else kwargs["input"]

        from peft_aot.backbone import input_embedding

        input_embedding(stack).register_forward_pre_hook(see, with_kwargs=True)
    for block in blocks:

        def add(module, args, kwargs, block=block):
            hidden = args[0] if args else kwargs["hidden_states"]
            rows = reference.add_rows(hidden, ids_of[block.stack], [tables[block.name]] * len(hidden))
            return ((rows, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": rows})

        backbone.get_submodule(block.name).register_forward_pre_hook(add, with_kwargs=True)
    return output(backbone, batch)


@for_all
@pytest.mark.parametrize("reparam", ["fc", "kron"])
def test_equals_the_naive_loop(name: str, task: str, reparam: str) -> None:
    model = adapted(name, task, reparam=reparam)
    batch = inputs(name, task)
    expected = naive_output(name, task, model, batch)
    found = output(model, batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    bare = output(build(name, task), batch)
    assert not torch.allclose(found, bare, atol=1e-3), "the rows must matter, or this test could not fail"


@for_all
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("float16", 2e-3)])
def test_saved_and_loaded_fused(name: str, task: str, dtype: str, atol: float, tmp_path: Path) -> None:
    model = adapted(name, task, fuse_on_save=True, table_dtype=dtype)
    # rows of the size that training makes: P = O(0.1); random ones here are ten times larger
    for parameter in [p for n, p in model.named_parameters() if "aot_rows" in n and n.endswith(("w2", "b2"))]:
        parameter.data *= 0.1
    batch = inputs(name, task)
    expected = output(model, batch)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(name, task), tmp_path)
    assert list(loaded.base_model.lookup.tables) == ["default"]
    with torch.no_grad():
        found = output(loaded, batch)
    assert (found - expected).abs().max() <= atol
    plain = PeftModel.from_pretrained(build(name, task), tmp_path, use_table=False)
    assert not plain.base_model.lookup.tables
    torch.testing.assert_close(output(plain, batch), expected, atol=1e-5, rtol=1e-5)


@for_some
def test_inputs_embeds_of_the_own_embedding_layer(name: str, task: str) -> None:
    model = adapted(name, task)
    batch = inputs(name, task)
    expected = output(model, batch)
    ids = batch.pop("input_ids")
    embed = model.get_input_embeddings()
    known = embed(ids)
    embed(ids.flip(0))  # a later call of the embedding must not matter
    found = output(model, {**batch, "inputs_embeds": known})
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match=r"pass input_ids, or state the ids with `with peft_aot.token_ids"):
        output(model, {**batch, "inputs_embeds": known.clone()})
    import peft_aot

    with peft_aot.token_ids(ids):
        stated = output(model, {**batch, "inputs_embeds": known.clone()})
    torch.testing.assert_close(stated, expected, atol=1e-6, rtol=1e-6)
