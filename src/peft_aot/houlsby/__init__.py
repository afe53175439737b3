"""Houlsby adapters (Houlsby et al. 2019, arXiv 1902.00751) as a PEFT method: a bottleneck after each sub-layer."""

from .config import HoulsbyConfig
from .layer import HoulsbyLayer
from .model import HoulsbyModel

__all__ = ["HoulsbyConfig", "HoulsbyLayer", "HoulsbyModel"]
