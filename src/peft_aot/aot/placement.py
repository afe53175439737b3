"""Where the rows of a model's tasks are kept: the choice, and what it means on the device the model runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import psutil
import torch

from peft_aot.suggestions import did_you_mean

Name = Literal["auto", "device", "staged", "ram", "mmap", "factors"]
NAMES: tuple[Name, ...] = get_args(Name)
Budget = int | Literal["auto", "keep"] | None
AUTO_SHARE = 4
"""A budget of "auto" is the free memory divided by this."""


@dataclass(frozen=True)
class Placement:
    """Where rows are kept.

    Attributes:
        name: "device" and "ram": whole tables in the memory of the accelerator or the machine. "mmap": tables stay in
            their files, mapped. "staged": likewise, and rows are copied to an accelerator beside the computation.
            "factors": tables are not used. "auto": "device" on an accelerator, "mmap" on the CPU.
        budget: Bytes for tables in memory (None: a quarter of what is free when the first comes) or, where none are,
            for rows that were computed (None keeps none).
    """

    name: Name = "auto"
    budget: int | None = None

    @property
    def uses_tables(self) -> bool:
        """Whether tables are used at all."""
        return self.name != "factors"

    def keeps_tables(self, device: torch.device) -> bool:
        """Whether whole tables are kept in the memory of the device that the model runs on, as far as there is room."""
        if device.type == "cpu":
            return self.name in ("ram", "device")
        return self.name in ("auto", "device")

    def stages(self, device: torch.device) -> bool:
        """Whether rows are copied to the device beside the computation."""
        return device.type != "cpu" and self.name in ("auto", "device", "staged")


def choose_placement(
    name: str | None, budget: Budget, page: int, device: torch.device, present: Placement = Placement()
) -> Placement:
    """Check a choice.

    Args:
        name: One of `NAMES`; None keeps the present one.
        budget: Bytes; "auto" is a quarter of the memory that is free now; "keep" is the present one; None means a
            quarter for tables in memory, when the first comes there, and no rows that are kept.
        page: Bytes that the rows of one token may take, of which a budget must hold one.
        device: Where the model runs.
        present: Where rows are kept now.

    Raises:
        ValueError: An unknown name, one that means nothing on this device, or a budget that is no good.
    """
    name = present.name if name is None else name
    budget = present.budget if budget == "keep" else budget
    known = next((known for known in NAMES if known == name), None)
    if known is None:
        raise ValueError(f"expected a known table_placement, got {name!r}; {did_you_mean(str(name), list(NAMES))}")
    if known == "ram" and device.type != "cpu":
        raise ValueError(
            f"expected table_placement 'ram' for a model on the CPU, got one on {device.type}; choose 'device', or "
            f"'staged', for which the system keeps the tables' pages in RAM"
        )
    placement = Placement(known)
    if budget == "auto":
        return Placement(known, free_memory(device if placement.keeps_tables(device) else CPU) // AUTO_SHARE)
    if budget is not None and (type(budget) is not int or budget < page):
        raise ValueError(
            f"expected a memory_budget in bytes of at least {page}, which the rows of one token may take, got "
            f"{budget!r}; such as {256 * 2**20}, or 'auto'"
        )
    return Placement(known, budget)


CPU = torch.device("cpu")


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free now on a device."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    return int(torch.accelerator.get_memory_info(device)[0])
