"""A task as an engine serves it: what its head answers, and how its texts are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_aot.aot.config import AoTConfig
from peft_aot.head_card import HEAD_FILE, HeadCard, read_head_card
from peft_aot.source import Source

from .head import CLASSES, HeadClass, outputs_of
from .request import Kind, TaskInfo

EMBEDS = "FEATURE_EXTRACTION"
KINDS: Mapping[str | None, Kind] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


class Head(dict[str, nn.Module]):
    """The parts of a task's head by name, with what its outputs mean.

    Attributes:
        card: That.
    """

    card: HeadCard


@dataclass(frozen=True, eq=False)
class Served:
    """A task of an engine; never changed, so that a request keeps the one it was accepted for.

    Attributes:
        info: What is told of it.
        key: Its name in the bank, which no later task of the same name shares; None for the backbone alone.
        head: Its head.
        arguments: Of the tokenizer.
        pooling: Of an embedding.
    """

    info: TaskInfo
    key: str | None
    head: Mapping[str, nn.Module]
    arguments: Mapping[str, Any]
    pooling: str = "mean"


class HeadReaders:
    """Reads heads of every class that tasks on one body have; classes are made when the first task needs them.

    Args:
        body: The body.
        pooler: Its pooler, if its checkpoint has one.
    """

    def __init__(self, body: PreTrainedModel, pooler: nn.Module | None) -> None:
        self._body, self._pooler = body, pooler
        self.classes: dict[str, HeadClass] = {}

    def __call__(self, source: Source, config: AoTConfig, tensors: Mapping[str, Tensor]) -> Head:
        """Read the head beside an adapter; see `HeadReader`.

        Raises:
            ValueError: A task type that no engine serves, or a head that does not fit.
        """
        path, where = source.file(HEAD_FILE), str(source.model_id)
        card = None if path is None else read_head_card(path)
        given = config.task_type if card is None else card.task_type
        task_type = str(getattr(given, "value", given) or EMBEDS)
        head = Head()
        if task_type == EMBEDS:
            if tensors:
                raise ValueError(
                    f"expected an embedding task without a head in {where}, got {sorted(tensors)[0]}; save it with "
                    f"task_type='SEQ_CLS' or 'TOKEN_CLS' if it is one of those"
                )
        elif task_type in CLASSES:
            if task_type not in self.classes:
                self.classes[task_type] = HeadClass(task_type, self._body, self._pooler)
            head.update(self.classes[task_type].read(tensors, where))
        else:
            raise ValueError(
                f"expected a task type among {', '.join([*CLASSES, EMBEDS])} in {where}, got {task_type}; an engine "
                f"serves no other"
            )
        device = next(self._body.parameters()).device
        for part in head.values():
            part.to(device)
        head.card = _checked(card, task_type, outputs_of(head), where)
        return head


def _checked(card: HeadCard | None, task_type: str, outputs: int, where: str) -> HeadCard:
    if card is None:
        labels = tuple(f"LABEL_{number}" for number in range(outputs))
        problem = None
        if task_type == "SEQ_CLS":
            problem = "regression" if outputs == 1 else "single_label_classification"
        return HeadCard(task_type, problem, labels, {}, "mean")
    if outputs != len(card.labels):
        raise ValueError(
            f"expected as many labels as the head in {where} has outputs, {outputs}, got {len(card.labels)} in "
            f"{HEAD_FILE}; save the adapter again"
        )
    if card.problem_type == "regression" and outputs != 1:
        raise ValueError(
            f"expected a regression head of one output in {where}, got {outputs}; an engine answers with one number"
        )
    return card


def kind_of(card: HeadCard) -> Kind:
    """Return what a head answers."""
    if card.task_type == EMBEDS:
        return "embedding"
    if card.task_type == "TOKEN_CLS":
        return "tokens"
    return KINDS[card.problem_type or "single_label_classification"]


def served(
    name: str, key: str, head: Mapping[str, nn.Module], where: str, nbytes: int, table: bool, longest: int
) -> Served:
    """Make what an engine keeps of a task that has been read into its bank.

    Args:
        name: The task's name.
        key: Its name in the bank.
        head: What `HeadReaders` made.
        where: Where it was read from.
        nbytes: What it takes in memory.
        table: Whether it has a table.
        longest: Longest input of the backbone in tokens.
    """
    card = cast(Head, head).card
    kind = kind_of(card)
    labels = () if kind in {"regression", "embedding"} else card.labels
    length = min(int(card.tokenizer_args.get("max_length", longest)), longest)
    return Served(
        TaskInfo(name, kind, labels, length, where, nbytes, table), key, head, card.tokenizer_args, card.pooling
    )
