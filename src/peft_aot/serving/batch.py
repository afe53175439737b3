"""One batch from requests to answers: padded, its rows fetched ahead, run once for all tasks, answered task by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from peft_aot.aot.prefetch import Prefetched
from peft_aot.one_thread import all_threads, one_thread
from peft_aot.routing import BASE

from .answers import classification, embeddings, multi_label, regression, tags
from .encode import Encoded, Encoder
from .head import HeadClass
from .request import Answer, Request
from .served import Served

CLASS_OF = {"tokens": "TOKEN_CLS", "single_label": "SEQ_CLS", "multi_label": "SEQ_CLS", "regression": "SEQ_CLS"}


@dataclass(frozen=True, eq=False)
class Asked:
    """A request that was accepted.

    Attributes:
        request: The request.
        served: Its task, as it was then.
        encoded: Its text.
    """

    request: Request
    served: Served
    encoded: Encoded


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch whose rows have been fetched.

    Attributes:
        asked: Its requests.
        inputs: (B, T) each, the arguments of the backbone.
        names: (B), the tasks' names in the bank.
        handle: The rows.
        hits: Requests by where their rows came from: whole tables in "memory", a "table" on disk, "factors", or
            "none" for the backbone alone.
    """

    asked: Sequence[Asked]
    inputs: Mapping[str, Tensor]
    names: list[str]
    handle: Prefetched
    hits: Mapping[str, int]


class Batches:
    """Prepares batches and runs them. One thread may prepare while another runs.

    Args:
        model: The backbone with a bank of tasks.
        encoder: Encodes texts.
        classes: The classes of heads, by task type.
        device: Where the backbone is.
    """

    def __init__(
        self, model: PeftModel, encoder: Encoder, classes: Mapping[str, HeadClass], device: torch.device
    ) -> None:
        self._model, self._encoder, self._classes, self._device = model, encoder, classes, device

    def preparing(self) -> AbstractContextManager[None]:
        """Return what the thread that prepares is to do so in."""
        return one_thread(self._device)

    def running(self) -> AbstractContextManager[None]:
        """Return what the thread that runs is to do so in."""
        return all_threads()

    def prepare(self, asked: Sequence[Asked]) -> Prepared:
        """Pad a batch and fetch its rows."""
        inputs = self._encoder.pad([one.encoded for one in asked], self._device)
        names = [one.served.key or BASE for one in asked]
        handle: Prefetched = self._model.prefetch(inputs["input_ids"], names)
        return Prepared(asked, inputs, names, handle, Counter(_level(one.served, handle) for one in asked))

    def run(self, prepared: Prepared) -> list[Answer]:
        """Answer the requests of a batch, in order."""
        with torch.inference_mode():
            hidden: Tensor = self._model(
                **prepared.inputs, adapter_names=prepared.names, prefetched=prepared.handle
            ).last_hidden_state
            answers: dict[int, Answer] = {}
            kinds = [CLASS_OF.get(one.served.info.kind, "") for one in prepared.asked]
            for kind in dict.fromkeys(kinds):
                rows = [row for row, own in enumerate(kinds) if own == kind]
                asked = [prepared.asked[row] for row in rows]
                whole = len(rows) == len(kinds)
                states = hidden if whole else hidden[rows]
                inputs = {n: t if whole else t[rows] for n, t in prepared.inputs.items()}
                found = self._logits(kind, states, inputs, asked) if kind else _embedded(states, inputs, asked)
                answers.update(zip(rows, found, strict=True))
        return [answers[row] for row in range(len(kinds))]

    def _logits(
        self, kind: str, hidden: Tensor, inputs: Mapping[str, Tensor], asked: Sequence[Asked]
    ) -> Sequence[Answer]:
        found = self._classes[kind].run(hidden, inputs, [one.served.head for one in asked]).float().cpu()
        logits = found.numpy()
        probabilities = [] if kind == "TOKEN_CLS" else found.softmax(-1).tolist()
        answers: list[Answer] = []
        for number, one in enumerate(asked):
            info = one.served.info
            own = logits[number, ..., : len(info.labels) or 1]
            if info.kind == "tokens":
                offset = _offset(inputs["attention_mask"], number)
                answers.append(tags(own[offset:], info.labels, one.encoded.words, one.request.text))
            elif info.kind == "multi_label":
                answers.append(multi_label(own, info.labels))
            elif info.kind == "regression":
                answers.append(regression(own))
            else:
                answers.append(classification(probabilities[number][: len(info.labels)], info.labels))
        return answers


def _offset(mask: Tensor, row: int) -> int:
    return int(mask[row].argmax())  # where the text begins, if padding stands before it


def _embedded(hidden: Tensor, inputs: Mapping[str, Tensor], asked: Sequence[Asked]) -> Sequence[Answer]:
    return embeddings(hidden, inputs["attention_mask"], [one.served.pooling for one in asked])


def _level(served: Served, handle: Prefetched) -> str:
    if served.key is None:
        return "none"
    if handle.rows is None:
        return "memory"
    return "table" if served.info.has_table else "factors"
