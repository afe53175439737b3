"""Which of a backbone's blocks a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence

from peft.utils.error import NoMatchingPeftModuleError

from peft_aot.backbone import Block
from peft_aot.tuner import matches

from .config import AoTConfig


def choose_blocks(config: AoTConfig, blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that a configuration asks for.

    Raises:
        NoMatchingPeftModuleError: `target_modules`, `layers_to_transform` and `exclude_modules` leave none.
    """
    numbers = config.layers_to_transform
    numbers = [numbers] if isinstance(numbers, int) else numbers
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    chosen = [
        block
        for block in blocks
        if (config.target_modules is None or matches(config.target_modules, block.name))
        and (not numbers or block.index in numbers)
        and (not patterns or block.pattern in patterns)
        and not matches(config.exclude_modules, block.name)
    ]
    if not chosen:
        raise NoMatchingPeftModuleError(
            f"expected target_modules={config.target_modules!r}, layers_to_transform={numbers}, layers_pattern="
            f"{patterns} and exclude_modules={config.exclude_modules!r} to leave a transformer block, got none of "
            f"{blocks[0].name} ... {blocks[-1].name}; leave them out to take all blocks"
        )
    return chosen
