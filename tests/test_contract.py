"""Every operation of an adapter, by every method on every tiny backbone and task: what PEFT users rely on."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from backbones import DECODERS, ENCODER_DECODERS, build, cases, inputs, output
from models import METHODS, adapted, applies, config, is_adapter

GENERATING = [(name, "CAUSAL_LM") for name in DECODERS] + [(name, "SEQ_2_SEQ_LM") for name in ENCODER_DECODERS]
# one of each kind of architecture, where an operation does not depend on the task
SOME = [
    ("bert", "SEQ_CLS"),
    ("electra", "TOKEN_CLS"),
    ("gpt2", "CAUSAL_LM"),
    ("llama", "CAUSAL_LM"),
    ("t5", "SEQ_2_SEQ_LM"),
    ("bart", "SEQ_2_SEQ_LM"),
]
COMPILED = [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")]


def over(pairs: list[tuple[str, str]], methods: list[str] | None = None) -> pytest.MarkDecorator:
    """Every (method, backbone, task) of some pairs where the method applies."""
    return pytest.mark.parametrize(
        ("method", "name", "task"),
        [(m, name, task) for m in methods or METHODS for name, task in pairs if applies(m, name)],
    )


MIXING = [m for m in METHODS if METHODS[m].mixes]
WRITTEN = [m for m in METHODS if METHODS[m].written]
# relative positions, which examples share, run through modules that these methods adapt
UNMIXED = {("bitfit", "deberta_v2")}


@over(cases())
def test_zero_adapter_and_disabled_adapter_are_the_backbone(method: str, name: str, task: str) -> None:
    batch = inputs(name, task)
    zero = get_peft_model(build(name, task), config(name, task, method, init_weights=True)).eval()
    model = adapted(name, task, method=method)
    with torch.no_grad():  # attention kernels differ with what requires a gradient, and PEFT freezes the backbone
        bare = output(build(name, task), batch)
        assert torch.equal(output(zero, batch), bare)
        changed = output(model, batch)
        with model.disable_adapter():
            assert torch.equal(output(model, batch), bare)
        assert torch.equal(output(model, batch), changed)
        assert not torch.allclose(changed, bare, atol=1e-3)


@over(cases())
def test_unload_gives_the_clean_backbone_back(method: str, name: str, task: str) -> None:
    bare = build(name, task)
    model = adapted(name, task, method=method)
    if METHODS[method].mixes and (method, name) not in UNMIXED:
        output(model, inputs(name, task), adapter_names=["default", "__base__", "default"])  # leaves hooks to remove
    unloaded = model.unload()
    assert str(unloaded) == str(bare)
    assert all(
        torch.equal(a, b) for a, b in zip(unloaded.state_dict().values(), bare.state_dict().values(), strict=True)
    )
    assert not hooks(unloaded)
    batch = inputs(name, task)
    with torch.no_grad():
        assert torch.equal(output(unloaded, batch), output(bare, batch))


def hooks(model: torch.nn.Module) -> list[object]:
    """Hooks of this package, anywhere in a model."""
    found = [h for m in model.modules() for d in (m._forward_hooks, m._forward_pre_hooks) for h in d.values()]
    return [hook for hook in found if getattr(hook, "__module__", "").startswith("peft_aot")]


@over(cases())
def test_saved_and_loaded(method: str, name: str, task: str, tmp_path: Path) -> None:
    model = adapted(name, task, method=method)
    batch = inputs(name, task)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(name, task), tmp_path)
    assert not [n for n, p in loaded.named_parameters() if p.requires_grad]
    with torch.no_grad():
        torch.testing.assert_close(output(loaded, batch), output(model, batch), atol=1e-6, rtol=1e-5)
    if METHODS[method].written:
        assert not hooks(loaded), "a frozen adapter must leave nothing in the forward path"


@over(cases(), MIXING)
def test_mixed_batch_equals_each_task_alone(method: str, name: str, task: str, tmp_path: Path) -> None:
    labels = 5 if task in ("SEQ_CLS", "TOKEN_CLS") else 2
    first, second = (
        adapted(name, task, method=method),
        adapted(name, task, num_labels=labels, seed=4, method=method, **METHODS[method].other),
    )
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    model = PeftModel.from_pretrained(build(name, task), tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    batch = inputs(name, task, batch=4)
    names = ["second", "__base__", "first", "second"]
    if (method, name) in UNMIXED:
        with pytest.raises(ValueError, match="what examples share cannot differ between tasks.*exclude_modules"):
            output(model, batch, adapter_names=names)
        return
    with torch.no_grad():
        mixed = output(model, batch, adapter_names=names)
        for i, adapter in enumerate(names):
            alone = {key: value[i : i + 1] for key, value in batch.items()}
            source = {"first": first, "second": second, "__base__": build(name, task)}[adapter]
            expected = output(source, alone)[0]
            width = expected.shape[-1]
            torch.testing.assert_close(mixed[i][..., :width], expected, atol=1e-5, rtol=1e-5)
            assert torch.isneginf(mixed[i][..., width:]).all()
        torch.testing.assert_close(output(model, batch), output(first, batch), atol=1e-6, rtol=1e-5)


@over(SOME)
def test_reentrant_gradient_checkpointing_gives_the_same_gradients(method: str, name: str, task: str) -> None:
    check_checkpointing(method, name, task, reentrant=True)


@over(cases())
def test_gradient_checkpointing_gives_the_same_gradients(method: str, name: str, task: str) -> None:
    check_checkpointing(method, name, task, reentrant=False)


def check_checkpointing(method: str, name: str, task: str, reentrant: bool) -> None:
    batch, other = inputs(name, task), inputs(name, task, seed=9)
    kwargs = {"use_cache": False} if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else {}

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = get_peft_model(build(name, task).double(), config(name, task, method, init_weights=True))
        without_dropout(model)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.train()
        result = output(model, batch, **kwargs)
        with torch.no_grad():  # another forward before the backward must not matter
            output(model, other, **kwargs)
        result.square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain = gradients(checkpointing=False)
    reached = [g for n, g in plain.items() if is_adapter(n) and g is not None]  # an unused pooler has none
    assert sum(bool(g.abs().sum() > 0) for g in reached) > len(reached) // 2 > 0
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


@over(GENERATING)
def test_generation_with_cache_equals_without(method: str, name: str, task: str) -> None:
    model = adapted(name, task, method=method)
    batch = inputs(name, task)
    batch.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "no_repeat_ngram_size": 1}
    cached = model.generate(**batch, **settings, use_cache=True)
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))
    assert not torch.equal(cached, build(name, task).generate(**batch, **settings))
    torch.manual_seed(0)
    sampled = model.generate(**batch, max_new_tokens=5, do_sample=True)
    assert sampled.shape[0] == 3


@over(GENERATING, MIXING)
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {}])
def test_mixed_generation_equals_each_task_alone(method: str, name: str, task: str, settings: dict[str, int]) -> None:
    model = adapted(name, task, method=method)
    torch.manual_seed(11)
    model.add_adapter("second", config(name, task, method, **METHODS[method].other))
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


@over(SOME)
def test_half_precision(method: str, name: str, task: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        backbone = build(name, task).to(dtype)
        torch.manual_seed(0)
        model = get_peft_model(backbone, config(name, task, method)).eval()
        batch = inputs(name, task)
        batch["input_ids"][0, -1] = 0  # padding, whose embedding is zero in fresh models
        found = output(model, batch)
        assert found.dtype == dtype
        full = output(model.float(), batch)
        torch.testing.assert_close(found.float(), full, atol=0.1 * float(full.abs().max()), rtol=0)
        assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if is_adapter(n))
        kept = get_peft_model(build(name, task).to(dtype), config(name, task, method), autocast_adapter_dtype=False)
        assert all(p.dtype == dtype for n, p in kept.named_parameters() if is_adapter(n))
        assert output(kept.eval(), inputs(name, task)).dtype == dtype


@over(SOME)
def test_autocast_trains(method: str, name: str, task: str) -> None:
    model = get_peft_model(build(name, task), config(name, task, method)).train()
    kwargs = {"use_cache": False} if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output(model, inputs(name, task), **kwargs).float().square().sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained.values()), list(trained)


@over(SOME)
def test_low_cpu_mem_usage(method: str, name: str, task: str, tmp_path: Path) -> None:
    model = adapted(name, task, method=method)
    model.save_pretrained(tmp_path)
    expected = output(model, inputs(name, task))
    loaded = PeftModel.from_pretrained(build(name, task), tmp_path, low_cpu_mem_usage=True)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    torch.testing.assert_close(output(loaded, inputs(name, task)), expected)
    loaded.load_adapter(tmp_path, adapter_name="other", low_cpu_mem_usage=True)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    loaded.set_adapter("other")
    torch.testing.assert_close(output(loaded, inputs(name, task)), expected)


@over(SOME)
def test_copies_and_pickles_are_independent(method: str, name: str, task: str) -> None:
    model = adapted(name, task, method=method)
    batch = inputs(name, task)
    expected = output(model, batch)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        for n, p in model.named_parameters():
            if is_adapter(n):
                p.zero_()
    assert not torch.allclose(output(model, batch), expected, atol=1e-3)
    for twin in twins:
        torch.testing.assert_close(output(twin, batch), expected)
        with twin.disable_adapter(), torch.no_grad():
            torch.testing.assert_close(output(twin, batch), output(build(name, task), batch))


@over(SOME)
def test_switching_and_deleting(method: str, name: str, task: str) -> None:
    model = adapted(name, task, method=method)
    batch = inputs(name, task)
    torch.manual_seed(8)
    model.add_adapter("other", config(name, task, method))
    model.eval()
    first = output(model, batch)
    model.set_adapter("other")
    second = output(model, batch)
    assert not torch.allclose(first, second, atol=1e-3)
    model.set_adapter("default")
    torch.testing.assert_close(output(model, batch), first)
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    torch.testing.assert_close(output(model, batch), second)
    assert not [n for n, _ in model.named_parameters() if n.endswith(".default") or ".default." in n]


@over(SOME)
def test_status_counts_what_is_trained(method: str, name: str, task: str) -> None:
    model = get_peft_model(build(name, task), config(name, task, method))
    status = model.get_model_status()
    assert status.peft_types == {"default": model.peft_config["default"].peft_type.value}
    assert status.enabled is True and status.active_adapters == ["default"] and status.merged_adapters == []
    assert status.requires_grad == {"default": True}
    trainable, total = model.get_nb_trainable_parameters()
    assert trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    assert total == sum(p.numel() for p in model.parameters())
    assert not [n for n, p in model.named_parameters() if p.requires_grad and not is_adapter(n) and "save" not in n]


@over(SOME)
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merging(method: str, name: str, task: str, safe_merge: bool) -> None:
    model = adapted(name, task, method=method)
    batch = inputs(name, task)
    expected = output(model, batch)
    if not METHODS[method].written:
        with pytest.raises(ValueError, match="expected an adapter that can be folded into weights"):
            model.merge_and_unload(safe_merge=safe_merge)
        torch.testing.assert_close(output(model, batch), expected)
        return
    bare = build(name, task)
    model.merge_adapter(safe_merge=safe_merge)
    torch.testing.assert_close(output(model, batch), expected, atol=1e-6, rtol=1e-5)
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(output(model, batch), output(bare, batch))
    model.unmerge_adapter()
    torch.testing.assert_close(output(model, batch), expected, atol=1e-6, rtol=1e-5)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert type(merged) is type(bare) and str(merged) == str(bare) and not hooks(merged)
    torch.testing.assert_close(output(merged, batch), expected, atol=1e-6, rtol=1e-5)


@over(COMPILED)
def test_compiles_without_graph_breaks(method: str, name: str, task: str) -> None:
    model = adapted(name, task, method=method)
    batch = inputs(name, task)
    kwargs = {"use_cache": False} if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else {}
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    twin = copy.deepcopy(model)
    before = output(model, batch, **kwargs).detach()
    torch.testing.assert_close(output(compiled, batch, **kwargs), before, atol=1e-5, rtol=1e-5)
    for each in (compiled, twin):
        output(each, batch, **kwargs).square().mean().backward()
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=n)
    optimizer.step()
    with torch.no_grad():  # the compiled graph must see what the step has changed
        stepped = output(model, batch, **kwargs)
        assert not torch.allclose(stepped, before, atol=1e-4)
        torch.testing.assert_close(output(compiled, batch, **kwargs), stepped, atol=1e-5, rtol=1e-5)
        with model.disable_adapter():
            bare = output(build(name, task), batch, **kwargs)
            torch.testing.assert_close(output(compiled, batch, **kwargs), bare, atol=1e-5, rtol=1e-5)


@over([("bert", "SEQ_CLS"), ("t5", "SEQ_2_SEQ_LM")])
def test_trainable_after_it_was_compiled_frozen(method: str, name: str, task: str, tmp_path: Path) -> None:
    adapted(name, task, method=method).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(build(name, task), tmp_path)
    batch = inputs(name, task)
    kwargs = {"use_cache": False} if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else {}
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    expected = output(compiled, batch, **kwargs).detach()
    model.add_adapter("new", config(name, task, method))
    model.set_adapter("new")
    found = output(compiled, batch, **kwargs)
    torch.testing.assert_close(found, output(model, batch, **kwargs), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, expected, atol=1e-3)
    found.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "a graph traced before the adapter was trainable must not be used"
