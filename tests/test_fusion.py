"""Fusing saved adapters, and what a model does with tables that fit, partly fit or no longer fit."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import peft_aot
from backbones import TASKS, VOCAB, build, inputs, output
from models import adapted, config, dense_tables
from peft_aot import fusion
from peft_aot.tables import TABLE_FILE, Table, read_header

BATCH = inputs("bert", "SEQ_CLS")
CASES = [("bert", "SEQ_CLS"), ("electra", "TOKEN_CLS"), ("t5", "SEQ_2_SEQ_LM"), ("llama", "CAUSAL_LM")]


def saved(folder: Path, name: str = "bert", task: str = "SEQ_CLS", **fields: object) -> PeftModel:
    model = adapted(name, task, **fields)
    model.save_pretrained(folder)
    return model


def load(folder: Path, **kwargs: object) -> PeftModel:
    return PeftModel.from_pretrained(build("bert"), folder, **kwargs)


def answers(model: nn.Module, batch: dict[str, torch.Tensor] = BATCH) -> torch.Tensor:
    with torch.no_grad():
        return output(model, batch)


@pytest.mark.parametrize(("name", "task"), CASES)
@pytest.mark.parametrize("reparam", ["fc", "kron"])
@pytest.mark.parametrize("bare", [False, True], ids=["task model", "AutoModel"])
def test_rows_are_those_of_the_factors(name: str, task: str, reparam: str, bare: bool, tmp_path: Path) -> None:
    model = saved(tmp_path, name, task, reparam=reparam)
    backbone: nn.Module = build(name, task)
    if bare:
        backbone.save_pretrained(tmp_path / "backbone")
        backbone = TASKS["FEATURE_EXTRACTION"].from_pretrained(tmp_path / "backbone")
    report = peft_aot.fuse(tmp_path, backbone, dtype="float32", progress=False)
    expected = dense_tables(model)
    table = Table.open(tmp_path / TABLE_FILE)
    assert sorted(table.header.layers) == sorted(expected) and len(expected) == (4 if name == "t5" else 2)
    rows = table.rows(torch.arange(VOCAB))
    for slot, block in enumerate(table.header.layers):
        torch.testing.assert_close(rows[:, slot], expected[block], atol=1e-6, rtol=1e-5)
    assert report.sampled == VOCAB and report.max_row_difference == 0
    assert report.header == table.header and report.path == tmp_path / TABLE_FILE


def test_blocks_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    deep = BertModel(BertConfig(vocab_size=20, hidden_size=4, num_hidden_layers=12, num_attention_heads=1))
    model = get_peft_model(deep, peft_aot.AoTConfig(r=2, fuse_on_save=True))
    model.save_pretrained(tmp_path)
    assert read_header(tmp_path / TABLE_FILE).layers == tuple(f"encoder.layer.{i}" for i in range(12))


def test_dtype_and_default_dtype(tmp_path: Path) -> None:
    saved(tmp_path, table_dtype="bfloat16")
    backbone = build("bert")
    assert peft_aot.fuse(tmp_path, backbone, progress=False).header.dtype == "bfloat16"
    sizes = {}
    for dtype in ("float32", "float16", "int8"):
        report = peft_aot.fuse(tmp_path, backbone, dtype=dtype, progress=False)
        assert read_header(tmp_path / TABLE_FILE).dtype == dtype == report.header.dtype
        sizes[dtype] = report.bytes
        assert report.bytes == (tmp_path / TABLE_FILE).stat().st_size
    assert sizes["float32"] > sizes["float16"] > sizes["int8"]
    assert "A fused lookup table (bfloat16) is included" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_backbone_in_half_precision(tmp_path: Path) -> None:
    saved(tmp_path)
    report = peft_aot.fuse(tmp_path, build("bert").to(torch.bfloat16), dtype="float32", progress=False)
    assert report.max_row_difference == 0


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_kept_tokens_from_the_table_and_the_rest_from_the_factors(dtype: str, tmp_path: Path) -> None:
    model = saved(tmp_path)
    tables = dense_tables(model)
    kept = torch.tensor([30, 5, 7, 5, 110])
    report = peft_aot.fuse(tmp_path, build("bert"), dtype=dtype, token_ids=kept, progress=False)
    assert report.header.tokens == 4 and report.sampled == 4
    loaded = load(tmp_path)
    fused = loaded.base_model.lookup.tables["default"]
    ids = torch.tensor([[5, 6, 7, 30], [110, 111, 5, 5]])
    seen: dict[str, torch.Tensor] = {}
    for name, layer in loaded.base_model.model.named_modules():
        if isinstance(layer, peft_aot.AoTLayer):
            layer.base_layer.register_forward_pre_hook(lambda m, a, name=name: seen.__setitem__(f"{name} after", a[0]))
            layer.register_forward_pre_hook(lambda m, a, name=name: seen.__setitem__(name, a[0]))
    with torch.no_grad():
        loaded(input_ids=ids)
    inside = torch.isin(ids, kept)
    for slot, name in enumerate(tables):
        added = seen[f"{name} after"] - seen[name]
        exact = tables[name][ids]
        torch.testing.assert_close(added[~inside], exact[~inside], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(added[inside], fused.rows(ids[inside])[:, slot], atol=1e-6, rtol=1e-5)
        if dtype == "int8":
            assert not torch.allclose(added[inside], exact[inside], atol=1e-6), "int8 rows differ, or nothing is shown"


def test_token_ids_of_the_whole_vocabulary_make_a_complete_table(tmp_path: Path) -> None:
    saved(tmp_path)
    report = peft_aot.fuse(tmp_path, build("bert"), token_ids=torch.arange(VOCAB).flip(0), progress=False)
    assert report.header.complete
    assert Table.open(tmp_path / TABLE_FILE).missing(torch.tensor([3])) is None


@pytest.mark.parametrize(
    "ids", [[7, 5, 6, 5], (5, 6, 7), {5, 6, 7}, range(5, 8), np.array([5, 6, 7]), torch.tensor([[5, 6], [6, 7]])]
)
def test_token_ids_in_any_sequence(ids: Iterable[int], tmp_path: Path) -> None:
    saved(tmp_path)
    assert peft_aot.fuse(tmp_path, build("bert"), token_ids=ids, progress=False).header.tokens == 3
    missing = Table.open(tmp_path / TABLE_FILE).missing(torch.arange(4, 9))
    assert missing is not None and missing.tolist() == [True, False, False, False, True]


def test_stacks_with_vocabularies_of_their_own(tmp_path: Path) -> None:
    from transformers import MarianConfig, MarianMTModel

    sizes = {
        f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")
    }
    shape = {"vocab_size": 120, "decoder_vocab_size": 90, "d_model": 32, "max_position_embeddings": 64}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}
    marian = MarianMTModel(
        MarianConfig(**sizes, **shape, **special, share_encoder_decoder_embeddings=False, tie_word_embeddings=False)
    )
    model = get_peft_model(marian, config("bert", "SEQ_2_SEQ_LM"))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="stacks share a vocabulary.* 120 tokens in MarianEncoder and 90 .*; use the"):
        peft_aot.fuse(tmp_path, model.unload())
    alone = PeftModel.from_pretrained(marian, tmp_path).eval()
    batch = {"input_ids": torch.tensor([[3, 119]]), "decoder_input_ids": torch.tensor([[4, 89]])}
    assert torch.isfinite(output(alone, batch)).all()


def test_bad_arguments(tmp_path: Path) -> None:
    saved(tmp_path / "aot")
    backbone = build("bert")
    for ids in ([-1, 3], [VOCAB], []):
        with pytest.raises(ValueError, match=rf"expected token ids in \[0, {VOCAB}\), got .*; pass ids to keep"):
            peft_aot.fuse(tmp_path / "aot", backbone, token_ids=torch.tensor(ids, dtype=torch.long))
    for wrong in (
        torch.tensor([1.0]),
        torch.tensor([True, False]),
        torch.tensor(5),
        5,
        "5",
        [1.5],
        [True],
        [[1]],
        [None],
    ):
        with pytest.raises(
            TypeError, match="expected token_ids to be a sequence of whole numbers, got .*; pass a list"
        ):
            peft_aot.fuse(tmp_path / "aot", backbone, token_ids=wrong)
    for dtype, remedy in {
        "flaot16": "did you mean 'float16'",
        "fp16": "choose one of float32, float16, bfloat16, int8",
        "": "choose one of",
        torch.float16: "did you mean 'float16'",
    }.items():
        with pytest.raises(ValueError, match=f"expected a known dtype, got {dtype!r}; {remedy}"):
            peft_aot.fuse(tmp_path / "aot", backbone, dtype=dtype)
    with pytest.raises(FileNotFoundError, match=r"expected adapter_config.json in .*none.*pass a folder save_pretrain"):
        peft_aot.fuse(tmp_path / "nowhere", backbone)
    (tmp_path / "aot" / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected adapter_model.safetensors in"):
        peft_aot.fuse(tmp_path / "aot", backbone)
    get_peft_model(build("bert"), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"expected an AoT adapter in .*, got LORA; only AoT has tables to fuse"):
        peft_aot.fuse(tmp_path / "lora", backbone)
    assert not list(tmp_path.rglob(TABLE_FILE))


def test_another_backbone(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    saved(tmp_path)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    for vocab, width in ((VOCAB + 1, 32), (VOCAB, 64)):
        other = BertModel(BertConfig(vocab_size=vocab, hidden_size=width, **sizes))
        with pytest.raises(
            ValueError, match=rf"expected a backbone with vocabulary 120 and width 32, got {vocab} and {width}; pass"
        ):
            peft_aot.fuse(tmp_path, other)
    with pytest.raises(ValueError, match=r"expected a backbone with block bert.encoder.layer.0, got layers.0 ... lay"):
        peft_aot.fuse(tmp_path, build("llama", "FEATURE_EXTRACTION"))
    assert not (tmp_path / TABLE_FILE).exists()


def test_backbones_that_cannot_be_found(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match="expected a base model, got none in the adapter's configuration; pass base_m"):
        peft_aot.fuse(tmp_path)
    settings = tmp_path / "adapter_config.json"
    known = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps({**known, "base_model_name_or_path": "nobody/nothing"}), encoding="utf-8")
    for kwargs in ({}, {"base_model": "nobody/nothing"}):
        with pytest.raises(
            ValueError, match=r"(?s)expected a backbone at 'nobody/nothing', got none there or on the hub .*pass base_m"
        ):
            peft_aot.fuse(tmp_path, **kwargs)
    settings.write_text(json.dumps({**known, "vocab_size": None}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected vocab_size and token_dim in adapter_config.json, got none; save"):
        peft_aot.fuse(tmp_path, build("bert"))


def test_the_backbone_the_adapter_names_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    class Auto:
        @staticmethod
        def from_pretrained(path: str, revision: str | None = None) -> nn.Module:
            asked.append((path, revision))
            return build("bert", "FEATURE_EXTRACTION")

    monkeypatch.setattr(fusion, "AutoModel", Auto)
    saved(tmp_path)
    settings = tmp_path / "adapter_config.json"
    known = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps({**known, "base_model_name_or_path": "some/model", "revision": "v2"}))
    peft_aot.fuse(tmp_path, progress=False)
    peft_aot.fuse(tmp_path, "local/copy", progress=False)
    assert asked == [("some/model", "v2"), ("local/copy", "main")]


# tables that do not fit any more


def nudge(model: PeftModel, adapter_name: str = "default") -> None:
    """A step of training: gradients through the factors, then an optimizer."""
    factors = [p for n, p in model.named_parameters() if f"aot_rows.{adapter_name}." in n]
    for parameter in factors:
        parameter.requires_grad_(True)
    output(model, BATCH).sum().backward()
    torch.optim.AdamW(factors, lr=0.1).step()
    for parameter in factors:
        parameter.requires_grad_(False)
    model.eval()


@pytest.mark.parametrize("used_before", [True, False])
def test_factors_that_change_after_loading(used_before: bool, tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True, table_dtype="float32")
    model = load(tmp_path)
    plain = load(tmp_path, use_table=False)
    if used_before:
        torch.testing.assert_close(answers(model), answers(plain), atol=1e-5, rtol=1e-5)
    before = answers(plain)
    nudge(model)
    nudge(plain)
    with pytest.warns(UserWarning, match="factors of adapter 'default' have changed since its fused table was loaded"):
        found = answers(model)
    torch.testing.assert_close(found, answers(plain), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(answers(model), found)


@pytest.mark.parametrize("reparam", ["fc", "kron"])
def test_embeddings_that_change_after_loading(reparam: str, tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True, table_dtype="float32", reparam=reparam)
    model, plain = load(tmp_path), load(tmp_path, use_table=False)
    with torch.no_grad():
        for each in (model, plain):
            each.get_input_embeddings().weight.mul_(torch.linspace(-1, 1, 32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = answers(model)
    torch.testing.assert_close(found, answers(plain), atol=1e-5, rtol=1e-5)
    said = [str(one.message) for one in caught if "have changed since its fused table was loaded" in str(one.message)]
    assert len(said) == (reparam == "fc"), "rows of kron do not depend on them"
    assert list(model.base_model.lookup.tables) == ["default"] * (reparam == "kron")


def test_a_table_beside_changed_weights(tmp_path: Path) -> None:
    saved(tmp_path / "a", fuse_on_save=True)
    other = saved(tmp_path / "b", seed=9)
    (tmp_path / "a" / TABLE_FILE).rename(tmp_path / "b" / TABLE_FILE)
    with pytest.warns(UserWarning, match=r"\(stale\); make it again with `peft-aot fuse`. Until then the factors"):
        model = load(tmp_path / "b")
    torch.testing.assert_close(answers(model), answers(other))


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_table(size: int, tmp_path: Path) -> None:
    model = saved(tmp_path, fuse_on_save=True)
    content = (tmp_path / TABLE_FILE).read_bytes()
    (tmp_path / TABLE_FILE).write_bytes(content[:size])
    with pytest.warns(UserWarning, match="expected .*make it again with `peft-aot fuse`.*Until then the factors"):
        loaded = load(tmp_path)
    assert not loaded.base_model.lookup.tables
    torch.testing.assert_close(answers(loaded), answers(model))


def test_a_table_of_another_size(tmp_path: Path) -> None:
    model = saved(tmp_path, fuse_on_save=True)
    path = tmp_path / TABLE_FILE
    path.write_bytes(path.read_bytes().replace(b'"vocab_size":"120"', b'"vocab_size":"120 "'))
    with pytest.warns(UserWarning, match="Until then the factors are used"):
        loaded = load(tmp_path)
    torch.testing.assert_close(answers(loaded), answers(model))


def test_saving_without_a_table_removes_an_older_one(tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True)
    assert (tmp_path / TABLE_FILE).is_file()
    saved(tmp_path, seed=9)
    assert not (tmp_path / TABLE_FILE).exists()
    model = adapted("bert", fuse_on_save=True)
    model.save_pretrained(tmp_path, fuse=False)
    assert not (tmp_path / TABLE_FILE).exists()
    model.peft_config["default"].fuse_on_save = False
    model.save_pretrained(tmp_path, fuse=True)
    assert (tmp_path / TABLE_FILE).is_file()


def test_rows_that_no_table_can_hold_do_not_stop_a_save(tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True)
    model = adapted("bert", fuse_on_save=True)
    for name, parameter in model.named_parameters():
        if name.endswith("b2"):
            parameter.data.fill_(1e5)
    with pytest.warns(UserWarning, match="expected rows that float16 can hold.*The adapter is saved without its table"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / TABLE_FILE).exists()
    assert "No fused table" in (tmp_path / "README.md").read_text(encoding="utf-8")
    torch.testing.assert_close(answers(load(tmp_path)), answers(model))
    with pytest.raises(ValueError, match="expected rows that float16 can hold, got values up to 1000"):
        peft_aot.fuse(tmp_path, build("bert"), progress=False)


def test_deleting_an_adapter_forgets_its_table(tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True)
    model = load(tmp_path)
    model.load_adapter(tmp_path, adapter_name="second")
    model.delete_adapter("second")
    assert list(model.base_model.lookup.tables) == ["default"]
    model.add_adapter("second", config("bert", "SEQ_CLS"))
    model.set_adapter("second")
    mixed = answers(model.eval(), {**BATCH})
    assert not torch.allclose(mixed, answers(load(tmp_path)))


def test_copies_keep_fresh_tables_only(tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True, table_dtype="float32")
    model = load(tmp_path)
    expected = answers(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(again.base_model.lookup.tables) == ["default"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(answers(again), expected)
        with pytest.warns(UserWarning, match="have changed since"):
            nudge(again)
            answers(again)
    torch.testing.assert_close(answers(model), expected)
    nudge(model)
    assert not copy.deepcopy(model).base_model.lookup.tables


def test_moving_a_model_keeps_its_table(tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True)
    model = load(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers(model)
        model.to(torch.bfloat16)
        assert answers(model).dtype == torch.bfloat16
        model.to("cpu").float()
        answers(model)
    assert list(model.base_model.lookup.tables) == ["default"]


def test_compiled_models_use_the_table(tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True, table_dtype="float32")
    model = load(tmp_path)
    expected = answers(model)
    rows = model.base_model.lookup.tables["default"].rows
    asked: list[int] = []
    model.base_model.lookup.tables["default"].rows = lambda ids: (asked.append(len(ids)), rows(ids))[1]
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(answers(compiled), expected, atol=1e-5, rtol=1e-5)
    assert asked
