"""What a batch was like, as data for who watches an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchRecord:
    """What a batch was like.

    Attributes:
        examples: Its requests.
        tasks: How many different tasks they were for.
        tokens: Their tokens.
        padded_tokens: The same with padding.
        seconds: How long it ran.
        waited: Seconds that each request had waited when it began.
        hits: Requests by where their rows came from, see `Prepared`.
    """

    examples: int
    tasks: int
    tokens: int
    padded_tokens: int
    seconds: float
    waited: Sequence[float]
    hits: Mapping[str, int]
