"""What the configurations of all attached methods have: which modules, and what is trained beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.config import PeftConfig


@dataclass
class AttachedConfig(PeftConfig):
    """Fields that every attached method shares; each is described in its `metadata`."""

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to adapt: names, endings of names, or a regex; by default found."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave alone: names, endings of names, or a regex."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train and save beside the adapter, such as a head."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple, set)):  # a set cannot be written as JSON
                setattr(self, name, sorted(value))
