"""Search spaces: which settings of a method are tried, and in which order. Knows nothing of data and training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftConfig

from peft_aot.method import AdapterRequest, Method, Space, configure
from peft_aot.suggestions import did_you_mean
from peft_aot.task import Kind

OPTIONS = ("learning_rate", "head_learning_rate", "weight_decay", "rank", "virtual_tokens")
"""Settings that are options of `TrainOptions`; all others are fields of the method's PEFT configuration."""
WHOLE = ("rank", "virtual_tokens")
"""Those that are counted."""
STANDS_FOR = {"r": "rank", "num_virtual_tokens": "virtual_tokens"}
"""Fields that an option sets: as an axis of its own, a field would make what is recorded of the option false."""


def points(space: Space) -> list[dict[str, Any]]:
    """List every combination of a search space's values, in the order in which a search tries them.

    The longest axis (of equals the first) turns fastest, and every round pairs its values with the others anew: as many
    trials as it has values have seen every value of every axis, so that a search that is cut short is not one-sided.

    Raises:
        ValueError: An axis has no values, or the same one twice.
    """
    for name, values in space.items():
        if not values:
            raise ValueError(f"expected values for {name!r} in a search space, got none; give some or leave it out")
        if twice := [value for place, value in enumerate(values) if value in values[:place]]:
            raise ValueError(
                f"expected different values for {name!r} in a search space, got {twice[0]!r} twice; a run repeated is "
                "no further trial, name each value once"
            )
    names = sorted(space, key=lambda name: -len(space[name]))
    sizes = [len(space[name]) for name in names]
    found = []
    for number in range(math.prod(sizes)):
        digits, rest = [], number
        for size in sizes:
            rest, digit = divmod(rest, size)
            digits.append(digit)
        turned = digits[:1] + [(digit + digits[0]) % size for digit, size in zip(digits[1:], sizes[1:], strict=True)]
        chosen = {name: space[name][digit] for name, digit in zip(names, turned, strict=True)}
        found.append({name: chosen[name] for name in space})
    return found


def parse_space(text: str) -> tuple[str, str, tuple[Any, ...]]:
    """Read one axis as a user writes it: `aot.learning_rate=1e-3,3e-3` -> ("aot", "learning_rate", (1e-3, 3e-3)).

    Raises:
        ValueError: It is not of that form.
    """
    name, equals, values = text.partition("=")
    method, dot, setting = name.strip().partition(".")
    if not (equals and dot and method and setting):
        raise ValueError(f"expected METHOD.SETTING=VALUE,VALUE, got {text!r}; such as aot.learning_rate=1e-3,3e-3")
    return method, setting, tuple(_value(part.strip()) for part in values.split(",") if part.strip())


def parse_spaces(texts: Iterable[str]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Read the axes that a user writes: method -> setting -> values.

    Raises:
        ValueError: One is not of the form that `parse_space` reads, or comes twice.
    """
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    for text in texts:
        method, setting, values = parse_space(text)
        axes = found.setdefault(method, {})
        if setting in axes:
            raise ValueError(
                f"expected each axis once, got {method}.{setting} twice; write all its values into one, as "
                f"{method}.{setting}=VALUE,VALUE"
            )
        axes[setting] = values
    return found


def head_rate_axes(methods: Iterable[str], rate: float) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Write the axes that give the head one learning rate under every method, whatever the rate of the rest.

    Not under "head", whose own learning rates are the head's.
    """
    return {name: {"head_learning_rate": (rate,)} for name in methods if name != "head"}


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.casefold(), text)


def search_points(
    method: Method, changes: Mapping[str, tuple[Any, ...]], trials: int, model_type: str, room: int
) -> list[dict[str, Any]]:
    """Choose what a method's search tries on every task.

    Args:
        method: The method.
        changes: Axes that replace those of `method.space` or come beside them.
        trials: Number of points wanted.
        model_type: The backbone's `config.model_type`.
        room: Positions of the backbone, which virtual tokens share with the text.

    Returns:
        `trials` points, fewer only where the whole space is smaller and that was not asked to be more.

    Raises:
        ValueError: A setting is unknown or without effect under the method, no point is valid, fewer points are valid
            than wanted, or none with one of the values that were asked for.
    """
    _check_axes(method, changes, model_type)
    every = points({**method.space, **changes})
    reasons = [_why_invalid(method, point, model_type, room) for point in every]
    wrong = [reason for reason in reasons if reason]
    valid = [point for point, reason in zip(every, reasons, strict=True) if not reason]
    if not valid:
        raise ValueError(
            f"expected a search space of {method.name!r} with a valid point, got {len(every)} without one "
            f"(the first: {wrong[0]}); widen the space"
        )
    if len(valid) < trials:
        raise ValueError(
            f"expected at least {trials} valid points in the search space of {method.name!r}, since every method gets "
            f"as many trials, got {len(valid)}{f' (not valid: {wrong[0]})' if wrong else ''}; widen the space or lower "
            "the number of trials"
        )
    for name, values in changes.items():
        for value in values:
            if all(point[name] != value for point in valid):
                reason = next(why for point, why in zip(every, reasons, strict=True) if point[name] == value)
                raise ValueError(
                    f"expected values of {name!r} that {method.name!r} can be trained with, got {value!r} ({reason}); "
                    "leave it out"
                )
    return valid[:trials]


def _check_axes(method: Method, names: Mapping[str, tuple[Any, ...]], model_type: str) -> None:
    """Refuse axes that the method does not have, or that would change nothing."""
    with_ranks = [_configure(method, {"rank": rank}, model_type) for rank in (1, 2)]
    ranked = with_ranks[0] != with_ranks[1]
    missing = {"rank": not ranked, "virtual_tokens": not method.virtual_tokens}
    axes = [name for name in OPTIONS if not missing.get(name)]
    config = with_ranks[0]
    fields = [] if config is None else [entry.name for entry in dataclasses.fields(config) if entry.init]
    fields = [name for name in fields if name not in STANDS_FOR]
    for name, values in names.items():
        option = STANDS_FOR.get(name, name)
        if name in axes or name in fields:
            continue
        if missing.get(option):
            raise ValueError(
                f"expected no {name} with {method.name!r}, got {', '.join(map(str, values))}; it would change "
                f"nothing, choose among {', '.join(axes)} and the fields of its PEFT configuration"
            )
        if name in STANDS_FOR:
            raise ValueError(
                f"expected the axis {option!r} of {method.name!r}, got {name!r}, which it stands for; use {option}"
            )
        raise ValueError(f"unknown setting {name!r} of method {method.name!r}; {did_you_mean(name, axes + fields)}")


def _why_invalid(method: Method, point: Mapping[str, Any], model_type: str, room: int) -> str:
    for name, value in point.items():
        if name in WHOLE and (not isinstance(value, int) or isinstance(value, bool)):
            return f"expected a whole number as {name}, got {value!r}"
        if name in OPTIONS and (not isinstance(value, (int, float)) or isinstance(value, bool)):
            return f"expected a number as {name}, got {value!r}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"expected a finite number as {name}, got {value!r}"
        if name.endswith("learning_rate") and value <= 0:
            return f"expected {name} above 0, got {value!r}"
        if name == "weight_decay" and value < 0:
            return f"expected {name} of at least 0, got {value!r}"
    tokens = point.get("virtual_tokens", 0)
    if tokens >= room:
        return f"expected virtual_tokens below the backbone's {room} positions, got {tokens!r}"
    try:
        _configure(method, point, model_type)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def _configure(method: Method, point: Mapping[str, Any], model_type: str) -> PeftConfig | None:
    return configure(method, request_of(point, model_type, "classification", ("classifier",)))


def request_of(point: Mapping[str, Any], model_type: str, kind: Kind, new_modules: tuple[str, ...]) -> AdapterRequest:
    """Write what `configure` needs of a point."""
    return AdapterRequest(
        model_type, kind, new_modules, point.get("rank"), point.get("virtual_tokens", 20), overrides_of(point)
    )


def overrides_of(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a point that are fields of the PEFT configuration."""
    return {name: value for name, value in point.items() if name not in OPTIONS}


def check_methods(changes: Mapping[str, object], names: tuple[str, ...]) -> None:
    """Refuse changes of the search space of a method that is not compared.

    Raises:
        ValueError: There is one.
    """
    for name in changes:
        if name not in names:
            raise ValueError(f"expected a search space of a compared method, got {name!r}; {did_you_mean(name, names)}")
