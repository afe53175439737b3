"""The tail of an error message about an unknown name: "did you mean 'y'?", or what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which of the known names comes closest to `name`, or list them all if none comes close."""
    names = list(known)
    by_folded = {entry.casefold(): entry for entry in names}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_folded[close[0]]!r}?"
    return f"choose one of {', '.join(names)}"
