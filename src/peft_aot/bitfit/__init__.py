"""BitFit (Ben Zaken et al. 2022, arXiv 2106.10199) as a PEFT method: every bias of the backbone is trained."""

from .config import BitFitConfig
from .layer import BitFitLayer
from .model import BitFitModel

__all__ = ["BitFitConfig", "BitFitLayer", "BitFitModel"]
