"""Which adapters can be added up into one, and the configuration of their sum."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from peft_aot.combination import check_combination

from .config import AoTConfig


def combined_config(
    configs: Mapping[str, AoTConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "linear",
) -> AoTConfig:
    """Return the configuration of a weighted sum of adapters.

    Raises:
        ValueError: The sum does not exist; the message says why and what to do.
    """
    check_combination(list(configs), adapters, weights, adapter_name, combination_type)
    parts = [configs[name] for name in adapters]
    for field in ("reparam", "bottleneck_input", "activation", "normalize_embeddings", "kron_shape"):
        values = {getattr(part, field) for part in parts}
        if len(values) > 1:
            raise ValueError(
                f"expected adapters with one {field}, got {sorted(map(str, values))}; "
                f"combine adapters that were trained alike"
            )
    if len({_targets(part) for part in parts}) > 1:
        raise ValueError("expected adapters on the same blocks, got different target_modules; retrain one of them")
    config = copy.deepcopy(parts[0])
    config.r = sum(part.r for part in parts)
    config.alpha = float(config.r)  # the parts' own scales go into the factors
    return config


def _targets(config: AoTConfig) -> str:
    return repr((config.target_modules, config.exclude_modules, config.layers_to_transform, config.layers_pattern))
