"""AoT P-Tuning (arXiv 2305.10835) inside Hugging Face PEFT: `import peft_aot`, then use PEFT as ever."""

from peft_aot._registration import register

register()

from peft_aot.aot import AoTConfig, AoTLayer, AoTModel  # noqa: E402 - PEFT must know the methods first
from peft_aot.aot.bank import TaskBank  # noqa: E402
from peft_aot.aot.token_ids import token_ids  # noqa: E402
from peft_aot.bitfit import BitFitConfig, BitFitLayer, BitFitModel  # noqa: E402
from peft_aot.fusion import fuse  # noqa: E402
from peft_aot.hiwi import HiWiConfig, HiWiLayer, HiWiModel  # noqa: E402
from peft_aot.houlsby import HoulsbyConfig, HoulsbyLayer, HoulsbyModel  # noqa: E402
from peft_aot.pafi import PaFiConfig, PaFiLayer, PaFiModel  # noqa: E402
from peft_aot.tables import FuseReport, Table  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "AoTConfig",
    "AoTLayer",
    "AoTModel",
    "BitFitConfig",
    "BitFitLayer",
    "BitFitModel",
    "FuseReport",
    "HiWiConfig",
    "HiWiLayer",
    "HiWiModel",
    "HoulsbyConfig",
    "HoulsbyLayer",
    "HoulsbyModel",
    "PaFiConfig",
    "PaFiLayer",
    "PaFiModel",
    "Table",
    "TaskBank",
    "__version__",
    "fuse",
    "register",
    "token_ids",
]
