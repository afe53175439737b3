"""Keys: one for every endpoint, one for those that change what is served.

They come from the environment or from files, never from the command line, which other users of a machine can read.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from .problems import Problem

API_KEY = "PEFT_AOT_API_KEY"
ADMIN_KEY = "PEFT_AOT_ADMIN_KEY"
CHALLENGE = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True)
class Keys:
    """The keys of a server; none opens it to everyone.

    Attributes:
        api: Opens every endpoint, and loading and unloading too if there is no `admin`.
        admin: Opens every endpoint, and alone opens loading and unloading.
    """

    api: bytes | None = None
    admin: bytes | None = None

    def __repr__(self) -> str:
        return f"Keys(api={'***' if self.api else None}, admin={'***' if self.admin else None})"

    def check(self, authorization: str | None, admin: bool) -> None:
        """Let a call in or refuse it.

        Args:
            authorization: Value of the header.
            admin: Whether the call changes what is served.

        Raises:
            Problem: 401 without the right key, 403 with a key that does not open this.
        """
        wanted = [key for key in (self.api, self.admin) if key is not None]
        if admin and self.admin is not None:
            wanted = [self.admin]
        elif self.api is None and not admin:
            return  # an admin key alone closes only what it is for
        if not wanted:
            return
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise Problem(
                401,
                "unauthorized",
                "expected a key, got none; send the header 'Authorization: Bearer KEY'",
                CHALLENGE,
            )
        key = given.strip().encode("latin-1", "replace")
        if any(hmac.compare_digest(key, each) for each in wanted):
            return
        if admin and self.api is not None and hmac.compare_digest(key, self.api):
            raise Problem(
                403, "forbidden", "expected the admin key, got the API key; loading and unloading need the other"
            )
        raise Problem(401, "unauthorized", "expected a valid key, got another; check the key you send", CHALLENGE)


def read_keys(
    api_file: Path | None = None, admin_file: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Keys:
    """Read the keys from files or, where none is named, from PEFT_AOT_API_KEY and PEFT_AOT_ADMIN_KEY.

    Raises:
        ValueError: A key is empty or cannot be sent in a header, or both are the same.
        OSError: A file cannot be read.
    """
    api = _read(api_file, API_KEY, environment)
    admin = _read(admin_file, ADMIN_KEY, environment)
    if api is not None and api == admin:
        raise ValueError("expected an admin key of its own, got the API key again; choose two different keys")
    return Keys(api, admin)


def check_exposure(host: str, keys: Keys, loading: bool) -> None:
    """Refuse to let everyone who reaches this machine change what it serves.

    Raises:
        ValueError: Loading is on, the host is not this machine alone, and there is no admin key.
    """
    if loading and keys.admin is None and not is_loopback(host):
        raise ValueError(
            f"expected an admin key for loading adapters on {host}, which others can reach, got none; set {ADMIN_KEY} "
            "or --admin-key-file, switch loading off with --no-loading, or serve on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches a host."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _read(file: Path | None, variable: str, environment: Mapping[str, str]) -> bytes | None:
    where = variable if file is None else str(file)
    key = environment.get(variable) if file is None else file.read_text(encoding="utf-8").strip()
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"expected a key of printable ASCII characters without spaces in {where}, got something else or nothing; "
            "make one with `openssl rand -hex 32`"
        )
    return key.encode("ascii")
