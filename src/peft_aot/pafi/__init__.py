"""PaFi, pruning-and-fine-tuning (Liao, Meng and Monz 2023, arXiv 2305.16742), as a PEFT method."""

from .config import PaFiConfig
from .layer import PaFiLayer
from .model import PaFiModel

__all__ = ["PaFiConfig", "PaFiLayer", "PaFiModel"]
