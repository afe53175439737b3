"""What the outputs of an adapter on a model mean: from the card it was loaded with, else from the backbone.

The backbone's configuration speaks of the backbone's own head. An adapter may bring one of another size, of which it
says nothing.
"""

from __future__ import annotations

import dataclasses
import warnings

from peft.config import PeftConfig
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from peft_aot.head_card import HEAD_FILE, PROBLEM_TYPES, HeadCard, read_head_card
from peft_aot.model_labels import ModelLabels, labels_of
from peft_aot.source import Source

LABELLED = ("SEQ_CLS", "TOKEN_CLS")


def describe_head(
    model: nn.Module, config: PeftConfig, adapter_name: str, known: HeadCard, own: ModelLabels | None = None
) -> HeadCard:
    """Say what an adapter's outputs mean.

    Args:
        model: The backbone with the adapter.
        config: The adapter's configuration.
        adapter_name: Its name.
        known: What is known of it: the card it was loaded with, or one without labels, which follow then from the
            backbone.
        own: What the backbone says of its own head; by default what its configuration says now.
    """
    labelled = _task_type(config) in LABELLED
    if fits(known, model, config, adapter_name) and (known.labels or not labelled):
        return known
    labels, problem_type = _from_backbone(model, config, adapter_name, own) if labelled else ((), None)
    return dataclasses.replace(known, task_type=_task_type(config), problem_type=problem_type, labels=labels)


def head_labels(
    model: nn.Module, config: PeftConfig, adapter_name: str, known: HeadCard, own: ModelLabels
) -> HeadCard | None:
    """Return what an adapter's outputs mean if the backbone does not say it: it brought a card, or another size.

    Args:
        model: The backbone with the adapter.
        config: The adapter's configuration.
        adapter_name: Its name.
        known: What is known of it, as for `describe_head`.
        own: What the backbone says of its own head.

    Returns:
        None if the backbone speaks for it, or its kind of task has no labels.
    """
    if _task_type(config) not in LABELLED:
        return None
    outputs = head_outputs(model, config, adapter_name)
    outputs = len(own.id2label) if outputs is None else outputs
    if known.task_type == _task_type(config) and len(known.labels) == outputs:
        return known
    return None if outputs == len(own.id2label) else describe_head(model, config, adapter_name, known, own)


def find_card(source: Source, model: nn.Module, config: PeftConfig, adapter_name: str) -> HeadCard | None:
    """Return the card beside an adapter that was just loaded, if it is right; a warning says what is wrong with it.

    Args:
        source: Where it was loaded from.
        model: The backbone with the adapter.
        config: The adapter's configuration.
        adapter_name: Its name.
    """
    path = source.file(HEAD_FILE)
    if path is None:
        return None
    try:
        card = read_head_card(path)
    except ValueError as error:
        warnings.warn(f"{error}. The adapter is loaded without it.", stacklevel=6)
        return None
    except OSError as error:
        warnings.warn(
            f"expected a {HEAD_FILE} that can be read, got {error}; make it readable and load the adapter again. The "
            f"adapter is loaded without it.",
            stacklevel=6,
        )
        return None
    if not fits(card, model, config, adapter_name):
        own = head_outputs(model, config, adapter_name)
        expected = str(_task_type(config)) if own is None else f"{_task_type(config)} with {own} labels"
        warnings.warn(
            f"expected a card for {expected} in {path}, got one for {card.task_type} with {len(card.labels)} labels; "
            f"save the adapter again. The adapter is loaded without it.",
            stacklevel=6,
        )
        return None
    return card


def fits(card: HeadCard, model: nn.Module, config: PeftConfig, adapter_name: str) -> bool:
    """Tell whether a card can be that of an adapter: of its kind of task, with as many labels as its head has outputs.

    Args:
        card: The card.
        model: The backbone with the adapter.
        config: The adapter's configuration.
        adapter_name: Its name.
    """
    return card.task_type == _task_type(config) and head_outputs(model, config, adapter_name) in (
        None,
        len(card.labels),
    )


def head_outputs(model: nn.Module, config: PeftConfig, adapter_name: str) -> int | None:
    """Return how many outputs an adapter's own head has.

    Args:
        model: The backbone with the adapter.
        config: The adapter's configuration.
        adapter_name: Its name.

    Returns:
        None if its kind of task has no labels, or it has no head of its own that ends in a linear layer.
    """
    if _task_type(config) not in LABELLED:
        return None
    inside = f"{getattr(model, 'base_model_prefix', '')}."  # a pooler that is trained along is no head
    linears = [
        layer
        for name, wrapper in model.named_modules()
        if isinstance(wrapper, ModulesToSaveWrapper)
        and adapter_name in wrapper.modules_to_save
        and not name.startswith(inside)
        for layer in wrapper.modules_to_save[adapter_name].modules()
        if isinstance(layer, nn.Linear)
    ]
    return linears[-1].out_features if linears else None


def _from_backbone(
    model: nn.Module, config: PeftConfig, adapter_name: str, own_labels: ModelLabels | None
) -> tuple[tuple[str, ...], str | None]:
    """Return labels and problem type as the backbone's configuration has them, if it is the head's."""
    about = labels_of(model) if own_labels is None else own_labels
    named = {} if about is None else {str(index): str(label) for index, label in about.id2label.items()}
    own = head_outputs(model, config, adapter_name)
    outputs = len(named) if own is None else own
    about_this = len(named) == outputs
    plain = {str(index): f"LABEL_{index}" for index in range(outputs)}
    labels = tuple(named.get(index, label) if about_this else label for index, label in plain.items())
    stated = about.problem_type if about is not None and about_this else None
    problem_type: str | None = stated if stated in PROBLEM_TYPES else None
    if problem_type is None and _task_type(config) == "SEQ_CLS" and outputs:
        problem_type = "regression" if outputs == 1 else "single_label_classification"
    return labels, problem_type


def _task_type(config: PeftConfig) -> str | None:
    return None if config.task_type is None else str(getattr(config.task_type, "value", config.task_type))
