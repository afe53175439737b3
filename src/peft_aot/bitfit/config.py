"""The configuration of BitFit."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from peft_aot.attached.config import AttachedConfig


@dataclass
class BitFitConfig(AttachedConfig):
    """Configuration of BitFit (Ben Zaken, Ravfogel and Goldberg 2022, arXiv 2106.10199).

    Without `target_modules` every bias of the backbone is trained; heads are named in `modules_to_save`.
    """

    init_weights: bool = field(
        default=True, metadata={"help": "Start as the backbone; False starts with random changes (for tests)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]
