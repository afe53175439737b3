"""What a tuner must say of its method, and do beside PEFT, for its adapters to be saved, loaded, pushed and described.

Knows neither how files are written (`files`) nor what any method stores: each method fills this in.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from peft_aot.adapter_head import describe_head, find_card, head_labels, head_outputs
from peft_aot.head_card import HeadCard
from peft_aot.model_labels import SpokenLabels
from peft_aot.parts import versions
from peft_aot.source import Source


class StoredTuner(BaseTuner):
    """A tuner whose adapters this package writes and reads.

    Attributes:
        method: The method's name in messages and model cards, such as "AoT P-Tuning".
        paper: Address of its paper.
        tag: Its tag in model cards, beside "peft_aot".
        what: What an adapter stores and does, as the end of a sentence, for model cards.
        values: What its tensors are called, in the plural.
        shown: Fields of the configuration worth telling.
        fixed: Fields of the configuration that values depend on: none may differ from those of an adapter that the
            values are loaded into. None stands for a field that is filled in later.
        extra_files: Names of the files it may save beside the values.
        save_options: Arguments of `save_pretrained` and `push_to_hub` that this method adds to those of `files`.
        load_options: Arguments of `load_adapter` and `from_pretrained` that this method adds.
        sources: By adapter name, where it was loaded from or saved to last; kept by `files`.
        head_cards: By adapter name, what is known of its head beside what the backbone says: the card it was loaded
            with, and what the user said; kept by `files`.
    """

    method: ClassVar[str]
    paper: ClassVar[str]
    tag: ClassVar[str]
    what: ClassVar[str]
    values: ClassVar[str] = "values"
    shown: ClassVar[tuple[str, ...]] = ()
    fixed: ClassVar[tuple[str, ...]] = ()
    extra_files: ClassVar[tuple[str, ...]] = ()
    save_options: ClassVar[frozenset[str]] = frozenset()
    load_options: ClassVar[frozenset[str]] = frozenset()
    sources: dict[str, Source]
    head_cards: dict[str, HeadCard]

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.sources, self.head_cards, self._labels = {}, {}, SpokenLabels(model)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and forget where it came from and what its outputs mean."""
        super().delete_adapter(adapter_name)
        self.sources.pop(adapter_name, None)
        self.head_cards.pop(adapter_name, None)
        self.say_labels()

    # in words

    @classmethod
    def settings(cls, config: PeftConfig) -> dict[str, str]:
        """Return what is worth telling of a configuration, by name."""
        told = {"rank" if name == "r" else name.replace("_", " "): getattr(config, name) for name in cls.shown}
        return {
            name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            for name, value in told.items()
            if value is not None
        }

    @classmethod
    def summary(cls, config: PeftConfig) -> str:
        """Return the same in a few words, for model cards; may be empty."""
        return ", ".join(f"{name} {value}" for name, value in cls.settings(config).items())

    # beside PEFT's own saving and loading

    def check_saving(self, adapter_names: Sequence[str], safe_serialization: bool, options: Mapping[str, Any]) -> None:
        """Refuse a save that cannot be carried out, before anything is written.

        Args:
            adapter_names: The adapters to be saved.
            safe_serialization: Whether as safetensors.
            options: Those of `save_options` that were given.
        """

    def complete_saved(self, adapter_name: str, folder: Path, options: Mapping[str, Any]) -> str:
        """Write what belongs beside a saved adapter; whatever is written becomes part of the save, all or nothing.

        Args:
            adapter_name: The adapter.
            folder: Where its configuration and values have just been written.
            options: Those of `save_options` that were given.

        Returns:
            A sentence about it for the model card; may be empty.
        """
        return ""

    def adapter_loaded(self, adapter_name: str, source: Source, options: Mapping[str, Any]) -> None:
        """Make use of what was saved beside an adapter whose values have just been loaded.

        Args:
            adapter_name: The adapter.
            source: Where it was loaded from.
            options: Those of `load_options` that were given.
        """

    def made_from(self, adapter_name: str) -> Callable[[], None]:
        """Note what was made from an adapter's present values.

        Returns:
            To be called if they were replaced and are back, so that what was made from them counts as right again.
        """
        source = self.present_source(adapter_name)
        return (lambda: None) if source is None else functools.partial(self.note_source, adapter_name, source)

    def note_source(self, adapter_name: str, source: Source) -> None:
        """Note that an adapter has now the values that are in the files of `source`."""
        self.sources[adapter_name] = dataclasses.replace(source, versions=versions(self.model, adapter_name))

    def present_source(self, adapter_name: str) -> Source | None:
        """Return where an adapter's files are, or None if its values have changed since or were never in files."""
        source = self.sources.get(adapter_name)
        return source if source is not None and source.versions == versions(self.model, adapter_name) else None

    # what its outputs mean

    def head_card(self, adapter_name: str, given: Mapping[str, Any]) -> HeadCard:
        """Return the card to be saved with an adapter.

        Args:
            adapter_name: The adapter.
            given: Fields of the card as the user wants them, see `head_card.given_options`.
        """
        known = self._known_card(adapter_name, given)
        return describe_head(self.model, self.peft_config[adapter_name], adapter_name, known, self._labels.own)

    def say_labels(self, active: bool = True) -> None:
        """Let the backbone's configuration say what outputs mean: the active adapter's, or those of its own head."""
        own = self._labels.own
        names = [name for name in self.active_adapters if active and name in self.peft_config]
        if own is not None:
            cards = (
                head_labels(self.model, self.peft_config[name], name, self._known_card(name, {}), own) for name in names
            )
            self._labels.say(next((card for card in cards if card is not None), None))

    def outputs(self, adapter_name: str) -> int | None:
        """Return how many outputs a model with labels has with an adapter or, under another name, without any."""
        config, own = self.peft_config.get(adapter_name), self._labels.own
        found = None if config is None else head_outputs(self.model, config, adapter_name)
        return len(own.id2label) if found is None and own is not None else found

    def find_head_card(self, adapter_name: str, source: Source) -> HeadCard | None:
        """Return the card that was saved with an adapter whose values have just been loaded, if it is right."""
        return find_card(source, self.model, self.peft_config[adapter_name], adapter_name)

    def note_head_card(self, adapter_name: str, card: HeadCard | None) -> None:
        """Note the card of an adapter that has just been loaded, or that it has none."""
        self.head_cards.pop(adapter_name, None)
        if card is not None:
            self.head_cards[adapter_name] = card
        self.say_labels()

    def say_of_head(self, adapter_name: str, given: Mapping[str, Any]) -> None:
        """Note fields of an adapter's card, for every save from now on; what is not given stays as it is.

        Args:
            adapter_name: The adapter.
            given: Fields of the card as the user wants them, see `head_card.given_options`.
        """
        if given:
            self.head_cards[adapter_name] = self._known_card(adapter_name, given)

    def _known_card(self, adapter_name: str, given: Mapping[str, Any]) -> HeadCard:
        # without labels, they are the backbone's at the time of the save: names may be corrected until then
        known = self.head_cards.get(adapter_name, HeadCard(task_type=None))
        return dataclasses.replace(known, **given)


def stored_tuners() -> dict[str, type[StoredTuner]]:
    """Return the tuners of this package that PEFT knows, by its name of the method, such as "AOT"."""
    return {
        kind.value: tuner
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if isinstance(tuner, type) and issubclass(tuner, StoredTuner)
    }
