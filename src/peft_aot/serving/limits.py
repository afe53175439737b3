"""How much an engine takes in, and what makes a batch."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Limits of an engine.

    Attributes:
        batch_tokens: Tokens of a batch at most, padding counted; a single request may have more.
        batch_examples: Requests of a batch at most.
        wait: Seconds that a request may wait for others to share its batch when nothing else is running.
        queue: Requests that may wait at most; more are refused.
    """

    batch_tokens: int = 2048
    batch_examples: int = 64
    wait: float = 0.002
    queue: int = 1024

    @property
    def of_one_task(self) -> int:
        """Requests of one task that find room in an empty queue, see `Scheduler.room`."""
        return (self.queue + 1) // 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < (0 if field.name == "wait" else 1):
                raise ValueError(f"expected a positive number of {field.name}, got {value}; choose one above zero")
