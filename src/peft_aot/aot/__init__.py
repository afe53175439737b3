"""AoT P-Tuning (arXiv 2305.10835) as a PEFT method."""

from .config import AoTConfig
from .layer import AoTLayer
from .model import AoTModel

__all__ = ["AoTConfig", "AoTLayer", "AoTModel"]
