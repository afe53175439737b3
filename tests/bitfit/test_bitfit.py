"""BitFit: the naive reference, which biases there are, what is saved, and what is refused."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

import peft_aot
from backbones import BIASED, build, inputs, output
from models import adapted, config, is_adapter
from written import check_gradients, naive_output

BATCH = inputs("bert", "SEQ_CLS")
GOLDEN = {"bitfit": "a5bdb0546f238498", "pafi": "bc5103075ba7391d"}


@pytest.mark.parametrize("name", BIASED)
def test_output_and_gradients_equal_the_naive_reference(name: str) -> None:
    bare, batch = build(name, "SEQ_CLS").double(), inputs(name, "SEQ_CLS")
    model = get_peft_model(build(name, "SEQ_CLS").double(), config(name, "SEQ_CLS", "bitfit")).eval()

    def naive() -> torch.Tensor:
        originals = dict(bare.named_parameters())
        changed = {}
        for key, delta in model.named_parameters():
            if "bitfit_delta" in key:
                owner = key.removeprefix("base_model.model.").removesuffix(".bitfit_layer.bitfit_delta.default")
                changed[f"{owner}.bias"] = originals[f"{owner}.bias"].detach() + delta
        assert {n for n in originals if n.endswith("bias")} - set(changed) <= HEADS_OF[name]
        return naive_output(bare, model, changed, batch)

    check_gradients(model, batch, naive)


# biases beside the backbone, which are trained as heads
HEADS_OF = {
    "bert": {"classifier.bias"},
    "roberta": {"classifier.dense.bias", "classifier.out_proj.bias"},
    "deberta_v2": {"classifier.bias", "pooler.dense.bias"},
    "distilbert": {"classifier.bias", "pre_classifier.bias"},
    "electra": {"classifier.dense.bias", "classifier.out_proj.bias"},
    "mpnet": {"classifier.dense.bias", "classifier.out_proj.bias"},
    "gpt2": set(),
    "bart": {"classification_head.dense.bias", "classification_head.out_proj.bias"},
}


def test_what_is_saved(tmp_path: Path) -> None:
    model = adapted("bert", method="bitfit")
    with torch.no_grad():
        for number, (name, p) in enumerate(model.named_parameters()):
            if "bitfit" in name or "modules_to_save" in name:
                p.fill_(number / 8)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    biases = [n for n, _ in build("bert").named_parameters() if n.startswith("bert.") and n.endswith("bias")]
    expected = {f"base_model.model.{n.removesuffix('.bias')}.bitfit_layer.bitfit_delta" for n in biases}
    assert {n for n in saved if "classifier" not in n} == expected
    assert {t.dtype for t in saved.values()} == {torch.float32}
    key = "base_model.model.bert.encoder.layer.0.attention.self.query.bitfit_layer.bitfit_delta"
    own = dict(model.named_parameters())[f"{key}.default"]
    torch.testing.assert_close(saved[key], own.detach())
    assert saved[key].shape == (32,)


@pytest.mark.parametrize("method", GOLDEN)
def test_golden_bytes(method: str, tmp_path: Path) -> None:
    model = adapted("bert", "FEATURE_EXTRACTION", method=method)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if is_adapter(name):
                parameter.copy_(torch.arange(parameter.numel()) / 64 + number)
    model.save_pretrained(tmp_path)
    # a change here makes adapters that were saved before unreadable
    assert hashlib.sha256((tmp_path / "adapter_model.safetensors").read_bytes()).hexdigest()[:16] == GOLDEN[method]


def test_choosing_modules() -> None:
    def chosen(**fields: object) -> list[str]:
        model = get_peft_model(build("bert"), config("bert", "SEQ_CLS", "bitfit", **fields))
        layers = [n for n, m in model.base_model.model.named_modules() if isinstance(m, peft_aot.BitFitLayer)]
        return [name.removesuffix(".bitfit_layer") for name in layers]

    assert len(chosen()) == 18 and not [name for name in chosen() if "classifier" in name]
    assert chosen(target_modules=["query"]) == [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
    assert chosen(target_modules=r".*layer\.0\..*", exclude_modules=["query", "LayerNorm", "key", "dense"]) == [
        "bert.encoder.layer.0.attention.self.value"
    ]
    without_pooler = chosen(modules_to_save=["pooler"])
    assert len(without_pooler) == 17 and "bert.pooler.dense" not in without_pooler
    with pytest.raises(ValueError, match=r"to leave a module that BitFit can adapt, got none of 19 .*leave them out"):
        chosen(target_modules=["nothing"])


def test_a_backbone_without_biases_is_refused() -> None:
    backbone = build("llama", "CAUSAL_LM")
    before = str(backbone)
    message = r"expected a backbone with biases, got LlamaForCausalLM.*LoRA, AoTConfig, PaFiConfig or HiWiConfig"
    with pytest.raises(ValueError, match=message):
        get_peft_model(backbone, peft_aot.BitFitConfig(task_type="CAUSAL_LM"))
    assert str(backbone) == before


def test_a_bias_that_is_no_last_summand_is_refused_if_it_is_asked_for() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(3))
            self.dense = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dense(x) * self.bias

    model = nn.Sequential(Odd())
    with pytest.raises(ValueError, match=r"expected target_modules that BitFit can adapt, got 0 \(Odd, whose bias"):
        get_peft_model(model, peft_aot.BitFitConfig(target_modules=["0"]))
    assert list(get_peft_model(model, peft_aot.BitFitConfig()).base_model.targeted_module_names) == ["0.dense"]


def test_several_active_adapters_add_up() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION", method="bitfit")
    torch.manual_seed(1)
    model.add_adapter("other", config("bert", "FEATURE_EXTRACTION", "bitfit"))
    model.base_model.set_adapter(["default", "other"])
    both = output(model, BATCH)
    with torch.no_grad():
        for layer in model.base_model.layers():
            layer.bitfit_delta["default"] += layer.bitfit_delta["other"]
    model.base_model.set_adapter("default")
    torch.testing.assert_close(output(model, BATCH), both)


def test_a_frozen_adapter_that_is_changed_is_written_anew_when_it_is_activated() -> None:
    model = adapted("bert", method="bitfit")
    model.base_model.set_adapter("default", inference_mode=True)
    before = output(model, BATCH)
    with torch.no_grad():
        for layer in model.base_model.layers():
            layer.bitfit_delta["default"] *= 2
    model.base_model.set_adapter("default", inference_mode=True)
    assert not torch.allclose(output(model, BATCH), before, atol=1e-3)


def test_a_full_state_dict_is_loaded_as_it_was() -> None:
    model = adapted("bert", method="bitfit")
    expected = output(model, BATCH)
    twin = get_peft_model(build("bert"), config("bert", "SEQ_CLS", "bitfit", init_weights=True)).eval()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(output(twin, BATCH), expected)
    with twin.disable_adapter(), torch.no_grad():
        assert torch.equal(output(twin, BATCH), output(build("bert"), BATCH))


def test_adapters_of_other_modules_to_save(tmp_path: Path) -> None:
    adapted("bert", method="bitfit").save_pretrained(tmp_path / "few")
    adapted("bert", method="bitfit", modules_to_save=["pooler"]).save_pretrained(tmp_path / "more")
    for first, second in (("few", "more"), ("more", "few")):
        model = PeftModel.from_pretrained(build("bert"), tmp_path / first)
        with pytest.raises(ValueError, match="bert.pooler.dense; give both adapters the same modules_to_save"):
            model.load_adapter(tmp_path / second, "second")
        assert list(model.peft_config) == ["default"]


def test_an_adapter_of_a_backbone_without_a_name(tmp_path: Path) -> None:
    adapted("bert", method="bitfit", target_modules=["query"]).save_pretrained(tmp_path)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"query"', '"key"'))
    with pytest.raises(ValueError, match="load the backbone it was trained on$"):
        PeftModel.from_pretrained(build("bert"), tmp_path)


def test_models_that_turn_their_batch_about_are_refused_in_mixed_batches() -> None:
    from transformers import LongformerConfig, LongformerModel

    longformer = LongformerModel(
        LongformerConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            attention_window=4,
            max_position_embeddings=64,
        )
    )
    model = get_peft_model(longformer, peft_aot.BitFitConfig(init_weights=False)).eval()
    ids = torch.randint(5, 50, (2, 8))
    model(input_ids=ids)
    with pytest.raises(ValueError, match="expected a backbone whose modules see the examples first, got longformer"):
        model(input_ids=ids, adapter_names=["default", "__base__"])


def test_safe_merge_refuses_what_is_not_finite() -> None:
    model = adapted("bert", method="bitfit")
    layers = model.base_model.layers()
    with torch.no_grad():
        layers[-1].bitfit_delta["default"][0] = float("nan")
    with pytest.raises(ValueError, match="expected finite values to merge, got NaN or infinity from adapters"):
        model.merge_and_unload(safe_merge=True)
    assert not any(layer.merged for layer in layers)


def test_a_saved_adapter_with_nan_is_refused(tmp_path: Path) -> None:
    model = adapted("bert", method="bitfit")
    with torch.no_grad():
        model.base_model.layers()[3].bitfit_delta["default"][0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected finite values in the saved adapter, got NaN or infinity in"):
        PeftModel.from_pretrained(build("bert"), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["bitfit", "hiwi", "hiwi-weight", "pafi", "houlsby"])
def test_a_frozen_adapter_stays_frozen_beside_half_precision(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    get_peft_model(build("bert").to(dtype), config("bert", "SEQ_CLS", method)).save_pretrained(tmp_path)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(build("bert").to(dtype), tmp_path, low_cpu_mem_usage=low)
        assert not [n for n, p in loaded.named_parameters() if p.requires_grad]
        hooked = [m for m in loaded.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert bool(hooked) == (method == "houlsby")


def test_pytorchs_own_attention_is_left_alone() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    adapted_to = get_peft_model(model, peft_aot.BitFitConfig()).base_model.targeted_module_names
    assert adapted_to == ["0.linear1", "0.linear2", "0.norm1", "0.norm2"]


def test_a_head_around_an_adapted_module_is_refused() -> None:
    model = adapted("bert", method="bitfit")
    with pytest.raises(ValueError, match=r"got \['pooler'.*which holds bert.pooler.dense; give both adapters the same"):
        model.add_adapter("other", config("bert", "SEQ_CLS", "bitfit", modules_to_save=["pooler"]))
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("method", ["bitfit", "hiwi", "houlsby"])
def test_the_adapter_of_a_deeper_backbone_is_refused(method: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    deep_config = build("bert").config
    deep_config.num_hidden_layers = 3
    deep = AutoModelForSequenceClassification.from_config(deep_config)
    for name, parameter in deep.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    wrapped = get_peft_model(deep, config("bert", "SEQ_CLS", method))
    wrapped.save_pretrained(tmp_path)
    backbone = build("bert")
    with pytest.raises(ValueError, match=r"modules that differ in bert.encoder.layer.2.*; load the backbone it was tr"):
        PeftModel.from_pretrained(backbone, tmp_path)
    with torch.no_grad():
        assert torch.equal(output(backbone, BATCH), output(build("bert"), BATCH))
    adapted("bert", method=method).save_pretrained(tmp_path / "shallow")
    with pytest.raises(ValueError, match=r"expected an adapter of \d+ modules of this backbone, got one of \d+ m"):
        PeftModel.from_pretrained(wrapped.unload(), tmp_path / "shallow")


@pytest.mark.parametrize("method", [peft_aot.BitFitConfig, peft_aot.PaFiConfig])
def test_modules_called_by_keyword_are_trained(method: type) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dense(input=x)

    fields = {"sparsity": 0.5} if method is peft_aot.PaFiConfig else {}
    model = get_peft_model(Net(), method(target_modules=["dense"], **fields))
    model(torch.randn(2, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_a_failed_merge_leaves_what_was_merged() -> None:
    model = adapted("bert", method="bitfit")
    torch.manual_seed(1)
    model.add_adapter("bad", config("bert", "SEQ_CLS", "bitfit"))
    model.eval().merge_adapter(["default"])
    expected = output(model, BATCH)
    with torch.no_grad():
        model.base_model.layers()[-1].bitfit_delta["bad"][0] = float("inf")
    with pytest.raises(ValueError, match="expected finite values to merge"):
        model.merge_adapter(["bad"], safe_merge=True)
    assert all(layer.merged_adapters == ["default"] for layer in model.base_model.layers())
    torch.testing.assert_close(output(model, BATCH), expected, atol=1e-6, rtol=1e-6)


def test_safe_merge_looks_at_the_merged_values() -> None:
    model = get_peft_model(build("bert").half(), config("bert", "SEQ_CLS", "bitfit"))
    with torch.no_grad():
        model.base_model.layers()[0].bitfit_delta["default"][0] = 7e4  # finite, but not in float16
    with pytest.raises(ValueError, match="or too large for the backbone's number format"):
        model.merge_adapter(safe_merge=True)


def test_shared_biases_are_refused() -> None:
    backbone = build("bert")
    first, second = (backbone.bert.encoder.layer[i].output.dense for i in (0, 1))
    second.bias = first.bias
    message = r"expected a bias that no other module has, got one of .*layer.0.output.dense and .*layer.1.output.dense"
    for method in ("bitfit", "hiwi"):
        with pytest.raises(ValueError, match=message):
            get_peft_model(backbone, config("bert", "SEQ_CLS", method))


@pytest.mark.parametrize("method", ["bitfit", "hiwi"])
def test_an_offloaded_backbone_is_refused(method: str) -> None:
    backbone = build("bert")
    backbone.bert.encoder.layer[0].output.dense.to("meta")
    before = str(backbone)
    with pytest.raises(ValueError, match="got an offloaded bias in bert.encoder.layer.0.output.dense, which cannot be"):
        get_peft_model(backbone, config("bert", "SEQ_CLS", method))
    assert str(backbone) == before


def test_a_backbone_offloaded_later_is_not_written() -> None:
    model = adapted("bert", method="bitfit")
    model.base_model.model.bert.encoder.layer[0].output.dense.to("meta")
    with (
        pytest.raises(ValueError, match="got an offloaded weight in Linear, which cannot be changed"),
        model.disable_adapter(),
    ):
        pass


@pytest.mark.parametrize("method", ["bitfit", "pafi", "houlsby"])
def test_unfreezing_by_hand_trains(method: str, tmp_path: Path) -> None:
    adapted("bert", method=method).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(build("bert"), tmp_path)
    trained = {n: p for n, p in model.named_parameters() if is_adapter(n)}
    for parameter in trained.values():
        parameter.requires_grad = True
    output(model, BATCH).square().sum().backward()
    assert all(p.grad is not None for p in trained.values())


def test_all_linear_means_the_backbones_linear_layers() -> None:
    model = get_peft_model(build("bert"), config("bert", "SEQ_CLS", "bitfit", target_modules="all-linear"))
    names = model.base_model.targeted_module_names
    assert len(names) == 13 and not [name for name in names if "LayerNorm" in name or "classifier" in name]


def test_a_replica_is_refused() -> None:
    model = adapted("bert", method="bitfit")
    twin = build("bert")
    layer = model.base_model.layers()[0]
    with pytest.raises(RuntimeError, match="got a replica of BertForSequenceClassification, as torch.nn.DataParallel"):
        layer._before(twin, ())


def test_a_refused_second_wrapper_leaves_the_first_ones_settings() -> None:
    backbone = build("bert")
    model = get_peft_model(backbone, config("bert", "SEQ_CLS", "houlsby", activation="gelu"))
    for name in ("default", "other"):
        with pytest.raises(ValueError, match="expected a backbone without adapters of this package"):
            get_peft_model(backbone, config("bert", "SEQ_CLS", "houlsby", activation="relu"), adapter_name=name)
    assert list(model.peft_config) == ["default"] and model.peft_config["default"].activation == "gelu"


def test_the_first_calls_after_a_step_may_come_from_threads() -> None:
    for seed in range(6):
        model = adapted("bert", method="bitfit", seed=seed)
        output(model, BATCH).sum().backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
        start = threading.Barrier(4)

        def call(model: PeftModel = model, start: threading.Barrier = start) -> None:
            start.wait()
            with torch.no_grad():
                output(model, BATCH)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bare = dict(build("bert").named_parameters())
        assert all(torch.equal(p, bare[n]) for n, p in model.unload().named_parameters())


def test_a_routed_layer_on_shared_positions_is_refused_in_mixed_batches() -> None:
    import transformers

    from backbones import TEXT

    settings = transformers.DebertaV2Config(
        **TEXT, relative_attention=True, pos_att_type=["p2c"], norm_rel_ebd="layer_norm", position_buckets=4
    )
    backbone = transformers.AutoModelForSequenceClassification.from_config(settings).eval()
    fields = {"r": 2, "init_weights": False, "modules_to_save": ["classifier", "LayerNorm"]}
    model = get_peft_model(backbone, peft_aot.HoulsbyConfig(task_type="SEQ_CLS", **fields))
    model.add_adapter("b", peft_aot.HoulsbyConfig(task_type="SEQ_CLS", **fields))
    batch = inputs("deberta_v2", "SEQ_CLS", batch=2)
    with pytest.raises(
        ValueError, match=r"expected a head that runs on 2 examples, got LayerNorm with an input of shape"
    ):
        output(model.eval(), batch, adapter_names=["default", "b"])
