"""HiWi (Liao, Meng and Monz 2023, arXiv 2305.16742) as a PEFT method: pretrained parameters are fed to an adapter."""

from .config import HiWiConfig
from .layer import HiWiLayer
from .model import HiWiModel

__all__ = ["HiWiConfig", "HiWiLayer", "HiWiModel"]
