"""Logits and hidden states of a batch turned into answers. Numpy from here on: one example at a time is small."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit, softmax
from torch import Tensor

from .request import Classification, Embedding, Entity, MultiLabel, Regression, Tags, Word

Floats = npt.NDArray[np.float32]
OUTSIDE = "O"


def classification(probabilities: Sequence[float], labels: Sequence[str]) -> Classification:
    """Answer with the likeliest label; `probabilities` (labels,)."""
    highest = max(probabilities)
    return Classification(labels[probabilities.index(highest)], highest, dict(zip(labels, probabilities, strict=True)))


def multi_label(logits: Floats, labels: Sequence[str]) -> MultiLabel:
    """Answer with the labels that are likelier than not; `logits` (labels,)."""
    scores = dict(zip(labels, expit(logits).tolist(), strict=True))
    return MultiLabel(tuple(label for label, score in scores.items() if score >= 0.5), scores)


def regression(logits: Floats) -> Regression:
    """Answer with the number; `logits` (1,)."""
    return Regression(float(logits[0]))


def tags(logits: Floats, labels: Sequence[str], words: Sequence[tuple[int, int, int]], text: str) -> Tags:
    """Answer with a label per word, that of its first token, and with runs of words.

    Args:
        logits: (T, labels).
        labels: Their names.
        words: (token, start, end) of each word.
        text: The text.
    """
    probabilities = softmax(logits[[token for token, _, _ in words]], axis=-1) if words else np.empty((0, 1))
    found = []
    for row, (_, start, end) in zip(probabilities, words, strict=True):
        best = int(row.argmax())
        found.append(Word(labels[best], start, end, float(row[best])))
    return Tags(tuple(found), tuple(entities(found, text)))


def entities(words: Sequence[Word], text: str) -> list[Entity]:
    """Join words to entities: in a B-/I- scheme from one B- to the next, otherwise while the label stays the same.

    An I- that follows no word of its label begins an entity too, as conlleval counts it.
    """
    runs: list[tuple[str, list[Word]]] = []
    inside = False
    for word in words:
        prefix, dash, name = word.label.partition("-")
        scheme = bool(dash) and prefix in {"B", "I"}
        label = name if scheme else word.label
        if word.label == OUTSIDE:
            inside = False
            continue
        if inside and runs[-1][0] == label and not (scheme and prefix == "B"):
            runs[-1][1].append(word)
        else:
            runs.append((label, [word]))
        inside = True
    return [
        Entity(
            label, run[0].start, run[-1].end, text[run[0].start : run[-1].end], float(np.mean([w.score for w in run]))
        )
        for label, run in runs
    ]


def embeddings(hidden: Tensor, mask: Tensor, pooling: Sequence[str]) -> list[Embedding]:
    """Answer with sentence embeddings of length 1.

    Args:
        hidden: (B, T, D).
        mask: (B, T), 1 where there is a token.
        pooling: (B), "mean" over the tokens or "cls", the first token.
    """
    hidden = hidden.float()
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    first = hidden[torch.arange(len(hidden), device=hidden.device), mask.argmax(1)]
    wants_first = torch.tensor([way == "cls" for way in pooling], device=hidden.device).unsqueeze(1)
    vectors = torch.nn.functional.normalize(torch.where(wants_first, first, mean), dim=-1)
    return [Embedding(vector) for vector in vectors.cpu().numpy()]
