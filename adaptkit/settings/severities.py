"""Severities (multiples of a shift): parse them, name them in metrics, and compute the area under accuracies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from adaptkit.errors import nonempty
from adaptkit.names import SEVERITY_ACCURACY

NUMBER = re.compile(r"\d+(\.\d+)?(e-\d+)?")


def parse_severities(value: object) -> object:
    """Parse `0.5,1,1.5` or a single number as severities; `none` is an empty tuple."""
    if nonempty(value) in (None, "none"):
        return ()
    if isinstance(value, int | float):
        return (value,)
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def sorted_severities(values: Sequence[float]) -> tuple[float, ...]:
    """Sort severities, rounded to the six digits of their names in metrics; raise ValueError for duplicates."""
    names = [written(value) for value in values]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{min(repeated)} appears twice")
    return tuple(sorted(map(float, names)))


def written(severity: float) -> str:
    """Return a severity as text, as in the names of metrics."""
    return f"{severity + 0.0:g}"  # adding 0.0 turns -0 into 0


#: type of the setting: distinct multiples of a shift's amounts, in order
Severities = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)], ...],
    BeforeValidator(parse_severities),
    AfterValidator(sorted_severities),
]


def area(severities: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Return the mean accuracy over severities, by the trapezoidal rule; None for a single severity."""
    if len(severities) < 2:
        return None
    edges = zip(severities, severities[1:], accuracies, accuracies[1:], strict=False)
    total = sum((right - left) * (low + high) / 2 for left, right, low, high in edges)
    return total / (severities[-1] - severities[0])


def accuracies_in(metrics: Mapping[str, float], prefix: str = SEVERITY_ACCURACY) -> dict[float, float]:
    """Return the accuracy at each severity among the metrics of a run, in order."""
    by_name = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    # A metric of a plugin may have the same prefix.
    return dict(sorted((float(name), value) for name, value in by_name.items() if NUMBER.fullmatch(name)))
