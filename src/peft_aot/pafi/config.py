"""The configuration of PaFi."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from peft.utils import PeftType

from peft_aot.attached.config import AttachedConfig
from peft_aot.suggestions import did_you_mean

from .mask import check_selection

SAVE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class PaFiConfig(AttachedConfig):
    """Configuration of PaFi (Liao, Meng and Monz 2023, arXiv 2305.16742, section 3.1).

    Without `target_modules` the mask is chosen among the weights and biases of all linear layers of the transformer
    blocks. `num_values`, `mask_fingerprint` and `mask_dtype` are filled in from the backbone, saved, and compared with
    the backbone the adapter is loaded into.

    Raises:
        ValueError: A value out of range; the message says what was expected and what to do.
    """

    sparsity: float = field(default=0.005, metadata={"help": "Share of the entries that is trained, in (0, 1]."})
    scope: Literal["global", "per_tensor"] = field(
        default="global",
        metadata={"help": "Whether the smallest entries are sought among all tensors together or in each."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start as the backbone; False starts with random changes (for tests)."}
    )
    save_dtype: str = field(
        default="float32", metadata={"help": f"Number format of the saved values, one of {sorted(SAVE_DTYPES)}."}
    )
    num_values: int | None = field(default=None, metadata={"help": "k, the number of entries; filled in."})
    mask_fingerprint: str | None = field(default=None, metadata={"help": "A hash of the mask; filled in."})
    mask_dtype: str | None = field(
        default=None, metadata={"help": "Number format of the weights that the mask was chosen from; filled in."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["PAFI"]
        check_selection(self.sparsity, self.scope)
        if self.save_dtype not in SAVE_DTYPES:
            hint = did_you_mean(str(self.save_dtype), SAVE_DTYPES)
            raise ValueError(f"expected a known save_dtype, got {self.save_dtype!r}; {hint}")
