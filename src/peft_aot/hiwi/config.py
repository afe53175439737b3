"""The configuration of HiWi. Knows which values make sense, not what they do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from peft_aot.attached.config import AttachedConfig
from peft_aot.ops import ACTIVATIONS
from peft_aot.suggestions import did_you_mean

TARGETS = ("bias", "weight")


@dataclass
class HiWiConfig(AttachedConfig):
    """Configuration of HiWi (Liao, Meng and Monz 2023, arXiv 2305.16742).

    Without `target_modules` both feed-forward projections of every block are adapted.

    Raises:
        ValueError: A value out of range; the message says what was expected and what to do.
    """

    r: int = field(
        default=16, metadata={"help": "Hidden size of the network in training; what is saved does not depend on it."}
    )
    target: Literal["bias", "weight"] = field(
        default="bias", metadata={"help": "What is fed to the network and changed: 'bias', or 'weight' row by row."}
    )
    activation: str = field(
        default="relu", metadata={"help": f"Nonlinearity of the network, one of {sorted(ACTIVATIONS)}."}
    )
    share: bool = field(
        default=False,
        metadata={"help": "One network for all modules of a width, in place of one for each module."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start as the backbone; False starts with random changes (for tests)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["HIWI"]
        if type(self.r) is not int or self.r <= 0:
            raise ValueError(f"expected r to be a positive integer, got {self.r!r}; 16 is a good start")
        for name, choices in (("target", TARGETS), ("activation", sorted(ACTIVATIONS))):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"expected a known {name}, got {value!r}; {did_you_mean(str(value), choices)}")
