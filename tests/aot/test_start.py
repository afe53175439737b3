"""Where training starts: at the backbone itself, from factors of the sizes that the rates were chosen for."""

from __future__ import annotations

import torch

from peft_aot import AoTConfig
from peft_aot.aot.reparam import KroneckerRows


def test_kronecker_starts_with_products_of_unit_length_a_quarter_of_which_all_tokens_share() -> None:
    torch.manual_seed(0)
    rows = KroneckerRows(AoTConfig(reparam="kron", r=16, vocab_size=250_000), width=8)
    assert not rows(torch.arange(50)).any()
    tokens = torch.randint(0, 250_000, (4000,))
    left, right = rows.w_l[tokens // len(rows.w_m)], rows.w_m[tokens % len(rows.w_m)]
    products = (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)
    assert abs(float(products.square().sum(1).mean()) - 1) < 0.05
    assert abs(float(products.mean(0).square().sum()) - 0.25) < 0.05
