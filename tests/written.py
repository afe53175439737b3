"""A naive reference for every method that writes into the backbone: the bare backbone, called with other parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call

from backbones import output


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], kwargs: dict[str, object]) -> Tensor:
        return output(self.model, batch, **kwargs)


def naive_output(
    bare: nn.Module, model: PeftModel, changed: Mapping[str, Tensor], batch: dict[str, Tensor], **kwargs: object
) -> Tensor:
    """Run `bare` with `changed` parameters by name, and with the heads that `model` has trained."""
    parameters = {f"model.{name}": value for name, value in bare.named_parameters()}
    parameters.update({f"model.{name}": value for name, value in changed.items()})
    for name, value in model.named_parameters():
        if ".modules_to_save.default" in name:
            clean = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            parameters[f"model.{clean}"] = value
    return functional_call(_Logits(bare), parameters, (batch, kwargs))


def check_gradients(model: PeftModel, batch: dict[str, Tensor], naive: Callable[[], Tensor], **kwargs: object) -> None:
    """Compare a model's output and the gradients of all that it trains with a naive computation, in float64."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found, expected = output(model, batch, **kwargs), naive()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    wanted = torch.autograd.grad(expected.square().sum(), list(trained.values()), allow_unused=True)
    got = torch.autograd.grad(found.square().sum(), list(trained.values()), allow_unused=True)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in wanted)
    for name, a, b in zip(trained, got, wanted, strict=True):
        if b is None:
            assert a is None or not a.any(), name
        else:
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
