"""What a backbone's configuration says of its outputs: of its own head's or, while an adapter is active, of that one's.

Losses, `Trainer` and pipelines of transformers go by it. Knows nothing of adapters, only of cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from peft_aot.head_card import HeadCard


@dataclass(frozen=True)
class ModelLabels:
    """What a transformers model says of its outputs.

    Attributes:
        id2label: Names in the configuration, by number.
        label2id: Numbers, by name.
        problem_type: Which loss it computes; None if it goes by the labels it is given.
        num_labels: The model's own attribute of this name, which many classes shape logits by; None if it has none.
    """

    id2label: Mapping[Any, str]
    label2id: Mapping[str, Any]
    problem_type: str | None
    num_labels: int | None


def labels_of(model: nn.Module) -> ModelLabels | None:
    """Return what a model says of its outputs, or None if its configuration names no labels."""
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig) or config.id2label is None:
        return None
    stated: dict[str, Any] = {name: getattr(config, name, None) for name in ("id2label", "label2id", "problem_type")}
    return ModelLabels(
        dict(stated["id2label"]),
        dict(stated["label2id"] or {}),
        stated["problem_type"],
        model.__dict__.get("num_labels"),
    )


class SpokenLabels:
    """Lets a model say what a card says, and again what it said of itself.

    Args:
        model: The backbone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._own: ModelLabels | None = None
        self._said: ModelLabels | None = None

    @property
    def own(self) -> ModelLabels | None:
        """What the model says of its own head; as many names that the user has given it since are taken for that."""
        now, own, said = labels_of(self._model), self._own, self._said
        if now is None or own is None or said is None:
            return now
        renamed = now.id2label != said.id2label and len(now.id2label) == len(own.id2label)
        return now if renamed else own

    def say(self, card: HeadCard | None) -> None:
        """Let the model say what a card says, or what is its own if there is none."""
        own = self.own
        if own is None:
            return
        if card is None:
            _state(self._model, own)
            self._own = self._said = None
            return
        id2label = dict(enumerate(card.labels))
        self._said = ModelLabels(
            id2label,
            {label: number for number, label in id2label.items()},
            card.problem_type,
            None if own.num_labels is None else len(id2label),
        )
        self._own = own
        _state(self._model, self._said)


def _state(model: nn.Module, labels: ModelLabels) -> None:
    stated = {"id2label": dict(labels.id2label), "label2id": dict(labels.label2id), "problem_type": labels.problem_type}
    for name, value in stated.items():
        setattr(model.config, name, value)
    if labels.num_labels is not None:
        model.__dict__["num_labels"] = labels.num_labels
