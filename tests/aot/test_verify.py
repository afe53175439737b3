"""That a table of another backbone, or of replaced factors, is never used."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import peft_aot
from backbones import build, inputs, output
from models import adapted

BATCH = inputs("bert", "SEQ_CLS")


def saved(folder: Path, **fields: object) -> torch.Tensor:
    model = adapted("bert", **fields)
    model.save_pretrained(folder)
    return output(model, BATCH)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_right_table_is_used(dtype: str, tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True, table_dtype=dtype)
    for precision in (torch.float32, torch.bfloat16):
        assert PeftModel.from_pretrained(build("bert").to(precision), tmp_path).base_model.lookup.tables


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_table_fused_with_another_backbone_is_not_used(dtype: str, tmp_path: Path) -> None:
    expected = saved(tmp_path)
    peft_aot.fuse(tmp_path, build("bert", seed=5), dtype=dtype, progress=False)
    with pytest.warns(UserWarning, match="expected a table of rows for this backbone.*the factors are used"):
        loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
    assert not loaded.base_model.lookup.tables
    torch.testing.assert_close(output(loaded, BATCH), expected)


def test_factors_that_were_assigned_anew_end_the_table(tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
    state = {name: value.clone() * 2 for name, value in loaded.state_dict().items() if "aot_rows" in name}
    loaded.load_state_dict(state, strict=False, assign=True)
    with torch.no_grad(), pytest.warns(UserWarning, match="have changed since its fused table was loaded"):
        found = output(loaded, BATCH)
    plain = PeftModel.from_pretrained(build("bert"), tmp_path, use_table=False)
    plain.load_state_dict(state, strict=False)
    torch.testing.assert_close(found, output(plain, BATCH))


@pytest.mark.parametrize("tokens", [torch.tensor([3]), torch.arange(40, 44)])
def test_a_table_of_a_few_tokens_fused_with_another_backbone_is_not_used(tokens: torch.Tensor, tmp_path: Path) -> None:
    saved(tmp_path)
    peft_aot.fuse(tmp_path, build("bert"), token_ids=tokens, progress=False)
    assert PeftModel.from_pretrained(build("bert"), tmp_path).base_model.lookup.tables
    peft_aot.fuse(tmp_path, build("bert", seed=5), token_ids=tokens, progress=False)
    with pytest.warns(UserWarning, match="expected a table of rows for this backbone.*the factors are used"):
        assert not PeftModel.from_pretrained(build("bert"), tmp_path).base_model.lookup.tables


def test_a_pickle_does_not_use_a_table_that_was_replaced(tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True)
    model = PeftModel.from_pretrained(build("bert"), tmp_path)
    content, expected = pickle.dumps(model), output(model, BATCH)
    saved(tmp_path, fuse_on_save=True, r=5)
    with pytest.warns(UserWarning, match="stale.*the factors are used"):
        copied = pickle.loads(content)
    with torch.no_grad():
        torch.testing.assert_close(output(copied, BATCH), expected, rtol=2e-3, atol=2e-3)


def test_loading_under_inference_mode(tmp_path: Path) -> None:
    expected = saved(tmp_path, fuse_on_save=True, table_dtype="float32")
    with torch.inference_mode():
        loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
        torch.testing.assert_close(output(loaded, BATCH), expected, atol=1e-5, rtol=1e-5)
