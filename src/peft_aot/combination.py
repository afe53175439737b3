"""Which sums of adapters can be asked for, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence


def check_combination(
    known: Sequence[str],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "linear",
) -> None:
    """Validate the arguments of `add_weighted_adapter`.

    Raises:
        ValueError: The sum does not exist; the message says why and what to do.
    """
    if combination_type != "linear":
        raise ValueError(
            f"expected combination_type='linear', got {combination_type!r}; adapters only add up linearly here"
        )
    if not adapters or len(adapters) != len(weights):
        raise ValueError(
            f"expected one weight per adapter, got {len(adapters)} adapters and {len(weights)} weights; pass both lists"
        )
    unknown = [name for name in adapters if name not in known]
    if unknown:
        raise ValueError(f"expected adapters among {sorted(known)}, got unknown {unknown}; load them first")
    if adapter_name in known:
        raise ValueError(
            f"expected a new adapter name, got '{adapter_name}', which exists; delete it or choose another"
        )
