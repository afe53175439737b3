"""BitFit as a PEFT tuner: which biases there are."""

from __future__ import annotations

from collections.abc import Mapping

from peft_aot.attached.config import AttachedConfig
from peft_aot.attached.model import AttachedTuner
from peft_aot.attached.targets import additive_biases, check_in_memory, check_untied

from .config import BitFitConfig
from .layer import BitFitLayer


class BitFitModel(AttachedTuner):
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199) on a backbone.

    Args:
        model: The backbone; its biases change in place, and back.
        config: One `BitFitConfig`, or several by adapter name.
        adapter_name: The first adapter's name.

    Example:
        >>> model = get_peft_model(backbone, BitFitConfig(task_type="SEQ_CLS"))
    """

    method = "BitFit"
    paper = "https://arxiv.org/abs/2106.10199"
    tag = "bitfit"
    what = "it adds a learned difference to the biases of the backbone, and stores that (Ben Zaken et al. 2022)"
    config_cls = BitFitConfig
    prefix: str = "bitfit_layer.bitfit_"
    tuner_layer_cls = BitFitLayer

    def candidates(self, config: AttachedConfig) -> Mapping[str, str | None]:
        """Return every module with a bias.

        Raises:
            ValueError: There is none, as in Llama, T5 or ModernBERT.
        """
        found = additive_biases(self.model)
        if not found:
            raise ValueError(
                f"expected a backbone with biases, got {type(self.model).__name__}, which has none; use a method that "
                f"needs none: LoRA, AoTConfig, PaFiConfig or HiWiConfig(target='weight')"
            )
        return found

    def prepare(self, config: AttachedConfig, targets: list[str]) -> None:
        """Refuse biases that cannot be written, or whose change would show in another module."""
        check_in_memory(self.model, targets, "bias")
        check_untied(self.model, targets, "bias")
