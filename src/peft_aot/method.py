"""What a method is: how to write its PEFT configuration, which settings a search tries, what a reader should know.

Knows no method by name, as `task` knows no task. The methods themselves stand in `methods`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig, TaskType

from peft_aot.suggestions import did_you_mean
from peft_aot.task import Kind


@dataclass(frozen=True)
class AdapterRequest:
    """What a method needs to know to write its PEFT configuration.

    Attributes:
        model_type: The backbone's `config.model_type`.
        kind: What the head answers.
        new_modules: Modules that the checkpoint lacks (the head, sometimes a pooler): trained and saved.
        rank: Rank, for the methods that have one; None takes the method's default.
        virtual_tokens: Length of the prompt or prefix, for the methods that have one.
        overrides: Other fields of the method's PEFT configuration, such as `{"dropout": 0.0}`.
    """

    model_type: str
    kind: Kind
    new_modules: tuple[str, ...]
    rank: int | None = None
    virtual_tokens: int = 20
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shared(self) -> dict[str, Any]:
        """The fields that every PEFT configuration has.

        PEFT has no task type for multiple choice; without one it wraps the model as it is and trains what
        `modules_to_save` names.
        """
        return {
            "task_type": None if self.kind == "multiple_choice" else TaskType.SEQ_CLS,
            "modules_to_save": list(self.new_modules),
        }


Space = Mapping[str, tuple[Any, ...]]
"""A search space: name of a setting -> the values to try; the search order stands in `peft_aot.compare.space`."""


@dataclass(frozen=True)
class Method:
    """One way to adapt a backbone to a task.

    Attributes:
        name: What `--method` takes.
        title: What tables and pictures call it.
        summary: One line for people.
        learning_rate: Peak learning rate if the user gives none.
        space: What a search tries: four learning rates, and two values of what matters next. A setting is an option of
            `TrainOptions` (`peft_aot.compare.space.OPTIONS`) or a field of the PEFT configuration.
        configure: Writes the PEFT configuration; None trains the whole model without PEFT.
        group: Whose method it is: "ours", "peft", "reference" (the two ends: head only and everything) or "control".
        mixes: What one batch may mix: tasks with "any heads", "adapters" that share one head, or "no" two tasks.
        virtual_tokens: Whether the method prepends virtual tokens, which need room in the input.
        notes: What a reader of a comparison should know.
    """

    name: str
    title: str
    summary: str
    learning_rate: float
    space: Space
    configure: Callable[[AdapterRequest], PeftConfig] | None
    group: Literal["ours", "peft", "reference", "control"]
    mixes: Literal["any heads", "adapters", "no"] = "any heads"
    virtual_tokens: bool = False
    notes: str = ""


def configure(method: Method, request: AdapterRequest) -> PeftConfig | None:
    """Write the PEFT configuration of a method for one backbone and one kind of task; None for full fine-tuning.

    Raises:
        ValueError: The method cannot do it, or has no such setting; the message says what to choose instead.
    """
    if request.rank is not None and request.rank < 1:
        raise ValueError(f"expected a rank of at least 1, got {request.rank}; pass a positive number")
    if method.virtual_tokens and request.virtual_tokens < 1:
        raise ValueError(f"expected at least 1 virtual token, got {request.virtual_tokens}; pass a positive number")
    if method.virtual_tokens and request.kind == "multiple_choice":
        raise ValueError(
            f"expected a method that PEFT supports for multiple choice, got {method.name!r}; "
            "choose another, such as aot, lora, bitfit or full"
        )
    if method.configure is None:
        if request.overrides:
            raise ValueError(
                f"expected no settings of an adapter with {method.name!r}, got {', '.join(request.overrides)}; "
                "leave them out"
            )
        return None
    return _override(method, method.configure(request), request.overrides)


def _override(method: Method, config: PeftConfig, overrides: Mapping[str, Any]) -> PeftConfig:
    known = [entry.name for entry in dataclasses.fields(config) if entry.init]
    for name in overrides:
        if name not in known:
            raise ValueError(f"unknown setting {name!r} of method {method.name!r}; {did_you_mean(name, known)}")
    return dataclasses.replace(config, **overrides) if overrides else config
