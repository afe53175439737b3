"""Every operation of an adapter on every tiny backbone and task: what PEFT users rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

import reference
from backbones import DECODERS, ENCODER_DECODERS, build, cases, inputs, output
from models import adapted, config, dense_tables
from peft_aot.backbone import find_blocks

CASES = cases()
GENERATING = [(name, "CAUSAL_LM") for name in DECODERS] + [(name, "SEQ_2_SEQ_LM") for name in ENCODER_DECODERS]
# one of each kind of architecture, where an operation does not depend on the task
SOME = [("bert", "SEQ_CLS"), ("electra", "TOKEN_CLS"), ("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")]
for_all = pytest.mark.parametrize(("name", "task"), CASES)
for_some = pytest.mark.parametrize(("name", "task"), SOME)
for_generating = pytest.mark.parametrize(("name", "task"), GENERATING)


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
def test_zero_adapter_and_disabled_adapter_are_the_backbone(name: str, task: str) -> None:
    batch = inputs(name, task)
    zero = get_peft_model(build(name, task), config(name, task, init_weights=True)).eval()
    model = adapted(name, task)
    with torch.no_grad():  # attention kernels differ with what requires a gradient, and PEFT freezes the backbone
        bare = output(build(name, task), batch)
        assert torch.equal(output(zero, batch), bare)
        with model.disable_adapter():
            assert torch.equal(output(model, batch), bare)
        assert not torch.equal(output(model, batch), bare)


@for_all
def test_unload_gives_the_clean_backbone_back(name: str, task: str) -> None:
    bare = build(name, task)
    unloaded = adapted(name, task).unload()
    assert str(unloaded) == str(bare)
    assert all(
        torch.equal(a, b) for a, b in zip(unloaded.state_dict().values(), bare.state_dict().values(), strict=True)
    )
    hooks = [h for m in unloaded.modules() for d in (m._forward_hooks, m._forward_pre_hooks) for h in d.values()]
    assert not [h for h in hooks if getattr(h, "__module__", "").startswith("peft_aot")]
    batch = inputs(name, task)
    with torch.no_grad():
        assert torch.equal(output(unloaded, batch), output(bare, batch))


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
    torch.testing.assert_close(output(plain, batch), expected, atol=1e-6, rtol=1e-5)


@for_all
def test_mixed_batch_equals_each_task_alone(name: str, task: str, tmp_path: Path) -> None:
    labels = 5 if task in ("SEQ_CLS", "TOKEN_CLS") else 2
    first, second = (
        adapted(name, task),
        adapted(name, task, num_labels=labels, seed=4, reparam="kron", fuse_on_save=True, table_dtype="float32"),
    )
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    model = PeftModel.from_pretrained(build(name, task), tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    batch = inputs(name, task, batch=4)
    names = ["second", "__base__", "first", "second"]
    with torch.no_grad():
        mixed = output(model, batch, adapter_names=names)
        for i, adapter in enumerate(names):
            alone = {key: value[i : i + 1] for key, value in batch.items()}
            source = {"first": first, "second": second, "__base__": build(name, task)}[adapter]
            expected = output(source, alone)[0]
            width = expected.shape[-1]
            torch.testing.assert_close(mixed[i][..., :width], expected, atol=1e-5, rtol=1e-5)
            assert torch.isneginf(mixed[i][..., width:]).all()


@for_all
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(name: str, task: str, reentrant: bool) -> None:
    batch, other = inputs(name, task), inputs(name, task, seed=9)
    kwargs = {"use_cache": False} if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else {}

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = without_dropout(get_peft_model(build(name, task).double(), config(name, task, init_weights=True)))
        torch.manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter) * 0.3
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.train()
        result = output(model, batch, **kwargs)
        with torch.no_grad():  # another forward before the backward must not matter
            output(model, other, **kwargs)
        result.square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain = gradients(checkpointing=False)
    assert all(g is not None and g.abs().sum() > 0 for n, g in plain.items() if "aot_rows" in n)
    if not build(name, task).supports_gradient_checkpointing:
        pytest.skip(f"transformers has no gradient checkpointing for {name}")
    found = gradients(checkpointing=True)
    for key, expected in plain.items():
        torch.testing.assert_close(found[key], expected, atol=1e-9, rtol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """Set every dropout to zero, so that two runs in training mode can be compared."""
    for module in model.modules():
        for attribute in ("p", "dropout", "dropout_rate", "attention_dropout", "dropout_prob"):
            if isinstance(module.__dict__.get(attribute), float):
                setattr(module, attribute, 0.0)
    return model


@for_generating
def test_generation_with_cache_equals_without(name: str, task: str) -> None:
    model = adapted(name, task)
    batch = inputs(name, task)
    batch.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "no_repeat_ngram_size": 1}
    cached = model.generate(**batch, **settings, use_cache=True)
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))
    assert not torch.equal(cached, build(name, task).generate(**batch, **settings))
    torch.manual_seed(0)
    sampled = model.generate(**batch, max_new_tokens=5, do_sample=True)
    assert sampled.shape[0] == 3


@for_generating
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {}])
def test_mixed_generation_equals_each_task_alone(name: str, task: str, settings: dict[str, int]) -> None:
    model = adapted(name, task)
    torch.manual_seed(11)
    model.add_adapter("second", config(name, task, reparam="kron"))
    model.eval()
    batch = inputs(name, task)
    batch.pop("decoder_input_ids", None)
    names = ["second", "__base__", "default"]
    settings = {**settings, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "no_repeat_ngram_size": 1}
    mixed = model.generate(**batch, **settings, adapter_names=names)
    each = settings.get("num_return_sequences", 1)
    for i, adapter in enumerate(names):
        alone = {key: value[i : i + 1] for key, value in batch.items()}
        if adapter == "__base__":
            with model.disable_adapter():
                expected = model.generate(**alone, **settings)
        else:
            model.set_adapter(adapter)
            expected = model.generate(**alone, **settings)
        assert torch.equal(mixed[i * each : (i + 1) * each], expected), adapter


@for_some
def test_half_precision(name: str, task: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        backbone = build(name, task).to(dtype)
        torch.manual_seed(0)
        model = get_peft_model(backbone, config(name, task)).eval()
        batch = inputs(name, task)
        batch["input_ids"][0, -1] = 0  # padding, whose embedding is zero in fresh models
        found = output(model, batch)
        assert found.dtype == dtype
        full = output(model.float(), batch)
        torch.testing.assert_close(found.float(), full, atol=0.1 * float(full.abs().max()), rtol=0)
        assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "aot_rows" in n)
        kept = get_peft_model(build(name, task).to(dtype), config(name, task), autocast_adapter_dtype=False)
        assert all(p.dtype == dtype for n, p in kept.named_parameters() if "aot_rows" in n)
        assert output(kept.eval(), inputs(name, task)).dtype == dtype


@for_some
def test_low_cpu_mem_usage(name: str, task: str, tmp_path: Path) -> None:
    model = adapted(name, task)
    model.save_pretrained(tmp_path)
    expected = output(model, inputs(name, task))
    loaded = PeftModel.from_pretrained(build(name, task), tmp_path, low_cpu_mem_usage=True)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    torch.testing.assert_close(output(loaded, inputs(name, task)), expected)
    loaded.load_adapter(tmp_path, adapter_name="other", low_cpu_mem_usage=True)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    loaded.set_adapter("other")
    torch.testing.assert_close(output(loaded, inputs(name, task)), expected)


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


@pytest.mark.parametrize(("name", "task"), [("bert", "SEQ_CLS"), ("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
def test_compiles_without_graph_breaks(name: str, task: str) -> None:
    model = adapted(name, task)
    batch = inputs(name, task)
    kwargs = {"use_cache": False} if task != "SEQ_CLS" else {}
    expected = output(model, batch, **kwargs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = output(compiled, batch, **kwargs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "aot_rows" in n)
