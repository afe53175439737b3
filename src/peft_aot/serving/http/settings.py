"""What a server allows, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from .auth import Keys

POSITIVE = ("max_body", "max_texts", "max_characters", "timeout", "max_timeout", "body_timeout", "drain_timeout")


@dataclass(frozen=True)
class Settings:
    """Limits and permissions of a server.

    Attributes:
        keys: Who may call.
        loading: Whether tasks may be loaded and unloaded over HTTP.
        adapters: Folders that adapters may be loaded from.
        hub: Hub ids they may be loaded from: "org/name", or "org/*" for all of an organization.
        tasks: Folder whose subfolders are the tasks to begin with.
        watch: Seconds between two looks at that folder; None looks once.
        max_body: Bytes of a body at most.
        max_texts: Texts of a call at most.
        max_characters: Characters of a text at most.
        timeout: Seconds that a call may take if it does not say.
        max_timeout: Seconds that a call may ask for at most.
        body_timeout: Seconds within which a body must have arrived.
        drain_timeout: Seconds that a server that stops gives to the calls it has accepted.
        drain_delay: Seconds between the signal to stop and the end of listening, in which /readyz is 503 already, so
            that balancers send no more.
    """

    keys: Keys = Keys()
    loading: bool = True
    adapters: tuple[Path, ...] = ()
    hub: tuple[str, ...] = ()
    tasks: Path | None = None
    watch: float | None = None
    max_body: int = 1 << 20
    max_texts: int = 256
    max_characters: int = 100_000
    timeout: float = 30.0
    max_timeout: float = 300.0
    body_timeout: float = 20.0
    drain_timeout: float = 60.0
    drain_delay: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in POSITIVE and not 0 < value < math.inf:
                raise ValueError(f"expected a positive number of {each.name}, got {value}; choose one above zero")
        if self.watch is not None and not 0 < self.watch < math.inf:
            raise ValueError(f"expected a positive number of seconds to watch, got {self.watch}; choose one above zero")
        if self.drain_delay < 0:
            raise ValueError(f"expected drain_delay of at least 0 seconds, got {self.drain_delay}; choose another")
        if self.timeout > self.max_timeout:
            raise ValueError(
                f"expected a timeout of at most {self.max_timeout:g} s, got {self.timeout:g}; raise max_timeout too"
            )
