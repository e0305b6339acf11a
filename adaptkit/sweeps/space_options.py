"""Read what a user wants to be searched: `lr=1e-4..1e-1/log` for all strategies, `lora.rank=2,4,8` for one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adaptkit.errors import BadInput, suggestion
from adaptkit.offers import options_of, read_dimension
from adaptkit.ranges import GRAMMAR, Choice, Dimension, Range, parse_dimension
from adaptkit.request import Arm
from adaptkit.resolve import LR


def asked_for(arms: Sequence[Arm], texts: Sequence[str], problems: list[str]) -> dict[str, dict[str, Dimension]]:
    """Return by strategy what these texts say; note those that cannot be read among the problems."""
    found: dict[str, dict[str, Dimension]] = {arm.strategy: {} for arm in arms}
    common: dict[str, Dimension] = {}
    named: set[str] = set()
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        prefix, dot, option = key.rpartition(".")
        owners = {arm.strategy: type(arm.checked) for arm in arms}
        try:
            if not (equals and key and value):
                raise BadInput(f"--space {text}: write key=range, as in lr=1e-4..1e-1/log or lora.rank=2,4,8")
            if key in named:
                raise BadInput(f"--space {key}: is given twice")
            named.add(key)
            if key == LR:
                common[LR] = _rate_dimension(f"--space {key}", value)
            elif not dot:
                having = [name for name, cls in owners.items() if option in options_of(cls)]
                hint = f"; did you mean {having[0]}.{option}?" if having else suggestion(key, _known(owners))
                raise BadInput(f"--space {key}: unknown key{hint}")
            elif prefix not in owners:
                raise BadInput(f"--space {key}: strategy {prefix} is not tuned{suggestion(prefix, owners)}")
            elif option in options_of(owners[prefix]):
                found[prefix][option] = read_dimension(owners[prefix], option, value, "--space ")
            elif option == LR:
                found[prefix][LR] = _rate_dimension(f"--space {key}", value)
            else:
                raise BadInput(f"--space {key}: unknown option{suggestion(key, _known(owners))}")
        except BadInput as error:
            problems.extend(error.problems)
    return {name: {**common, **own} for name, own in found.items()}


def _known(owners: Mapping[str, type[Any]]) -> list[str]:
    return [LR, *(f"{name}.{key}" for name, cls in owners.items() for key in (LR, *options_of(cls)))]


def _rate_dimension(title: str, text: str) -> Dimension:
    dimension = parse_dimension(title, text)
    try:
        if isinstance(dimension, Choice):
            dimension = Choice(tuple(float(value) for value in dimension.values))
    except ValueError:
        raise BadInput(f"{title}: {text!r} holds what is no number; {GRAMMAR}") from None
    values = (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension.values
    for value in values:
        if not (value > 0 and math.isfinite(value)):
            what = "finite" if value == math.inf else "greater than 0"
            raise BadInput(f"{title}: a learning rate must be {what}, not {value:g}")
    shown = [f"{value:g}" for value in values]
    if repeated := [name for index, name in enumerate(shown) if name in shown[:index]]:
        raise BadInput(f"{title}: {text!r} names {repeated[0]} twice")
    return dimension
