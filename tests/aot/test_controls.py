"""The controls: one bias per block, random vectors in place of embeddings, and a bottleneck on the hidden state."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import peft_aot
import reference
from backbones import VOCAB, build, inputs, output
from models import adapted, config, dense_tables
from peft_aot.aot import reparam
from peft_aot.aot.config import AoTConfig
from peft_aot.backbone import find_blocks
from peft_aot.card import CARD_FILE
from peft_aot.cli.app import main
from peft_aot.info import describe, lines
from peft_aot.tables import TABLE_FILE, Table

CONSTANT, RANDOM, HIDDEN = {"reparam": "constant"}, {"bottleneck_input": "random"}, {"bottleneck_input": "hidden"}
CONTROLS = {"constant": CONSTANT, "random": RANDOM, "hidden": HIDDEN}
every_control = pytest.mark.parametrize("control", CONTROLS)
every_table = pytest.mark.parametrize("control", ["constant", "random"])
# rows and hidden states of one size and of two (ELECTRA), one stack and two (T5)
BACKBONES = ["bert", "electra", "llama", "t5"]
BERT = inputs("bert", "SEQ_CLS")
Added = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]


def made(name: str, control: str, task: str = "FEATURE_EXTRACTION", **fields: object) -> PeftModel:
    return adapted(name, task, **CONTROLS[control], **fields)


def answer(model: nn.Module, batch: dict[str, Tensor], **kwargs: object) -> Tensor:
    with torch.no_grad():
        return output(model, batch, **kwargs)


def factors(model: PeftModel, block: str, adapter_name: str = "default") -> dict[str, Tensor]:
    found = dict(model.base_model.model.get_submodule(block).aot_rows[adapter_name].state_dict())
    return {
        name: value * (model.peft_config[adapter_name].scale if name == "w2" else 1) for name, value in found.items()
    }


def random_table(size: int) -> Tensor:
    return torch.randn(VOCAB, size, generator=torch.Generator().manual_seed(2305_10835))


def add_constant(token: Tensor, state: Tensor, f: dict[str, Tensor]) -> Tensor:
    return f["b2"]


def add_random(token: Tensor, state: Tensor, f: dict[str, Tensor]) -> Tensor:
    return reference.fc_row(random_table(len(f["w1"]))[token], f["w1"], f["b1"], f["w2"], f["b2"])


def add_hidden(token: Tensor, state: Tensor, f: dict[str, Tensor]) -> Tensor:
    return reference.fc_row(state, f["w1"], f["b1"], f["w2"], f["b2"])


NAIVE = {"constant": add_constant, "random": add_random, "hidden": add_hidden}


def naive_output(
    name: str, batch: dict[str, Tensor], added: dict[str, list[tuple[Added, dict[str, Tensor]]]]
) -> Tensor:
    """What the bare backbone returns when vectors are added before each block, position by position."""
    backbone = build(name, "FEATURE_EXTRACTION")
    for block, terms in added.items():
        ids = batch["decoder_input_ids" if block.startswith("decoder") else "input_ids"]

        def add(module: nn.Module, args: tuple, kwargs: dict, ids: Tensor = ids, terms: list = terms) -> tuple:
            hidden = args[0] if args else kwargs["hidden_states"]
            new = hidden.clone()
            for b in range(len(hidden)):
                for t in range(hidden.shape[1]):
                    for vector, f in terms:
                        new[b, t] += vector(ids[b, t], hidden[b, t], f)
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        backbone.get_submodule(block).register_forward_pre_hook(add, with_kwargs=True)
    return answer(backbone, batch)


# what is computed


@every_control
@pytest.mark.parametrize("name", BACKBONES)
def test_equals_the_naive_loop(name: str, control: str) -> None:
    fields = {} if control == "constant" else {"r": 3, "normalize_embeddings": False}
    model = made(name, control, **fields)
    blocks = [block.name for block in find_blocks(build(name, "FEATURE_EXTRACTION"))]
    assert len(blocks) == (4 if name == "t5" else 2)
    added = {block: [(NAIVE[control], factors(model, block))] for block in blocks}
    for batch, length in ((1, 5), (3, 2)):
        each = inputs(name, "FEATURE_EXTRACTION", batch=batch, length=length, seed=batch)
        found = answer(model, each)
        torch.testing.assert_close(found, naive_output(name, each, added), atol=1e-5, rtol=1e-5)
        bare = answer(build(name, "FEATURE_EXTRACTION"), each)
        assert not torch.allclose(found, bare, atol=1e-3), "what is added must matter, or this test could not fail"


@pytest.mark.parametrize("fields", [{}, {"activation": "tanh"}, {"normalize_embeddings": False}])
def test_the_inputs_are_treated_as_embeddings_are(fields: dict[str, object]) -> None:
    def module(**more: object) -> nn.Module:
        settings = AoTConfig(r=5, dropout=0.0, init_weights=False, vocab_size=VOCAB, **fields, **more)
        torch.manual_seed(2)
        return reparam.make_rows(settings, 8, 8)

    tokens, hidden = torch.tensor([3, 7, 3, 119]), torch.randn(2, 3, 8) * 5
    table, fc = random_table(8), module()
    assert torch.equal(module(**RANDOM)(tokens, torch.zeros(4, 8)), fc(tokens, table[tokens]))
    expected = torch.stack([fc(tokens, example) for example in hidden])
    torch.testing.assert_close(module(**HIDDEN)(hidden), expected)


@every_control
@pytest.mark.parametrize("name", BACKBONES)
def test_at_the_start_and_disabled_it_is_the_backbone(name: str, control: str) -> None:
    batch = inputs(name, "FEATURE_EXTRACTION")
    bare = answer(build(name, "FEATURE_EXTRACTION"), batch)
    fresh = get_peft_model(
        build(name, "FEATURE_EXTRACTION"), AoTConfig(task_type="FEATURE_EXTRACTION", r=4, **CONTROLS[control])
    )
    assert torch.equal(answer(fresh.eval(), batch), bare)
    model = made(name, control)
    changed = answer(model, batch)
    with model.disable_adapter():
        assert torch.equal(answer(model, batch), bare)
    assert torch.equal(answer(model, batch), changed) and not torch.allclose(changed, bare, atol=1e-3)
    assert torch.equal(answer(model.unload(), batch), bare)


def test_a_constant_has_one_vector_per_block_and_nothing_else() -> None:
    model = made("bert", "constant", "SEQ_CLS", r=7)
    trained = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad and "aot_rows" in n}
    assert list(trained.values()) == [(32,), (32,)] and all(n.endswith("default.b2") for n in trained)
    for table in dense_tables(model).values():
        assert torch.equal(table, table[:1].expand(VOCAB, -1)) and table[0].abs().max() > 0.01


@every_control
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(control: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    backbone = build("bert", "FEATURE_EXTRACTION").to(dtype)
    model = get_peft_model(backbone, config("bert", "FEATURE_EXTRACTION", **CONTROLS[control])).eval()
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "aot_rows" in n)
    names = ["default", "__base__", "default"]
    found, mixed = answer(model, BERT), answer(model, BERT, adapter_names=names)
    assert found.dtype == mixed.dtype == dtype
    full = answer(model.float(), BERT)
    torch.testing.assert_close(found.float(), full, atol=0.05 * float(full.abs().max()), rtol=0)
    torch.testing.assert_close(mixed[::2].float(), full[::2], atol=0.05 * float(full.abs().max()), rtol=0)


@pytest.mark.parametrize("control", ["random", "hidden"])
def test_dropout_acts_in_training_only(control: str) -> None:
    model = made("bert", control, dropout=0.5, r=4)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(answer(model, BERT), answer(model, BERT))
    model.train()
    assert not torch.allclose(answer(model, BERT), answer(model, BERT), atol=1e-3)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_gradient_checkpointing_of_a_bottleneck_on_the_hidden_state(name: str, reentrant: bool) -> None:
    batch, other = inputs(name, "FEATURE_EXTRACTION"), inputs(name, "FEATURE_EXTRACTION", seed=9)
    kwargs = {} if name == "bert" else {"use_cache": False}

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = made(name, "hidden", r=4).double().train()
        for module in model.modules():
            for attribute in ("p", "dropout", "attention_dropout"):
                if isinstance(module.__dict__.get(attribute), float):
                    setattr(module, attribute, 0.0)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        result = output(model, batch, **kwargs)
        answer(model, other, **kwargs)  # another forward before the backward must not matter
        result.square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    expected, found = gradients(checkpointing=False), gradients(checkpointing=True)
    assert expected and all(gradient.abs().sum() > 0 for gradient in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-9, rtol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


def test_the_hidden_state_needs_no_token_ids() -> None:
    embeddings = torch.randn(3, 7, 32)
    model = made("bert", "hidden")
    answer(model, {"inputs_embeds": embeddings})
    model.add_adapter("rows", config("bert", "FEATURE_EXTRACTION"))
    answer(model.eval(), {"inputs_embeds": embeddings})
    model.set_adapter("rows")
    with pytest.raises(ValueError, match="expected token ids, got inputs_embeds"):
        answer(model, {"inputs_embeds": embeddings})


@every_control
def test_several_active_adapters_add_up(control: str) -> None:
    model = made("bert", control, normalize_embeddings=False)
    torch.manual_seed(8)
    model.add_adapter("rows", config("bert", "FEATURE_EXTRACTION", normalize_embeddings=False))
    model.add_adapter("more", config("bert", "FEATURE_EXTRACTION", normalize_embeddings=False, **CONTROLS[control]))
    model.eval().base_model.set_adapter(["default", "rows", "more"])
    embeddings = model.get_input_embeddings().weight.detach()

    def row(token: Tensor, state: Tensor, f: dict[str, Tensor]) -> Tensor:
        return reference.fc_row(embeddings[token], f["w1"], f["b1"], f["w2"], f["b2"])

    vectors = {"default": NAIVE[control], "rows": row, "more": NAIVE[control]}
    added = {
        block: [(vector, factors(model, block, adapter)) for adapter, vector in vectors.items()]
        for block in ("encoder.layer.0", "encoder.layer.1")
    }
    batch = inputs("bert", "FEATURE_EXTRACTION", batch=2, length=4)
    torch.testing.assert_close(answer(model, batch), naive_output("bert", batch, added), atol=1e-5, rtol=1e-5)


@every_control
def test_compiles_without_graph_breaks(control: str) -> None:
    model = made("bert", control, "SEQ_CLS")
    torch.manual_seed(4)
    model.add_adapter("rows", config("bert", "SEQ_CLS"))
    model.eval()
    answer(model, BERT, adapter_names=["__base__"] * 3)  # the first mixed batch prepares the heads, which graphs cannot
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    reparam._drawn.cache_clear()  # as in a process that has only ever run the compiled model
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    for each in (fast, twin):
        output(each, BERT).square().mean().backward()
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=n)
    for names in (["rows", "default", "__base__"], ["default", "default", "rows"], None):
        expected = answer(twin, BERT, adapter_names=names)
        torch.testing.assert_close(answer(fast, BERT, adapter_names=names), expected, atol=1e-5, rtol=1e-5)


# the random table


def test_random_vectors_are_the_same_for_ever() -> None:
    # no adapter stores them: other numbers here would make other rows of every adapter that was trained
    first = reparam.random_embeddings(VOCAB, 32, torch.device("cpu"))
    torch.testing.assert_close(first[0, :4], torch.tensor([-0.3213, 1.3450, -1.4682, 1.1068]), atol=1e-4, rtol=0)
    assert torch.equal(first, random_table(32))
    assert abs(float(first.mean())) < 0.05 and abs(float(first.std()) - 1) < 0.05


def test_random_vectors_are_drawn_once_whoever_asks_first() -> None:
    reparam._drawn.cache_clear()
    torch.manual_seed(6)
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.device("meta"):
        first = reparam.random_embeddings(VOCAB, 8, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state), "a training run's own random numbers must not be disturbed"
    assert first.device.type == "cpu" and not first.is_inference() and not first.requires_grad
    assert reparam.random_embeddings(VOCAB, 8, torch.device("cpu")) is first
    assert torch.equal(first, random_table(8))


def test_random_vectors_stand_for_the_embeddings() -> None:
    model, fc = made("bert", "random"), adapted("bert", "FEATURE_EXTRACTION")
    assert torch.equal(factors(model, "encoder.layer.0")["w1"], factors(fc, "encoder.layer.0")["w1"])
    assert not torch.allclose(answer(model, BERT), answer(fc, BERT), atol=1e-3)
    before = dense_tables(model)
    model.get_input_embeddings().weight.data.mul_(-3.0)
    assert all(torch.equal(table, before[block]) for block, table in dense_tables(model).items())


# files


@every_control
@pytest.mark.parametrize(("name", "task"), [("bert", "SEQ_CLS"), ("electra", "TOKEN_CLS"), ("llama", "CAUSAL_LM")])
def test_saved_and_loaded(name: str, task: str, control: str, tmp_path: Path) -> None:
    model = made(name, control, task)
    batch = inputs(name, task)
    expected = answer(model, batch)
    model.save_pretrained(tmp_path)
    saved = {key.rpartition(".")[2] for key in load_file(tmp_path / "adapter_model.safetensors") if "aot_rows" in key}
    assert saved == ({"b2"} if control == "constant" else {"w1", "b1", "w2", "b2"})
    reparam._drawn.cache_clear()  # as in another process
    torch.manual_seed(77)
    loaded = PeftModel.from_pretrained(build(name, task), tmp_path)
    assert torch.equal(answer(loaded, batch), expected)


@every_table
@pytest.mark.parametrize(("name", "task"), [("bert", "SEQ_CLS"), ("electra", "TOKEN_CLS"), ("llama", "CAUSAL_LM")])
def test_fused_equals_unfused(name: str, task: str, control: str, tmp_path: Path) -> None:
    model = made(name, control, task, fuse_on_save=True, table_dtype="float32")
    batch = inputs(name, task)
    expected = answer(model, batch)
    model.save_pretrained(tmp_path)
    reparam._drawn.cache_clear()
    loaded = PeftModel.from_pretrained(build(name, task), tmp_path)
    table = loaded.base_model.lookup.tables["default"]
    rows = table.rows(torch.arange(VOCAB))
    for block, dense in dense_tables(model).items():
        torch.testing.assert_close(rows[:, table.layer_slot(block)], dense, atol=1e-6, rtol=1e-5)
    for module in loaded.modules():
        if isinstance(module, (reparam.ConstantRows, reparam.RandomRows)):
            module.forward = None  # the table must be used
    torch.testing.assert_close(answer(loaded, batch), expected, atol=1e-6, rtol=1e-5)

    (tmp_path / TABLE_FILE).unlink()
    peft_aot.fuse(tmp_path, build(name, task), token_ids=torch.arange(60), progress=False)
    partly = PeftModel.from_pretrained(build(name, task), tmp_path)
    assert not partly.base_model.lookup.tables["default"].header.complete
    torch.testing.assert_close(answer(partly, batch), expected, atol=1e-6, rtol=1e-5)


def test_a_table_made_from_other_inputs_is_not_used(tmp_path: Path) -> None:
    adapted("bert", fuse_on_save=True).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**raw, "bottleneck_input": "random"}), encoding="utf-8")
    with pytest.warns(UserWarning, match="expected a table of rows for this backbone.*the factors are used"):
        assert not PeftModel.from_pretrained(build("bert"), tmp_path).base_model.lookup.tables
    path.write_text(json.dumps({**raw, "bottleneck_input": "hidden", "fuse_on_save": False}), encoding="utf-8")
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
    assert not loaded.base_model.lookup.tables
    torch.testing.assert_close(answer(loaded, BERT), answer(made("bert", "hidden", "SEQ_CLS"), BERT))


def test_an_adapter_from_before_there_were_controls(tmp_path: Path) -> None:
    model = adapted("bert")
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert raw.pop("bottleneck_input") == "embeddings"
    path.write_text(json.dumps(raw), encoding="utf-8")
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
    assert loaded.peft_config["default"].bottleneck_input == "embeddings"
    assert torch.equal(answer(loaded, BERT), answer(model, BERT))


@pytest.mark.parametrize("control", ["random", "hidden"])
def test_loading_into_an_adapter_that_is_fed_otherwise_is_refused(control: str, tmp_path: Path) -> None:
    made("bert", control, "SEQ_CLS").save_pretrained(tmp_path)
    model = adapted("bert")
    before = answer(model, BERT)
    with pytest.raises(ValueError, match=f"expected bottleneck_input=embeddings .* got bottleneck_input={control}"):
        model.load_adapter(tmp_path, adapter_name="default")
    assert torch.equal(answer(model, BERT), before)


def test_what_is_no_lookup_is_not_fused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "expected an adapter whose rows depend on the token id alone.*got bottleneck_input='hidden'"
    model = made("bert", "hidden", "SEQ_CLS")
    with pytest.raises(ValueError, match=f"{reason}.*for adapter 'default'; leave fuse=True out"):
        model.save_pretrained(tmp_path / "adapter", fuse=True)
    assert not (tmp_path / "adapter").exists()
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=f"{reason}.*use the adapter unfused"):
        peft_aot.fuse(tmp_path / "adapter", build("bert"), progress=False)
    with pytest.raises(SystemExit) as end:
        main(["fuse", str(tmp_path / "adapter")])
    assert end.value.code == 2 and "got bottleneck_input='hidden'" in capsys.readouterr().err
    assert not (tmp_path / "adapter" / TABLE_FILE).exists()
    model.add_adapter("rows", config("bert", "SEQ_CLS"))
    model.save_pretrained(tmp_path / "both", fuse=True, selected_adapters=["rows"])
    assert Table.open(tmp_path / "both" / "rows" / TABLE_FILE).header.complete


@pytest.mark.parametrize(
    ("control", "formula", "summary"),
    [
        ("constant", "constant, P = b2 for every token (a control)", "a control: the same row for every token id, 2 "),
        ("random", "with frozen random vectors for E (a control)", "random vectors in place of embeddings, FC "),
        ("hidden", "none, s f(H W1 + b1) W2 + b2 of the hidden state H", "a control without lookup: a bottleneck on "),
    ],
)
def test_it_is_told_what_it_is(control: str, formula: str, summary: str, tmp_path: Path) -> None:
    made("bert", control, "SEQ_CLS").save_pretrained(tmp_path)
    told = dict(lines(describe(tmp_path)))
    assert formula in told["reparametrization"]
    assert told["rank"] == ("none" if control == "constant" else "4")
    card = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert summary in card
    assert ("`peft-aot fuse DIR` makes one" in card) is (control != "hidden")
    assert ("no lookup table can hold it" in card) is (control == "hidden")
    assert ("a row per token id" in card) is (control == "random")


# mixed batches


@pytest.mark.parametrize(("name", "task"), [("bert", "SEQ_CLS"), ("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
def test_mixed_batch_equals_each_alone(name: str, task: str, tmp_path: Path) -> None:
    alone = {}
    for seed, control in enumerate(CONTROLS):
        model = made(name, control, task, seed=seed, fuse_on_save=control == "constant", table_dtype="float32")
        model.save_pretrained(tmp_path / control)
        alone[control] = model
    alone["__base__"] = build(name, task)
    alone["fc"] = adapted(name, task, seed=9)
    alone["fc"].save_pretrained(tmp_path / "fc")
    model = PeftModel.from_pretrained(build(name, task), tmp_path / "hidden", adapter_name="hidden")
    for other in ("constant", "random", "fc"):
        model.load_adapter(tmp_path / other, adapter_name=other)
    names = ["hidden", "fc", "__base__", "constant", "hidden", "random"]
    batch = inputs(name, task, batch=len(names))
    for order in (names, names[::-1], ["hidden"] * 6, ["__base__"] * 6, ["random"] * 6, ["hidden", "__base__"] * 3):
        mixed = answer(model, batch, adapter_names=order)
        for i, adapter in enumerate(order):
            expected = answer(alone[adapter], {key: value[i : i + 1] for key, value in batch.items()})[0]
            torch.testing.assert_close(mixed[i], expected, atol=1e-5, rtol=1e-5, msg=lambda m, a=adapter: f"{a}: {m}")


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
@pytest.mark.parametrize(("name", "task"), [("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
def test_mixed_generation_equals_each_alone(name: str, task: str, settings: dict[str, int]) -> None:
    model = made(name, "hidden", task)
    torch.manual_seed(11)
    model.add_adapter("random", config(name, task, **RANDOM))
    model.eval()
    batch = {key: value for key, value in inputs(name, task).items() if key != "decoder_input_ids"}
    settings = {**settings, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "no_repeat_ngram_size": 1}
    names = ["random", "__base__", "default"]
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


def test_a_stack_that_reorders_its_batch_is_refused_in_mixed_batches() -> None:
    from transformers import XLNetConfig, XLNetModel

    xlnet = XLNetModel(XLNetConfig(vocab_size=50, d_model=32, n_layer=2, n_head=2, d_inner=64))
    model = get_peft_model(xlnet, AoTConfig(r=2, **HIDDEN)).eval()
    ids = torch.randint(5, 50, (2, 6))
    model(input_ids=ids)
    with pytest.raises(ValueError, match="call without adapter_names, got some: XLNet turns its batch about"):
        model(input_ids=ids, adapter_names=["default", "__base__"])
    model.base_model.cannot_mix = None  # as for a backbone that is not known by name
    with pytest.raises(ValueError, match=r"expected hidden states of 2 examples, got shape \(6, 2, 32\).*set_adapter"):
        model(input_ids=ids, adapter_names=["default", "__base__"])


# sums


@every_control
def test_add_weighted_adapter(control: str) -> None:
    model = made("bert", control, normalize_embeddings=False)
    torch.manual_seed(8)
    more = {"normalize_embeddings": False, **CONTROLS[control]}
    model.add_adapter("other", config("bert", "FEATURE_EXTRACTION", r=3, **more))
    model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    model.eval().set_adapter("sum")

    def weighted(weight: float) -> Added:
        return lambda token, state, f: weight * NAIVE[control](token, state, f)

    added = {
        block: [
            (weighted(0.5), factors(model, block, "default")),
            (weighted(-2.0), factors(model, block, "other")),
        ]
        for block in ("encoder.layer.0", "encoder.layer.1")
    }
    batch = inputs("bert", "FEATURE_EXTRACTION", batch=2, length=3)
    torch.testing.assert_close(answer(model, batch), naive_output("bert", batch, added), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("constant", r"expected adapters with one reparam, got \['constant', 'fc'\]"),
        ("random", r"expected adapters with one bottleneck_input, got \['embeddings', 'random'\]"),
        ("hidden", r"expected adapters with one bottleneck_input, got \['embeddings', 'hidden'\]"),
    ],
)
def test_what_is_fed_otherwise_does_not_add_up(control: str, message: str) -> None:
    model = made("bert", control)
    model.add_adapter("fc", config("bert", "FEATURE_EXTRACTION"))
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(["default", "fc"], [1.0, 1.0], "sum")
    block = model.base_model.model.encoder.layer[0]
    parts = [block.aot_rows["default"], block.aot_rows["fc"]]
    with pytest.raises(TypeError, match=f"expected rows of one reparametrization, got .*'{type(parts[0]).__name__}'"):
        reparam.set_combination(parts[1], parts, [1.0, 1.0])
