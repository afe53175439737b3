"""Bytes and numbers of things as people read them."""

from __future__ import annotations


def format_bytes(number: float) -> str:
    """Return a size in decimal units with three digits, such as `1.25 MB`."""
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def counted(number: int, noun: str) -> str:
    """Return a number of things, such as `1 run` or `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
