"""The factor alpha / r of the rows: in the formula, in sums of adapters, in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import reference
from models import adapted, build
from peft_aot import AoTConfig
from peft_aot.aot.reparam import make_rows

SMALL = st.integers(1, 5)


def embedding(vocab: int, size: int) -> Tensor:
    return torch.randn(vocab, size, generator=torch.Generator().manual_seed(vocab))


@settings(max_examples=20, deadline=None)
@given(SMALL, SMALL, SMALL, st.sampled_from([None, 0.5, 3.0]), st.booleans())
def test_fc_rows_by_the_naive_formula(vocab: int, size: int, rank: int, alpha: float | None, normalize: bool) -> None:
    config = AoTConfig(r=rank, alpha=alpha, init_weights=False, normalize_embeddings=normalize)
    rows, table = make_rows(config, size, 4), embedding(vocab, size)
    nn.init.normal_(rows.b1)
    found = rows(torch.arange(vocab), table)
    for token in range(vocab):
        x = table[token] / table[token].norm() if normalize else table[token]
        expected = reference.fc_row(x, rows.w1, rows.b1, (alpha or 8) / rank * rows.w2, rows.b2)
        torch.testing.assert_close(found[token], expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(SMALL, SMALL, st.sampled_from([None, 0.5, 3.0]))
def test_kronecker_rows_by_the_naive_formula(vocab: int, rank: int, alpha: float | None) -> None:
    config = AoTConfig(r=rank, alpha=alpha, reparam="kron", init_weights=False, vocab_size=vocab)
    rows = make_rows(config, 3, 4)
    expected = (alpha or 8) / rank * reference.kronecker_table(rows.w_l, rows.w_m, rows.w_r)[:vocab]
    torch.testing.assert_close(rows(torch.arange(vocab), torch.zeros(vocab, 3)), expected, atol=1e-5, rtol=1e-4)


def test_hidden_units_start_with_unit_variance_whatever_the_embeddings_length() -> None:
    torch.manual_seed(0)
    rows = make_rows(AoTConfig(r=256), 64, 8)
    for length in (0.01, 1.0, 30.0):
        x = nn.functional.normalize(length * embedding(50, 64), dim=-1)
        assert float((x @ rows.w1).std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("reparam", ["fc", "kron"])
def test_a_sum_of_adapters_with_other_ranks_and_scales_is_exact(reparam: str) -> None:
    model = adapted("bert", "FEATURE_EXTRACTION", r=3, alpha=2.0, reparam=reparam)
    model.add_adapter("other", AoTConfig(r=5, alpha=9.0, reparam=reparam, init_weights=False))
    model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    assert (model.peft_config["sum"].r, model.peft_config["sum"].scale) == (8, 1.0)
    tokens, zeros = torch.arange(120), torch.zeros(120, 32)
    parts = [model.base_model.lookup.modules_of(name) for name in ("default", "other", "sum")]
    for modules in zip(*parts, strict=True):
        with torch.no_grad():
            one, two, both = (module(tokens, zeros + 1) for module in modules)
        torch.testing.assert_close(both, 0.5 * one - 2 * two, atol=1e-4, rtol=1e-4)
        assert both.abs().max() > 0.1


@pytest.mark.parametrize("reparam", ["fc", "kron", "constant"])
def test_the_default_is_written_down(reparam: str, tmp_path: Path) -> None:
    model = get_peft_model(build("bert", "SEQ_CLS"), AoTConfig(task_type="SEQ_CLS", r=4, reparam=reparam))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))["alpha"] == 8.0


def test_an_adapter_of_an_early_version_is_refused(tmp_path: Path) -> None:
    adapted("bert", "SEQ_CLS").save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    del config["alpha"]
    file.write_text(json.dumps(config), encoding="utf-8")
    backbone = build("bert", "SEQ_CLS")
    before = str(backbone)
    with pytest.raises(ValueError, match="expected an adapter with alpha in its configuration, got one of an early"):
        PeftModel.from_pretrained(backbone, tmp_path)
    assert str(backbone) == before
