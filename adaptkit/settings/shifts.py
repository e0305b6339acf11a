"""Build shifts and augmentations from text, or report problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from adaptkit.contracts import Shift
from adaptkit.errors import BadInput
from adaptkit.plugins.components import options_of, validated
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.settings import DEFAULT_SHIFT, Settings
from adaptkit.settings.severities import written


def parse_amounts(text: str, key: str = "shift") -> dict[str, str]:
    """Parse `rotate=45,noise=0.3`, in this order; `none` is an empty mapping. BadInput names the key.

    A name without an amount, as in `d4`, has an empty one: its default.
    """
    if text.strip() == "none":
        return {}
    amounts: dict[str, str] = {}
    for part in text.split(","):
        name, equals, amount = (piece.strip() for piece in part.partition("="))
        if not name or bool(equals) != bool(amount):
            raise BadInput(f"{key}: {part.strip()!r} is not name=amount, as in {DEFAULT_SHIFT}")
        if name in amounts:
            raise BadInput(f"{key}: {name} appears twice")
        amounts[name] = amount
    return amounts


def make_shifts(key: str, amounts: Mapping[str, Any], plugins: Plugins, problems: list[str]) -> dict[str, Shift]:
    """Return the shifts with these names and amounts; messages name the setting `key`."""
    shifts: dict[str, Shift] = {}
    for name, amount in amounts.items():
        try:
            cls = plugins.find("shift", name).cls
            field, option = next(iter(options_of(cls).items()))
            if amount == "":
                if option.default is dataclasses.MISSING:
                    raise BadInput(f"{key}: {name!r} is not name=amount, as in {DEFAULT_SHIFT}")
                amount = option.default
            shifts[name] = validated(cls, {field: amount}, key, rename={field: name})
        except BadInput as error:
            problems.extend(error.problems)
    return shifts


def make_severities(
    settings: Settings, shifts: Mapping[str, Shift], plugins: Plugins, problems: list[str]
) -> dict[float, tuple[Shift, ...]]:
    """Return the shifts at each severity; at 1 they are exactly those of the experiment."""
    severities = {}
    for severity in settings.severity:
        at_severity: list[str] = []
        multiplied = shifts
        if severity != 1:
            amounts = {name: _multiple(amount, severity) for name, amount in amounts_of(shifts).items()}
            multiplied = make_shifts("shift", amounts, plugins=plugins, problems=at_severity)
        severities[severity] = tuple(multiplied.values())
        problems += [f"severity {written(severity)}: {line}" for line in at_severity]
    return severities


def _multiple(amount: Any, severity: float) -> Any:
    """Multiply an amount, without the digits that binary fractions add (0.1 * 3)."""
    return f"{amount * severity:.15g}" if isinstance(amount, int | float) else amount


def make_augmentations(key: str, text: str | None, plugins: Plugins, problems: list[str]) -> dict[str, Shift]:
    """Return the shifts of the setting `augment` or `base.augment`."""
    try:
        amounts = parse_amounts(text or "none", key)
    except BadInput as error:
        problems.extend(error.problems)
        return {}
    return make_shifts(key, amounts, plugins=plugins, problems=problems)


def amounts_of(shifts: Mapping[str, Shift]) -> dict[str, float]:
    """Return the amount of each shift."""
    return {name: getattr(shift, next(iter(options_of(type(shift))))) for name, shift in shifts.items()}
