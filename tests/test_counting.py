"""Whatever optimizer changes an adapter, what was made from it is made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

import peft_aot
from backbones import build, inputs, output
from models import METHODS, adapted, is_adapter

BATCH = inputs("bert", "SEQ_CLS")
OPTIMIZERS = {
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "fused SGD": lambda parameters: torch.optim.SGD(parameters, lr=1.0, fused=True),
    "foreach AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True),
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=2),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_shows_in_the_next_call(method: str, optimizer: str) -> None:
    model = adapted("bert", method=method)
    trained = [p for n, p in model.named_parameters() if p.requires_grad and is_adapter(n)]
    step = OPTIMIZERS[optimizer](trained)
    with torch.no_grad():
        before = output(model, BATCH)

    def closure() -> torch.Tensor:
        step.zero_grad()
        loss = output(model, BATCH).square().sum()
        loss.backward()
        return loss

    step.step(closure)
    with torch.no_grad():
        assert not torch.allclose(output(model, BATCH), before, atol=1e-4)


def test_a_fused_step_ends_the_use_of_a_table(tmp_path: Path) -> None:
    adapted("bert", fuse_on_save=True, table_dtype="float32").save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(build("bert"), tmp_path)
    model.set_adapter("default")  # makes it trainable
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    with torch.no_grad():
        before = output(model, BATCH)
    output(model, BATCH).square().sum().backward()
    optimizer.step()
    rows = peft_aot.AoTLayer
    assert [m for m in model.modules() if isinstance(m, rows)]
    for head in (p for n, p in model.named_parameters() if "classifier" in n):
        head.requires_grad_(False)
    with torch.no_grad():
        after = output(model, BATCH)
    model.base_model.lookup.detach("default")
    with torch.no_grad():
        torch.testing.assert_close(output(model, BATCH), after, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(after, before, atol=1e-4)
