"""The network: its formula, its start, and that autocast does not reach it."""

from __future__ import annotations

import pytest
import torch

from peft_aot import HiWiConfig
from peft_aot.hiwi.network import Network
from peft_aot.ops import ACTIVATIONS


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_equals_the_formula_row_by_row(activation: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = Network(5, HiWiConfig(r=4, activation=activation, init_weights=False)).double()
    rows = torch.randn(shape, dtype=torch.float64)
    f = ACTIVATIONS[activation]
    expected = []
    for row in rows.view(-1, 5):
        hidden = [f(sum(row[i] * network.down[i, k] for i in range(5))) for k in range(4)]
        expected.append(torch.stack([sum(hidden[k] * network.up[k, j] for k in range(4)) for j in range(5)]))
    torch.testing.assert_close(network(rows), torch.stack(expected).view(shape), atol=1e-12, rtol=1e-12)


def test_starts_at_zero_with_hidden_units_of_the_size_of_the_values() -> None:
    torch.manual_seed(0)
    network = Network(2000, HiWiConfig(r=500, activation="identity"))
    rows = torch.full((2000,), 0.3)
    assert torch.equal(network(rows), torch.zeros(2000))
    assert network.down.std().item() == pytest.approx(2000**-0.5, rel=0.01)
    assert network.hidden(rows).std().item() == pytest.approx(0.3, rel=0.1)


def test_random_start_for_tests() -> None:
    torch.manual_seed(0)
    assert Network(5, HiWiConfig(r=8, init_weights=False))(torch.ones(5)).abs().min() > 0


def test_autocast_changes_no_bit() -> None:
    torch.manual_seed(0)
    network = Network(40, HiWiConfig(r=8, init_weights=False))
    rows = torch.randn(3, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(rows)
        assert (rows @ network.down).dtype == torch.bfloat16, "or this test could not fail"
    assert found.dtype == torch.float32 and torch.equal(found, network(rows))


def test_computes_in_its_own_precision() -> None:
    network = Network(4, HiWiConfig(r=2))
    assert network(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.float32
