"""The configuration of Houlsby adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from peft.utils import PeftType

from peft_aot.attached.config import AttachedConfig
from peft_aot.ops import ACTIVATIONS
from peft_aot.suggestions import did_you_mean

PLACEMENTS = ("both", "attention", "ffn")


@dataclass
class HoulsbyConfig(AttachedConfig):
    """Configuration of Houlsby adapters (Houlsby et al. 2019, arXiv 1902.00751).

    Without `target_modules` they follow the projections that end the attention and feed-forward sub-layers of every
    block, which are found by structure.

    Raises:
        ValueError: A value out of range; the message says what was expected and what to do.
    """

    r: int = field(default=64, metadata={"help": "Size of the bottleneck, m in the paper."})
    activation: str = field(default="gelu", metadata={"help": f"Nonlinearity, one of {sorted(ACTIVATIONS)}."})
    dropout: float = field(default=0.0, metadata={"help": "In training, on the bottleneck."})
    placement: Literal["both", "attention", "ffn"] = field(
        default="both", metadata={"help": "After which sub-layers: 'both', 'attention' or 'ffn'."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the blocks that get adapters; by default all."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start as the identity; False starts with random outputs (for tests)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["HOULSBY"]
        if type(self.r) is not int or self.r <= 0:
            raise ValueError(f"expected r to be a positive integer, got {self.r!r}; 64 is a good start")
        for name, choices in (("activation", ACTIVATIONS), ("placement", PLACEMENTS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"expected a known {name}, got {value!r}; {did_you_mean(str(value), list(choices))}")
        if not isinstance(self.dropout, (int, float)) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"expected dropout in [0, 1), got {self.dropout!r}; 0 switches it off")
        self._check_choice_of_modules()

    def _check_choice_of_modules(self) -> None:
        given = self.layers_to_transform
        if given is not None:
            numbers = [given] if isinstance(given, int) else list(given)
            if not numbers or any(type(number) is not int or number < 0 for number in numbers):
                raise ValueError(
                    f"expected layers_to_transform to be numbers of blocks, counted from 0, got {given!r}; leave it "
                    f"out to take all blocks"
                )
            self.layers_to_transform = sorted(numbers)
        if self.target_modules is not None and (given is not None or self.placement != "both"):
            raise ValueError(
                f"expected target_modules without layers_to_transform and placement, which choose among what is found, "
                f"got them with layers_to_transform={given!r} and placement={self.placement!r}; name all modules in "
                f"target_modules"
            )


def as_houlsby(config: Any) -> HoulsbyConfig:
    """Return `config`, of which callers only know that it is a configuration."""
    if not isinstance(config, HoulsbyConfig):
        raise TypeError(f"expected a HoulsbyConfig, got {type(config).__name__}; do not mix methods in one model")
    return config
