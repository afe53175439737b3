"""Texts as a model reads them: ids, and for words where they stand in the text. Knows nothing of tasks and models."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding
from tokenizers import Tokenizer as Backend
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Encoded:
    """One text, or pair of texts, as ids.

    Attributes:
        ids: Token ids, special ones included.
        type_ids: Which of two texts each token is of.
        words: For each word its first token and its span of characters: (token, start, end); only if asked for.
    """

    ids: Sequence[int]
    type_ids: Sequence[int]
    words: Sequence[tuple[int, int, int]] = ()

    def __len__(self) -> int:
        return len(self.ids)


class Encoder:
    """Encodes single texts, in any thread: what batches are made of is not known yet.

    Args:
        tokenizer: A fast tokenizer with a padding token.
        longest: Longest input of the model in tokens.

    Raises:
        ValueError: No fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"expected a fast tokenizer, got {type(tokenizer).__name__}; load the backbone with its tokenizer.json"
            )
        self.longest = longest
        self._names = set(tokenizer.model_input_names)
        self._pad = int(tokenizer.pad_token_id or 0)
        self._left = tokenizer.padding_side == "left"
        self._cutting = copy.deepcopy(tokenizer)  # keeps what it last cut to, so that one thread at a time may use it
        self._lock = threading.Lock()
        whole: Backend = copy.deepcopy(tokenizer).backend_tokenizer
        whole.no_truncation()
        whole.no_padding()
        self._whole = whole

    def encode(self, text: str, pair: str | None, arguments: Mapping[str, Any], words: bool = False) -> Encoded:
        """Encode a text or a pair.

        Args:
            text: The text.
            pair: The second text.
            arguments: Of the tokenizer: `max_length`, `truncation`, `add_special_tokens`.
            words: Whether words are asked for.

        Raises:
            ValueError: Too long, and it may not be cut, or not enough.
        """
        special = bool(arguments.get("add_special_tokens", True))
        limit = min(int(arguments.get("max_length") or self.longest), self.longest)
        found: Encoding = self._whole.encode(text, pair, add_special_tokens=special)
        if len(found) > limit:
            found = self._cut(text, pair, limit, special, arguments.get("truncation", True), len(found))
        return Encoded(found.ids, found.type_ids, _words(found) if words else ())

    def _cut(self, text: str, pair: str | None, limit: int, special: bool, way: bool | str, length: int) -> Encoding:
        refusal = f"expected at most {limit} tokens, got {length}, and truncation={way!r} cannot cut enough; send less"
        if way is False:
            raise ValueError(refusal)
        with self._lock:
            try:
                cut = self._cutting(
                    text, pair, truncation=way, max_length=limit, add_special_tokens=special, verbose=False
                )
            except Exception as error:  # the tokenizers library raises nothing narrower
                raise ValueError(refusal) from error
        found: Encoding = cut.encodings[0]
        if len(found) > limit:  # fewer than the special tokens that are always there
            raise ValueError(refusal)
        return found

    def pad(self, batch: Sequence[Encoded], device: torch.device) -> dict[str, Tensor]:
        """Make the arguments of a model: int64 (B, T) each, as the tokenizer names them."""
        lengths = np.array([len(encoded) for encoded in batch])
        place, longest = np.arange(lengths.max()), lengths[:, None]
        there = place >= len(place) - longest if self._left else place < longest
        inputs = {"input_ids": _padded([e.ids for e in batch], there, self._pad)}
        inputs["attention_mask"] = there.astype(np.int64)
        if "token_type_ids" in self._names:
            inputs["token_type_ids"] = _padded([e.type_ids for e in batch], there, 0)
        return {name: torch.from_numpy(rows).to(device, non_blocking=True) for name, rows in inputs.items()}


def _padded(numbers: Sequence[Sequence[int]], there: npt.NDArray[np.bool_], filler: int) -> npt.NDArray[np.int64]:
    padded = np.full(there.shape, filler, dtype=np.int64)
    padded[there] = list(itertools.chain.from_iterable(numbers))
    return padded


def _words(found: Encoding) -> list[tuple[int, int, int]]:
    words: list[tuple[int, int, int]] = []
    last = None
    for token, (word, (start, end)) in enumerate(zip(found.word_ids, found.offsets, strict=True)):
        if word is None:
            continue
        if word != last:
            words.append((token, start, end))
        else:
            words[-1] = (words[-1][0], words[-1][1], end)
        last = word
    return words
