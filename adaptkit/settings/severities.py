"""Severities of a shift: which are asked for, what is recorded of a run over them, what a comparison finds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from adaptkit.errors import nonempty
from adaptkit.names import SEVERITY_ACCURACY

if TYPE_CHECKING:
    pass

NUMBER = re.compile(r"\d+(\.\d+)?(e-\d+)?")


def parse_severities(value: object) -> object:
    """Read `0.5,1,1.5` or one number as a list of severities, `none` as none."""
    if nonempty(value) in (None, "none"):
        return ()
    if isinstance(value, int | float):
        return (value,)
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def sorted_severities(values: Sequence[float]) -> tuple[float, ...]:
    """Return distinct severities in order, to the six digits that name them in metrics."""
    names = [written(value) for value in values]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{min(repeated)} is named twice")
    return tuple(sorted(map(float, names)))


def written(severity: float) -> str:
    """Return a severity as it stands in the name of a metric."""
    return f"{severity + 0.0:g}"  # 0.0 added: -0 is 0


#: the setting: distinct multiples of a shift's amounts, in order
Severities = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)], ...],
    BeforeValidator(parse_severities),
    AfterValidator(sorted_severities),
]


def area(severities: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Return the area under accuracy against severity, by trapezia, over the width; None for a single severity."""
    if len(severities) < 2:
        return None
    edges = zip(severities, severities[1:], accuracies, accuracies[1:], strict=False)
    whole = sum((right - left) * (one + other) / 2 for left, right, one, other in edges)
    return whole / (severities[-1] - severities[0])


def accuracies_in(metrics: Mapping[str, float], beginning: str = SEVERITY_ACCURACY) -> dict[float, float]:
    """Return the accuracy at each severity that a run recorded, in order."""
    found = {key.removeprefix(beginning): value for key, value in metrics.items() if key.startswith(beginning)}
    # A plugin may have a metric of such a name.
    return dict(sorted((float(name), value) for name, value in found.items() if NUMBER.fullmatch(name)))
