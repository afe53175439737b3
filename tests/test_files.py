"""Adapters of every method as files: what is saved is loaded, and a load that fails leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn

from backbones import build, inputs, output
from models import METHODS, adapted, config, is_adapter
from peft_aot import _registration, files, fusion
from peft_aot.parts import versions
from peft_aot.source import Source
from peft_aot.stored import stored_tuners
from peft_aot.tables import TABLE_FILE

BATCH = inputs("bert", "SEQ_CLS")
for_all = pytest.mark.parametrize("method", METHODS)


def result(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return output(model, BATCH)


def saved(folder: Path, method: str, seed: int = 3, **fields: object) -> torch.Tensor:
    model = adapted("bert", method=method, seed=seed, **fields)
    model.save_pretrained(folder)
    return result(model)


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    next(tensor for name, tensor in tensors.items() if is_adapter(name)).view(-1)[-1] = torch.nan


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    """The last of them, so that others have been loaded when it is found."""
    name = max(name for name in tensors if is_adapter(name))
    tensors[name] = torch.cat([tensors[name], tensors[name]])


BREAKAGES = {
    "expected finite values in the saved adapter, got NaN": not_a_number,
    "size mismatch for": other_shape,
}
for_breakages = pytest.mark.parametrize(("message", "damage"), BREAKAGES.items(), ids=["nan", "shape"])
Damage = Callable[[dict[str, torch.Tensor]], None]


def broken(folder: Path, method: str, damage: Damage, **fields: object) -> Path:
    saved(folder, method, seed=9, **fields)
    path = folder / SAFETENSORS_WEIGHTS_NAME
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def state(model: nn.Module) -> dict[str, object]:
    """All that can be told of a model from outside, but for its outputs."""
    return {
        "text": str(model),
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "wanted": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "identities": {name: id(parameter) for name, parameter in model.named_parameters()},
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "outputs": result(model),
    }


def assert_same(found: dict[str, object], expected: dict[str, object]) -> None:
    for key, value in expected.items():
        other = found[key]
        if key == "values":
            assert list(other) == list(value)
            assert all(torch.equal(other[name], tensor) for name, tensor in value.items())
        elif key == "outputs":
            assert torch.equal(other, value)
        else:
            assert other == value, key


# a load that fails


@for_all
@for_breakages
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True], ids=["", "meta"])
def test_a_backbone_is_given_back(
    method: str, message: str, damage: Damage, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    expected = saved(tmp_path / "good", method)
    folder = broken(tmp_path / "broken", method, damage)
    backbone = build("bert")
    backbone.bert.embeddings.requires_grad_(False)
    backbone.gradient_checkpointing_enable()  # PEFT puts a hook on the embeddings then
    backbone.bert.encoder.layer[1].output.LayerNorm.train()
    before = state(backbone)
    with pytest.raises((ValueError, RuntimeError), match=message):
        PeftModel.from_pretrained(backbone, folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert_same(state(backbone), before)
    assert not hasattr(backbone, "peft_config")
    loaded = PeftModel.from_pretrained(backbone, tmp_path / "good", low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(result(loaded), expected)


@for_all
@for_breakages
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trained"])
def test_a_new_adapter_is_taken_out(method: str, message: str, damage: Damage, trainable: bool, tmp_path: Path) -> None:
    first, second = (saved(tmp_path / name, method, seed) for name, seed in (("first", 3), ("second", 4)))
    folder = broken(tmp_path / "broken", method, damage)
    model = PeftModel.from_pretrained(build("bert"), tmp_path / "first", is_trainable=trainable)
    model.load_adapter(tmp_path / "second", "second")
    before = state(model)
    with pytest.raises((ValueError, RuntimeError), match=message):
        model.load_adapter(folder, "third")
    assert_same(state(model), before)
    assert list(model.peft_config) == ["default", "second"]
    assert model.active_adapters == model.base_model.active_adapters == ["default"]
    assert list(model.base_model.sources) == ["default", "second"]
    model.load_adapter(tmp_path / "second", "third")
    torch.testing.assert_close(result(model), first)
    model.set_adapter("third")
    torch.testing.assert_close(result(model), second)


@for_all
@for_breakages
@pytest.mark.parametrize("new", [False, True], ids=["loaded", "new"])
def test_an_adapter_that_was_there_keeps_its_values(
    method: str, message: str, damage: Damage, new: bool, tmp_path: Path
) -> None:
    first = adapted("bert", method=method)
    first.save_pretrained(tmp_path / "first")
    (tmp_path / "first" / "task.json").write_text('{"task": "rte"}', encoding="utf-8")
    second = saved(tmp_path / "second", method, seed=4)
    folder = broken(tmp_path / "broken", method, damage, num_labels=5)  # the head is given that size first
    model = first if new else PeftModel.from_pretrained(build("bert"), tmp_path / "first")
    before = state(model)
    with pytest.raises((ValueError, RuntimeError), match=message):
        model.load_adapter(folder, "default")
    assert_same(state(model), before)
    assert model.base_model.present_source("default").file("task.json") == tmp_path / "first" / "task.json"
    model.load_adapter(tmp_path / "second", "default")
    torch.testing.assert_close(result(model), second)


@for_all
def test_whatever_ends_a_load_undoes_it(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "first", method)
    saved(tmp_path / "second", method, seed=4)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    model = PeftModel.from_pretrained(build("bert"), tmp_path / "first", is_trainable=True)
    backbone = build("bert").train()
    before = state(model), state(backbone)
    with monkeypatch.context() as patch:
        patch.setattr(type(model.base_model), "adapter_loaded", interrupted)
        for name in ("default", "second"):
            with pytest.raises(KeyboardInterrupt):
                model.load_adapter(tmp_path / "second", name)
            assert_same(state(model), before[0])
        with pytest.raises(KeyboardInterrupt):
            PeftModel.from_pretrained(backbone, tmp_path / "first")
    found = state(backbone)
    for part in found, before[1]:
        part.pop("outputs")  # dropout
    assert_same(found, before[1])
    assert torch.equal(result(backbone.eval()), result(build("bert")))


def test_a_table_is_still_in_use_after_a_load_that_failed(tmp_path: Path) -> None:
    saved(tmp_path / "first", "aot", fuse_on_save=True)
    folder = broken(tmp_path / "broken", "aot", other_shape)
    model = PeftModel.from_pretrained(build("bert"), tmp_path / "first")
    expected = result(model)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(folder, "default")
    assert torch.equal(result(model), expected), "no warning, and the same rounded rows"
    assert model.base_model.lookup.fresh_table("default") is not None
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if is_adapter(name)).add_(1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(folder, "default")
    assert model.base_model.lookup.fresh_table("default") is None, "stale before, stale after"


def test_warnings_name_the_line_that_saves_or_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no table today")

    saved(tmp_path, "aot", fuse_on_save=True)
    saved(tmp_path / "other", "aot", seed=4)
    (tmp_path / TABLE_FILE).rename(tmp_path / "other" / TABLE_FILE)
    model = adapted("bert", fuse_on_save=True)
    with pytest.warns(UserWarning, match="expected a table of factors .* Until then the factors are used") as stale:
        model.load_adapter(tmp_path / "other", "other")
    monkeypatch.setattr(fusion, "fuse", refuse)
    with pytest.warns(UserWarning, match="no table today. The adapter is saved without its table.") as unfused:
        model.save_pretrained(tmp_path)
    assert [warning.filename for warning in (stale[-1], unfused[-1])] == [__file__, __file__]


@for_all
def test_a_wrapped_backbone_stays_wrapped(method: str, tmp_path: Path) -> None:
    saved(tmp_path, method)
    model = adapted("bert", method=method)
    before = state(model)
    with pytest.raises(ValueError, match="expected a backbone without adapters of this package"):
        PeftModel.from_pretrained(model.get_base_model(), tmp_path)
    assert_same(state(model), before)


@for_all
def test_an_adapter_that_cannot_be_added_leaves_nothing(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted("bert", method=method)
    before = state(model)
    update, calls = model.base_model.tuner_layer_cls.update_layer, []

    def full(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        update(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(model.base_model.tuner_layer_cls, "update_layer", full)
        model.add_adapter("second", config("bert", "SEQ_CLS", method))
    assert len(calls) == 2
    assert_same(state(model), before)
    assert list(model.peft_config) == model.active_adapters == ["default"]
    model.add_adapter("second", config("bert", "SEQ_CLS", method))


@for_all
def test_an_adapter_that_cannot_be_added_elsewhere_leaves_the_active_one(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted("bert", method=method, target_modules=r".*layer\.1(\.intermediate\.dense|\.output\.dense)?")
    expected = result(model)
    cls, update = model.base_model.tuner_layer_cls, model.base_model.tuner_layer_cls.update_layer

    def full(*args: object, **kwargs: object) -> None:
        update(*args, **kwargs)
        raise MemoryError  # in block 0, which the first adapter has left alone

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(cls, "update_layer", full)
        model.add_adapter("second", config("bert", "SEQ_CLS", method))
    assert model.active_adapters == ["default"] and torch.equal(result(model), expected)


@for_all
def test_several_active_adapters_and_their_heads_stay_active(method: str, tmp_path: Path) -> None:
    def kind(**fields: object) -> object:
        return config("bert", "FEATURE_EXTRACTION", method, target_modules=r"encoder\.layer\.\d(\..*)?", **fields)

    model = get_peft_model(build("bert", "FEATURE_EXTRACTION"), kind()).eval()
    model.add_adapter("second", kind(modules_to_save=["pooler"]))
    model.base_model.set_adapter("second")
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    path = tmp_path / "second" / SAFETENSORS_WEIGHTS_NAME
    tensors = load_file(path)
    other_shape(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    model.base_model.set_adapter(["default", "second"])
    before = state(model)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path / "second", "third")
    assert_same(state(model), before)
    assert model.active_adapters == ["default", "second"]
    assert model.base_model.model.pooler.active_adapters == ["second"]


@for_all
def test_adding_an_adapter_leaves_the_others_in_training_or_frozen(method: str, tmp_path: Path) -> None:
    model = adapted("bert", method=method)
    frozen = state(adapted("bert", method=method, inference_mode=True))
    model.add_adapter("second", config("bert", "SEQ_CLS", method, inference_mode=True))
    output(model, BATCH).sum().backward()
    ours = [p for name, p in model.named_parameters() if is_adapter(name) and ".default" in name]
    assert ours and all(p.grad is not None and p.grad.any() for p in ours)
    model = adapted("bert", method=method, inference_mode=True)
    model.add_adapter("second", config("bert", "SEQ_CLS", method))
    found = [h for h in state(model)["hooks"] if h]
    assert found == [h for h in frozen["hooks"] if h], "a frozen adapter needs no more hooks than before"


@for_all
def test_a_deleted_adapter_has_no_files(method: str, tmp_path: Path) -> None:
    saved(tmp_path, method)
    model = PeftModel.from_pretrained(build("bert"), tmp_path)
    model.load_adapter(tmp_path, "second")
    model.delete_adapter("second")
    assert list(model.base_model.sources) == ["default"]


def test_other_methods_fail_as_ever(tmp_path: Path) -> None:
    get_peft_model(build("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).save_pretrained(tmp_path)
    path = tmp_path / SAFETENSORS_WEIGHTS_NAME
    save_file({name: torch.cat([value, value]) for name, value in load_file(path).items()}, path)
    backbone = build("bert")
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(backbone, tmp_path)
    assert "lora" in str(backbone)


# an adapter of another kind


@for_all
def test_another_methods_adapter_does_not_replace_ours(method: str, tmp_path: Path) -> None:
    other = next(name for name in METHODS if name != method)
    saved(tmp_path, other)
    model = adapted("bert", method=method)
    wanted, got = METHODS[method].config.__name__, METHODS[other].config.__name__
    with pytest.raises(TypeError, match=rf"expected a {wanted} in .*, got {got}; do not mix methods in one model"):
        model.load_adapter(tmp_path, "default")


@for_all
def test_an_adapter_of_other_settings_does_not_replace_ours(method: str, tmp_path: Path) -> None:
    field, old, new = ("r", 4, 2) if method == "aot" else ("target_modules", ["output.dense"], ["intermediate.dense"])
    saved(tmp_path, method, **{field: new})
    model = adapted("bert", method=method, **{field: old})
    with pytest.raises(
        ValueError, match=r"expected (\w+)=.* as in the adapter 'default' that is there, got \1=.*; call"
    ):
        model.load_adapter(tmp_path, "default")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "aot"])
def test_options_of_other_methods_are_refused(method: str, tmp_path: Path) -> None:
    model = adapted("bert", method=method)
    model.save_pretrained(tmp_path / "adapter")
    backbone = build("bert")
    before = state(backbone)
    unexpected = r"expected {}\(\) with arguments that {} has, got an unexpected keyword argument '{}'; leave it out"
    name = model.base_model.method
    for call, option, work in (
        ("save_pretrained", "fuse", lambda: model.save_pretrained(tmp_path / "other", fuse=False)),
        ("push_to_hub", "fuse", lambda: model.push_to_hub("me/adapter", fuse=False)),
        ("load_adapter", "use_table", lambda: model.load_adapter(tmp_path / "adapter", "b", use_table=True)),
        (
            "load_adapter",
            "use_table",
            lambda: PeftModel.from_pretrained(backbone, tmp_path / "adapter", use_table=True),
        ),
    ):
        with pytest.raises(TypeError, match=unexpected.format(call, name, option)):
            work()
    assert not (tmp_path / "other").exists() and list(model.peft_config) == ["default"]
    assert_same(state(backbone), before)


# what is saved


@for_all
def test_saved_and_loaded(method: str, tmp_path: Path) -> None:
    expected = saved(tmp_path, method)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.json",
    ]
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
    torch.testing.assert_close(result(loaded), expected)
    assert loaded.base_model.present_source("default").model_id == tmp_path
    with torch.no_grad():
        next(p for name, p in loaded.named_parameters() if is_adapter(name)).add_(1)
    assert loaded.base_model.present_source("default") is None, "its values are no longer those in the folder"


@for_all
def test_the_card_of_every_method(method: str, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"task": "rte", "scores": {"accuracy": 0.7148}}', encoding="utf-8")
    saved(tmp_path, method)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    tuner = stored_tuners()[METHODS[method].config().peft_type]
    for part in (
        f"## {tuner.method} adapter",
        f"[{tuner.method}](https://arxiv.org/abs/",
        f": {tuner.what}.",
        "- peft_aot\n",
        f"- {tuner.tag}\n",
        "Task: rte.",
        "| accuracy | 0.7148 |",
        'PeftModel.from_pretrained(backbone, adapter, adapter_name="default")',
    ):
        assert part in text, part
    assert ("fused table" in text) is (method == "aot")


def test_a_card_in_full(tmp_path: Path) -> None:
    adapted("bert", method="bitfit", target_modules=["query", "key"]).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (
        "A [BitFit](https://arxiv.org/abs/2106.10199) adapter (target modules key, query) for `the backbone it was "
        "trained on`: it adds a learned difference to the biases of the backbone, and stores that (Ben Zaken et al. "
        "2022).\n\nTask: SEQ_CLS.\n"
    ) in text


def test_every_method_says_what_it_is() -> None:
    tuners = stored_tuners()
    assert set(tuners) == {method.upper() for method in _registration.METHODS}
    assert len({tuner.tag for tuner in tuners.values()}) == len(tuners)
    for tuner in tuners.values():
        fields = tuner.config_cls.__dataclass_fields__
        assert tuner.paper.startswith("https://arxiv.org/abs/") and tuner.method and not tuner.what.endswith(".")
        assert set(tuner.shown) | set(tuner.fixed) <= set(fields), tuner


# parts


@for_all
def test_a_fingerprint_follows_every_tensor_of_its_adapter_only(method: str) -> None:
    model = adapted("bert", method=method)
    model.add_adapter("second", config("bert", "SEQ_CLS", method))
    expected = versions(model, "default")
    for name, parameter in model.named_parameters():
        mine = ".default" in name
        with torch.no_grad():
            parameter.add_(0)
        assert (versions(model, "default") != expected) is mine, name
        expected = versions(model, "default")


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").touch()
    source = Source.named(tmp_path, {"subfolder": "inside", "token": "t", "is_trainable": True})
    assert source.hub == {"subfolder": "inside", "token": "t"} and source.folder == tmp_path / "inside"
    assert source.file("file") == tmp_path / "inside" / "file" and source.file(TABLE_FILE) is None
    assert Source(tmp_path / "nowhere").folder is None and Source("nobody/nothing").file("file") is None


class Down(HfHubHTTPError):
    def __init__(self) -> None:  # without the response that it is usually made from
        Exception.__init__(self, "503")


def test_a_hub_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Down

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.warns(UserWarning, match=r"could not download task.json of me/rte \(.*\). It is left out."):
        assert Source("me/rte").file("task.json") is None


def test_only_for_adapters_of_this_package(tmp_path: Path) -> None:
    model = get_peft_model(build("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(
        TypeError, match="expected a model with adapters of this package, got LoraModel; use PEFT's own"
    ):
        files.save_adapters(model, model.save_pretrained, tmp_path)
