"""A tuner whose layers stand beside modules: chooses modules, attaches layers, and looks after the life of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import _ExcludedModule
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peft_aot.sublayers import is_linear
from peft_aot.tuner import TaskTuner, matches

from .config import AttachedConfig
from .layer import AttachedLayer
from .targets import in_backbone, inside_any, own_modules

# Their modules see (T, B, D), or so in parts: the row of an example cannot be told from the shape.
TIME_FIRST = {"xlnet", "longformer", "led", "fsmt"}


class AttachedTuner(TaskTuner):
    """See the module; a method says which modules it can adapt.

    Attributes:
        tuner_layer_cls: The class of its layers.
    """

    shown: ClassVar[tuple[str, ...]] = ("target_modules", "exclude_modules")
    fixed: ClassVar[tuple[str, ...]] = ("target_modules", "exclude_modules")
    tuner_layer_cls: type[AttachedLayer]

    def candidates(self, config: AttachedConfig) -> Mapping[str, str | None]:
        """Return the modules that could be adapted, by name: None if they can, or why they cannot.

        Raises:
            ValueError: The backbone has none; the message says what else can be done.
        """
        raise NotImplementedError

    def defaults(self, config: AttachedConfig, able: list[str]) -> list[str]:
        """Return those of `able` that are adapted if the user does not choose: those of the backbone, not of heads."""
        return in_backbone(self.model, able)

    def prepare(self, config: AttachedConfig, targets: list[str]) -> None:
        """Check a configuration against the chosen modules, and complete it, before anything is changed."""

    # choosing and attaching

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        config = as_attached(peft_config)
        self._check_heads(config)
        self._targets = self._choose(config)
        self.prepare(config, self._targets)
        return config

    def _choose(self, config: AttachedConfig) -> list[str]:
        found = self.candidates(config)
        able = [name for name, problem in found.items() if problem is None]
        targets = config.target_modules
        if targets == INCLUDE_LINEAR_LAYERS_SHORTHAND:
            chosen, targets = [n for n in in_backbone(self.model, able) if is_linear(self.model.get_submodule(n))], None
        else:
            chosen = list(found) if targets is not None else self.defaults(config, able)
        kept = [
            name
            for name in chosen
            if (targets is None or matches(targets, name))
            and not matches(config.exclude_modules, name)
            and not inside_any(name, config.modules_to_save)
        ]
        if not kept:
            raise NoMatchingPeftModuleError(
                f"expected target_modules={config.target_modules!r}, exclude_modules={config.exclude_modules!r} and "
                f"modules_to_save={config.modules_to_save!r} to leave a module that {self.method} can adapt, got none "
                f"of {len(able)} ({', '.join(able[:3])}, ...); leave them out to take the usual ones"
            )
        unable = [f"{name} ({found[name]})" for name in kept if found[name] is not None]
        if unable:
            raise ValueError(
                f"expected target_modules that {self.method} can adapt, got {'; '.join(unable[:3])}; leave them out"
            )
        return kept

    def _check_heads(self, config: AttachedConfig) -> None:
        for name, module in own_modules(self.model):
            if self.tuner_layer_cls.child_name in module._modules and inside_any(name, config.modules_to_save):
                raise ValueError(
                    f"expected modules_to_save without modules that another adapter changes, got "
                    f"{config.modules_to_save}, which holds {name}; give both adapters the same modules_to_save"
                )

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:  # type: ignore[override]
        # a method where PEFT has a static one: targets are known from the model, not from the config alone
        if key in self._targets:
            return True
        return _ExcludedModule() if matches(as_attached(peft_config).exclude_modules, key) else False

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target._modules.get(self.tuner_layer_cls.child_name)
        if not isinstance(layer, AttachedLayer):
            layer = self.tuner_layer_cls(target, self, adapter_name)
        self.add(layer, adapter_name, as_attached(peft_config), current_key)

    def add(self, layer: AttachedLayer, adapter_name: str, config: AttachedConfig, name: str) -> None:
        """Give the layer beside module `name` one more adapter."""
        layer.update_layer(adapter_name, config)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the backbone; where adapters have been frozen or unfrozen by hand, take note of it first."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for layer in self.layers():
                layer.follow()
        return super().forward(*args, **kwargs)

    # mixed batches

    def _prepare_mixed_batches(self) -> None:
        super()._prepare_mixed_batches()
        if all(layer.mixes for layer in self.layers()):
            return
        kind = getattr(getattr(self.model, "config", None), "model_type", None)
        if kind in TIME_FIRST:
            raise ValueError(
                f"expected a backbone whose modules see the examples first, got {kind}, which turns them about; run "
                f"the adapters one at a time with set_adapter"
            )
        for layer in self.layers():
            layer.mix()

    # the life of adapters

    def layers(self) -> list[AttachedLayer]:
        """Return the attached layers, in the order of the backbone's modules."""
        return [module for module in self.model.modules() if isinstance(module, AttachedLayer)]

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Keep adapters in the weights, whatever is active, until `unmerge_adapter`; all of them or nothing."""
        before = {layer: layer.merged_adapters for layer in self.layers()}
        try:
            super().merge_adapter(adapter_names, safe_merge)
        except Exception:
            for layer, merged in before.items():
                layer.merged_adapters = merged
                layer.refresh()
            raise

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Return the backbone with adapters, by default the active ones, in its weights for good."""
        self.merge_adapter(adapter_names, safe_merge)
        self._leave(merged=True)
        self._leave_stacks()
        model: nn.Module = super().merge_and_unload(progressbar, safe_merge, adapter_names)
        return model

    def unload(self) -> nn.Module:
        """Return the backbone as it was before any adapter, with its own heads."""
        self._leave(merged=False)
        return super().unload()

    def _leave(self, merged: bool) -> None:
        for layer in self.layers():
            layer.leave(merged)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        child, prefix = f".{cls.tuner_layer_cls.child_name}", "base_model.model."
        saved = {key.partition(f"{child}.")[0].removeprefix(prefix) for key in state_dict if f"{child}." in key}
        here = {
            name.removesuffix(child).removeprefix(prefix)
            for name, module in model.named_modules()
            if isinstance(module, AttachedLayer) and adapter_name in module._get_available_adapters()
        }
        if saved != here:  # PEFT would load what fits
            only = sorted(saved - here) or sorted(here - saved)
            trained = [n for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]
            within = [name for name in only if inside_any(name, [path.removeprefix(prefix) for path in trained])]
            if within:
                raise ValueError(
                    f"expected an adapter that changes no module that is in another adapter's modules_to_save, got one "
                    f"that changes {within[0]}; give both adapters the same modules_to_save"
                )
            backbone = f", {config.base_model_name_or_path}" if config.base_model_name_or_path else ""
            raise ValueError(
                f"expected an adapter of {len(here)} modules of this backbone, got one of {len(saved)} modules that "
                f"differ in {', '.join(only[:3])}; load the backbone it was trained on{backbone}"
            )
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        return remapped


def as_attached(config: PeftConfig) -> AttachedConfig:
    """Return `config`, of which PEFT only knows that it is a `PeftConfig`."""
    if not isinstance(config, AttachedConfig):
        raise TypeError(f"expected an AttachedConfig, got {type(config).__name__}; do not mix methods in one model")
    return config
