"""What PEFT's own tests ask of a tuner that cannot be merged: names, switching, deleting, statuses, copies, threads."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model

import peft_aot
from backbones import VOCAB, build, inputs, output
from models import METHODS, adapted, config, dense_tables
from peft_aot.aot.token_ids import current_call
from peft_aot.routing import tasks_of

BATCH = inputs("bert", "SEQ_CLS")


def two_adapters(first: str = "default", second: str = "other", **fields: object) -> PeftModel:
    model = get_peft_model(build("bert"), config("bert", "SEQ_CLS", **fields), adapter_name=first)
    torch.manual_seed(8)
    model.add_adapter(second, config("bert", "SEQ_CLS", **fields))
    return model.eval()


def test_status_and_trainable_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    model = two_adapters()
    status = model.get_model_status()
    assert status.peft_types == {"default": "AOT", "other": "AOT"}
    assert status.enabled is True and status.active_adapters == ["default"] and status.num_adapter_layers == 3
    assert status.requires_grad == {"default": True, "other": False}
    assert [s.name for s in model.get_layer_status()][:2] == [
        "model.bert.encoder.layer.0",
        "model.bert.encoder.layer.1",
    ]
    model.print_trainable_parameters()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"trainable params: {trainable:,}" in capsys.readouterr().out
    head = 32 * 2 + 2
    assert trainable == 2 * (32 * 4 + 4 + 4 * 32 + 32) + head


def test_set_adapter_switches_and_trains_only_the_active_one() -> None:
    model = two_adapters()
    first = output(model, BATCH)
    model.set_adapter("other")
    second = output(model, BATCH)
    assert not torch.allclose(first, second)
    trained = {
        n.split("aot_rows.")[1].split(".")[0] for n, p in model.named_parameters() if p.requires_grad and "aot" in n
    }
    assert trained == {"other"}
    model.set_adapter("default")
    torch.testing.assert_close(output(model, BATCH), first)


@pytest.mark.parametrize("names", [("a", "ab"), ("other", "other2"), ("rows", "aot_")])
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_names_that_are_parts_of_names(names: tuple[str, str], tmp_path: Path) -> None:
    model = two_adapters(*names)
    expected = {}
    for name in names:
        model.set_adapter(name)
        expected[name] = output(model, BATCH)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path / names[0], adapter_name=names[0])
    loaded.load_adapter(tmp_path / names[1], adapter_name=names[1])
    for name in names:
        loaded.set_adapter(name)
        torch.testing.assert_close(output(loaded, BATCH), expected[name], msg=name)


def test_a_name_of_a_module_is_refused() -> None:
    # PEFT would leave every tensor below a module of that name out of what it saves
    model = adapted("bert")
    with pytest.raises(ValueError, match="got 'encoder', the name of a module.*choose another"):
        model.add_adapter("encoder", config("bert", "SEQ_CLS"))
    assert list(model.peft_config) == ["default"]
    with pytest.raises(ValueError, match="got 'layer'"):
        get_peft_model(build("bert"), config("bert", "SEQ_CLS"), adapter_name="layer")


@pytest.mark.parametrize("name", ["weight", "bias", "training"])
@pytest.mark.parametrize("method", METHODS)
def test_a_name_that_modules_use_themselves_is_refused(method: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"got '{name}', the name of one .*choose another name"):
        adapted("bert", method=method).add_adapter(name, config("bert", "SEQ_CLS", method))
    with pytest.raises(ValueError, match=f"got '{name}', the name of one .*choose another name"):
        get_peft_model(build("bert"), config("bert", "SEQ_CLS", method), adapter_name=name)


def test_a_second_adapter_through_transformers_own_calls_is_refused() -> None:
    backbone = build("bert")
    backbone.add_adapter(config("bert", "SEQ_CLS"), "one")
    with pytest.raises(ValueError, match="got one with AoTLayers; .*get_peft_model makes a PeftModel, which takes sev"):
        backbone.add_adapter(config("bert", "SEQ_CLS"), "two")


def test_a_vocabulary_that_was_resized(tmp_path: Path) -> None:
    resized = build("bert")
    resized.resize_token_embeddings(VOCAB + 10)
    get_peft_model(resized, config("bert", "SEQ_CLS")).save_pretrained(tmp_path)
    backbone, batch = build("bert"), {"input_ids": torch.tensor([[3, VOCAB + 5]])}
    with pytest.raises(
        ValueError, match=rf"vocab_size=120 .*, or call resize_token_embeddings\({VOCAB + 10}\) if that"
    ):
        PeftModel.from_pretrained(backbone, tmp_path)
    backbone.resize_token_embeddings(VOCAB + 10)
    assert torch.isfinite(output(PeftModel.from_pretrained(backbone, tmp_path).eval(), batch)).all()
    late = adapted("bert")
    late.resize_token_embeddings(VOCAB + 10)
    with pytest.raises(IndexError, match=f"got ids from 3 to {VOCAB + 5}; .*resize the embeddings before get_peft_m"):
        output(late, batch)


def test_delete_active_and_inactive_adapters() -> None:
    model = two_adapters()
    model.set_adapter("other")
    kept = output(model, BATCH)
    model.delete_adapter("default")
    assert list(model.peft_config) == ["other"]
    assert not [n for n, _ in model.named_parameters() if ".default" in n]
    torch.testing.assert_close(output(model, BATCH), kept)
    model = two_adapters()
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    torch.testing.assert_close(output(model, BATCH), kept)
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("default")


def test_several_active_adapters_add_up() -> None:
    model = get_peft_model(build("bert", "FEATURE_EXTRACTION"), config("bert", "FEATURE_EXTRACTION"))
    model.add_adapter("other", config("bert", "FEATURE_EXTRACTION", reparam="kron"))
    model.eval().base_model.set_adapter(["default", "other"])
    both = output(model, BATCH)
    tables = [dense_tables(model, name) for name in ("default", "other")]
    single = get_peft_model(build("bert", "FEATURE_EXTRACTION"), config("bert", "FEATURE_EXTRACTION")).eval()
    for name, layer in single.base_model.model.named_modules():
        if isinstance(layer, peft_aot.AoTLayer):
            total = tables[0][name] + tables[1][name]
            layer.aot_rows["default"].forward = lambda ids, *_, total=total, **__: total[ids]
    torch.testing.assert_close(both, output(single, BATCH))


@pytest.mark.parametrize("reparam", ["fc", "kron"])
def test_add_weighted_adapter_combines_tables_linearly(reparam: str) -> None:
    model = two_adapters(reparam=reparam)
    model.add_adapter("third", config("bert", "SEQ_CLS", reparam=reparam, r=3))
    model.add_weighted_adapter(["default", "other", "third"], [0.5, -2.0, 3.0], "sum")
    parts = [dense_tables(model, name) for name in ("default", "other", "third")]
    for name, table in dense_tables(model, "sum").items():
        expected = 0.5 * parts[0][name] - 2.0 * parts[1][name] + 3.0 * parts[2][name]
        torch.testing.assert_close(table, expected, atol=1e-5, rtol=1e-5)
    assert model.peft_config["sum"].r == 11
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize("method", ["aot", "pafi"])
def test_a_sum_has_the_first_adapters_head(method: str) -> None:
    first = adapted("bert", num_labels=3, method=method)
    first.add_adapter("other", config("bert", "SEQ_CLS", method))
    first.eval().add_weighted_adapter(["default", "other"], [1.0, 0.0], "sum")
    expected = output(first, BATCH)
    first.set_adapter("sum")
    torch.testing.assert_close(output(first, BATCH), expected, atol=1e-5, rtol=1e-5)
    own = [n for n, p in first.named_parameters() if ".sum." in n and "classifier" in n and p.requires_grad]
    assert len(own) == 2  # activated, the copy is trained on its own
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if name in own:
                parameter.zero_()
    first.set_adapter("default")
    torch.testing.assert_close(output(first, BATCH), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default", "otter"], [1.0, 1.0], "sum"), r"unknown \['otter'\]; load them first"),
        ((["default"], [1.0, 2.0], "sum"), "expected one weight per adapter, got 1 adapters and 2 weights"),
        ((["default"], [1.0], "other"), "expected a new adapter name, got 'other', which exists"),
        ((["default"], [1.0], "sum", "svd"), "expected combination_type='linear', got 'svd'"),
        ((["default", "kron"], [1.0, 1.0], "sum"), r"expected adapters with one reparam, got \['fc', 'kron'\]"),
        ((["default", "part"], [1.0, 1.0], "sum"), "expected adapters on the same blocks"),
    ],
)
def test_add_weighted_adapter_refuses(arguments: tuple[object, ...], message: str) -> None:
    model = two_adapters()
    model.add_adapter("kron", config("bert", "SEQ_CLS", reparam="kron"))
    model.add_adapter("part", config("bert", "SEQ_CLS", layers_to_transform=[1]))
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(*arguments)
    assert set(model.peft_config) == {"default", "other", "kron", "part"}


def test_merging_is_refused_with_the_reason() -> None:
    model = adapted("bert")
    before = output(model, BATCH)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="no weight of a block can hold a different bias for every token id.*fuse"):
            merge()
    torch.testing.assert_close(output(model, BATCH), before)


def test_a_wrapped_backbone_is_refused() -> None:
    backbone = build("bert")
    model = get_peft_model(backbone, config("bert", "SEQ_CLS"))
    before = output(model.eval(), BATCH)
    with pytest.raises(
        ValueError,
        match="expected a backbone without adapters of this package, got one with AoTLayers.*unload.*load_adapter",
    ):
        get_peft_model(backbone, config("bert", "SEQ_CLS"), adapter_name="second")
    torch.testing.assert_close(output(model, BATCH), before)
    again = get_peft_model(model.unload(), config("bert", "SEQ_CLS"), adapter_name="second")
    assert list(again.peft_config) == ["second"]


def test_the_name_that_means_no_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an adapter name, got '__base__'"):
        get_peft_model(build("bert"), config("bert", "SEQ_CLS"), adapter_name="__base__")


@pytest.mark.parametrize("name", ["copy", "values", "forward"])
def test_a_name_of_a_method_of_torch_is_refused(name: str) -> None:
    model = adapted("bert", method="bitfit")
    with pytest.raises(ValueError, match=f"expected an adapter name that torch can keep modules under, got '{name}'"):
        model.add_adapter(name, config("bert", "SEQ_CLS", "bitfit"))
    assert list(model.peft_config) == ["default"]


def test_loading_into_an_adapter_that_computes_rows_otherwise_is_refused(tmp_path: Path) -> None:
    adapted("bert", activation="relu").save_pretrained(tmp_path)
    model = adapted("bert")
    before = output(model, BATCH)
    with pytest.raises(ValueError, match="expected activation=gelu as in the adapter 'default' .* got activation=relu"):
        model.load_adapter(tmp_path, adapter_name="default")
    torch.testing.assert_close(output(model, BATCH), before)


def test_lists_beside_the_backbone_are_no_blocks() -> None:
    from transformers import BertConfig, BertModel, BertPreTrainedModel, MPNetConfig, MPNetModel, MPNetPreTrainedModel

    def with_dropouts(base: type, inner: type, name: str) -> type:
        class Model(base):  # type: ignore[misc, valid-type]
            def __init__(self, settings: object) -> None:
                super().__init__(settings)
                setattr(self, name, inner(settings))
                self.dropouts = torch.nn.ModuleList([torch.nn.Dropout(0.1) for _ in range(5)])
                self.post_init()

            def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
                return getattr(self, name)(input_ids).last_hidden_state

        return Model

    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    for model in (
        with_dropouts(BertPreTrainedModel, BertModel, "bert")(BertConfig(**sizes)),
        with_dropouts(MPNetPreTrainedModel, MPNetModel, "mpnet")(MPNetConfig(**sizes)),
    ):
        wrapped = get_peft_model(model, peft_aot.AoTConfig(r=2))
        names = [n for n, m in wrapped.base_model.model.named_modules() if isinstance(m, peft_aot.AoTLayer)]
        assert [name.rpartition(".")[0] for name in names] == [names[0].rpartition(".")[0]] * 2
        assert "dropouts" not in "".join(names)
        assert wrapped(torch.tensor([[5, 6, 7]])).shape == (1, 3, 32)


def test_several_lists_of_equal_length_are_refused() -> None:
    from transformers import XLMConfig, XLMModel

    xlm = XLMModel(XLMConfig(vocab_size=50, emb_dim=32, n_layers=2, n_heads=2))
    with pytest.raises(ValueError, match="expected one list of transformer blocks, got .*of equal length"):
        get_peft_model(xlm, peft_aot.AoTConfig())


def test_choosing_blocks() -> None:
    def wrapped(name: str = "bert", task: str = "SEQ_CLS", **fields: object) -> list[str]:
        model = get_peft_model(build(name, task), config(name, task, **fields))
        return [n for n, m in model.base_model.model.named_modules() if isinstance(m, peft_aot.AoTLayer)]

    assert wrapped() == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert wrapped(layers_to_transform=1) == wrapped(layers_to_transform=[1]) == ["bert.encoder.layer.1"]
    assert wrapped(target_modules=["layer.0"]) == ["bert.encoder.layer.0"]
    assert wrapped(target_modules=r".*layer\.[01]", exclude_modules=["layer.0"]) == ["bert.encoder.layer.1"]
    decoder = wrapped("t5", "SEQ_2_SEQ_LM", target_modules=r"decoder\.block\.\d")
    assert decoder == ["decoder.block.0", "decoder.block.1"]
    assert wrapped("t5", "SEQ_2_SEQ_LM", layers_to_transform=[0], layers_pattern="block") == [
        "encoder.block.0",
        "decoder.block.0",
    ]
    for fields in ({"target_modules": ["query"]}, {"layers_to_transform": [7]}, {"exclude_modules": ".*"}):
        with pytest.raises(ValueError, match=r"leave a transformer block, got none of bert.encoder.layer.0"):
            wrapped(**fields)


def test_partly_wrapped_adapter_saves_and_loads(tmp_path: Path) -> None:
    model = adapted("bert", layers_to_transform=[1], fuse_on_save=True, table_dtype="float32")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(output(loaded, BATCH), output(model, BATCH))
    model.add_adapter("all", config("bert", "SEQ_CLS"))
    model.eval().set_adapter("default")
    torch.testing.assert_close(output(model, BATCH), output(loaded, BATCH))
    mixed = output(model, BATCH, adapter_names=["default", "all", "__base__"])
    torch.testing.assert_close(mixed[0], output(model, BATCH)[0])


def test_copies_and_pickles_are_independent() -> None:
    model = adapted("bert")
    expected = output(model, BATCH)
    twin = copy.deepcopy(model)
    again = pickle.loads(pickle.dumps(model))
    for p in model.parameters():
        p.data.zero_()
    for other in (twin, again):
        torch.testing.assert_close(output(other, BATCH), expected)
        assert other.base_model.lookup.tuner is other.base_model
        mixed = output(other, BATCH, adapter_names=["default", "__base__", "default"])
        torch.testing.assert_close(mixed[0], expected[0])


def test_positional_and_keyword_ids_are_the_same() -> None:
    model = get_peft_model(build("bert", "FEATURE_EXTRACTION"), config("bert", "FEATURE_EXTRACTION")).eval()
    by_name = model(input_ids=BATCH["input_ids"]).last_hidden_state
    torch.testing.assert_close(model(BATCH["input_ids"]).last_hidden_state, by_name)
    torch.testing.assert_close(model.get_base_model()(BATCH["input_ids"]).last_hidden_state, by_name)


def test_an_exception_leaves_nothing_behind() -> None:
    model = adapted("bert")
    expected = output(model, BATCH)

    def fail(*_: object) -> None:
        raise OSError("disk on fire")

    handle = model.base_model.model.bert.encoder.layer[1].register_forward_pre_hook(fail)
    with pytest.raises(OSError, match="disk on fire"):
        output(model, BATCH, adapter_names=["default", "__base__", "default"])
    handle.remove()
    assert current_call() is None and tasks_of(model.base_model) is None
    torch.testing.assert_close(output(model, BATCH), expected)


def test_stale_ids_are_never_used() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION")
    output(model, inputs("bert", "FEATURE_EXTRACTION"))
    with pytest.raises(ValueError, match="expected token ids, got inputs_embeds"):
        model(inputs_embeds=torch.randn(3, 7, 32))
    block = model.base_model.model.encoder.layer[0]
    with pytest.raises(
        RuntimeError, match=r"expected block encoder.layer.0 to run inside its model, got a direct call"
    ):
        block(torch.randn(3, 7, 32))


def test_ctrl_c_leaves_nothing_behind() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION")
    batch = inputs("bert", "FEATURE_EXTRACTION")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.base_model.model.encoder.layer[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        output(model, batch)
    handle.remove()
    assert current_call() is None
    output(model, batch)


def test_embeddings_keep_their_ids_whatever_becomes_of_the_buffer() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION")
    ids = inputs("bert", "FEATURE_EXTRACTION")["input_ids"]
    expected = model(input_ids=ids).last_hidden_state
    embeddings = model.get_input_embeddings()(ids)
    ids.fill_(7)
    torch.testing.assert_close(model(inputs_embeds=embeddings).last_hidden_state, expected)
    other = adapted("bert", "FEATURE_EXTRACTION")
    with pytest.raises(ValueError, match="expected token ids, got inputs_embeds"):
        other(inputs_embeds=embeddings)


def test_a_stack_that_reorders_its_batch_is_refused_in_mixed_batches() -> None:
    from transformers import XLNetConfig, XLNetModel

    xlnet = XLNetModel(XLNetConfig(vocab_size=50, d_model=32, n_layer=2, n_head=2, d_inner=64))
    model = get_peft_model(xlnet, peft_aot.AoTConfig(r=2)).eval()
    for length in (6, 2):  # a square batch looks the same turned about
        ids = torch.randint(5, 50, (2, length))
        model(input_ids=ids)
        with pytest.raises(ValueError, match="call without adapter_names, got some: XLNet turns its batch about"):
            model(input_ids=ids, adapter_names=["default", "__base__"])
    model.base_model.cannot_mix = None  # as for a backbone that is not known by name
    ids = torch.randint(5, 50, (2, 6))
    with pytest.raises(ValueError, match="embeds 2 examples as 2 rows, got 6 in XLNetModel, which reorders"):
        model(input_ids=ids, adapter_names=["default", "__base__"])


def test_stated_ids_are_checked() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION")
    with pytest.raises(ValueError, match=r"expected token ids as an integer tensor of shape \(B, T\), got \(3,\)"):
        peft_aot.token_ids(torch.zeros(3, dtype=torch.long)).__enter__()
    with (
        peft_aot.token_ids(torch.zeros(3, 5, dtype=torch.long)),
        pytest.raises(ValueError, match=r"inputs_embeds of shape \(3, 7\), got ids of shape \(3, 5\)"),
    ):
        model(inputs_embeds=torch.randn(3, 7, 32))
    assert current_call() is None


def test_ids_outside_the_vocabulary_are_refused() -> None:
    model = adapted("llama", "CAUSAL_LM", reparam="kron")
    embedding = model.get_input_embeddings()
    ids = torch.tensor([[3, 200]])
    embedding.forward = lambda ids: torch.zeros(*ids.shape, 32)  # a backbone that would not notice
    with pytest.raises(IndexError, match=r"expected token ids in \[0, 120\).*got ids from 3 to 200"):
        model(input_ids=ids)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.mixes])
def test_threads_do_not_see_each_other(method: str) -> None:
    model = adapted("bert", method=method)
    torch.manual_seed(8)
    model.add_adapter("other", config("bert", "SEQ_CLS", method))
    model.eval()
    batches = [inputs("bert", "SEQ_CLS", seed=s) for s in range(4)]
    names = [["default", "other", "__base__"], None, ["__base__"] * 3, ["other"] * 3]
    expected = [output(model, b, adapter_names=n).detach() for b, n in zip(batches, names, strict=True)]

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                found = output(model, batches[i], adapter_names=names[i])
                torch.testing.assert_close(found, expected[i], atol=1e-6, rtol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_nested_calls_keep_their_own_ids_and_tasks() -> None:
    model = two_adapters()
    other = inputs("bert", "SEQ_CLS", batch=2, length=5, seed=4)
    names = ["default", "other", "__base__"]
    expected, inner_expected = output(model, BATCH, adapter_names=names), output(model, other)
    inner: list[torch.Tensor] = []
    block = model.base_model.model.bert.encoder.layer[1]

    def call_again(*_: object) -> None:
        if not inner:
            inner.append(torch.empty(0))
            inner[0] = output(model, other)

    handle = block.register_forward_pre_hook(call_again)
    found = output(model, BATCH, adapter_names=names)
    handle.remove()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inner[0], inner_expected)


def test_bf16_autocast_and_accumulation() -> None:
    model = adapted("bert", dropout=0.0)
    labels = torch.tensor([0, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**BATCH, labels=labels).loss
    loss.backward()
    once = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**BATCH, labels=labels).loss.backward()
    for n, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, 2 * once[n], rtol=2e-2, atol=1e-4)


def test_dropout_acts_in_training_only() -> None:
    for reparam in ("fc", "kron"):
        model = adapted("llama", "CAUSAL_LM", reparam=reparam, dropout=0.5)
        batch = inputs("llama", "CAUSAL_LM")
        assert torch.equal(output(model, batch), output(model, batch))
        model.train()
        assert not torch.allclose(output(model, batch), output(model, batch))


def test_modules_to_save_are_trained_and_saved(tmp_path: Path) -> None:
    backbone = build("bert")
    model = get_peft_model(backbone, config("bert", "SEQ_CLS", modules_to_save=["pooler"])).eval()
    model.base_model.model.bert.pooler.modules_to_save["default"].dense.bias.data.fill_(3.0)
    expected = output(model, BATCH)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(output(PeftModel.from_pretrained(build("bert"), tmp_path), BATCH), expected)
    mixed = output(model, BATCH, adapter_names=["default", "__base__", "default"])
    torch.testing.assert_close(mixed[0], expected[0])
    with torch.no_grad():
        torch.testing.assert_close(mixed[1], output(build("bert"), BATCH)[1])


def test_another_backbone_is_refused_before_anything_changes(tmp_path: Path) -> None:
    adapted("bert").save_pretrained(tmp_path)
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2}
    for field, name, value in (
        ("vocab_size", "vocab_size", 121),
        ("hidden_size", "token_dim", 64),
        ("num_hidden_layers", "num_layers", 3),
    ):
        other = BertForSequenceClassification(
            BertConfig(**{**sizes, field: value}, num_attention_heads=2, intermediate_size=64)
        ).eval()
        before, described = {k: v.clone() for k, v in other.state_dict().items()}, str(other)
        with pytest.raises(ValueError, match=rf"expected a backbone with {name}=\d+, got {name}={value}"):
            PeftModel.from_pretrained(other, tmp_path)
        assert str(other) == described
        assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
        assert not other.bert._forward_pre_hooks


def test_models_without_blocks_or_embedding_are_refused() -> None:
    class NoBlocks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(10, 4)

    class NoEmbedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

    for model in (NoBlocks(), NoEmbedding()):
        with pytest.raises(ValueError, match="expected a model with transformer blocks .* below an input embedding"):
            get_peft_model(model, peft_aot.AoTConfig())


def test_shared_blocks_are_refused() -> None:
    from transformers import AlbertConfig, AlbertModel

    albert = AlbertModel(AlbertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=2))
    with pytest.raises(ValueError, match=r"runs 1 shared block\(s\) 4 times; choose a backbone without shared blocks"):
        get_peft_model(albert, peft_aot.AoTConfig())


def test_a_model_of_other_origin() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.lin(x).tanh()

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(20, 8)
            self.blocks = torch.nn.ModuleList([Block(), Block()])

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return x

    own = Own()
    ids = torch.randint(0, 20, (2, 5))
    bare = own(ids)
    model = get_peft_model(own, peft_aot.AoTConfig(r=2)).eval()
    assert torch.equal(model(ids), bare)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p)
    assert not torch.allclose(model(ids), bare)


def test_peft_namespaces_have_the_classes() -> None:
    assert peft.AoTConfig is peft.tuners.AoTConfig is peft_aot.AoTConfig
    assert peft.AoTModel is peft.tuners.AoTModel is peft_aot.AoTModel
