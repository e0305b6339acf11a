"""Severities of a shift: which are asked for, what is recorded of a run over them, what a comparison finds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from adaptkit.errors import given

if TYPE_CHECKING:
    from adaptkit.comparison import Estimate

#: the metric that ranks arms over severities, and the beginnings of those at a single one
AREA, ACCURACY, ZERO_SHOT = "final/severity_area", "severity/accuracy_", "severity/zero_shot_"
NUMBER = re.compile(r"\d+(\.\d+)?(e-\d+)?")


@dataclass(frozen=True)
class SeverityArm:
    """An arm over the severities: its mean accuracy at each, and the area below them (None for one severity)."""

    name: str
    slug: str
    strategy: str
    accuracies: tuple[Estimate, ...]
    area: Estimate | None

    @property
    def score(self) -> Estimate:
        """Return what arms are ranked by."""
        return self.area or self.accuracies[0]


@dataclass(frozen=True)
class SeverityPair:
    """Two arms' areas, `a` minus `b` over the seeds that they share, judged as by any metric, by seeds alone."""

    a: str
    b: str
    n: int
    verdict: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_unadjusted: float | None


@dataclass(frozen=True)
class Crossing:
    """Where the mean lines of two arms cross: `rising` is behind at the severity `low` and ahead at `high`.

    `settled` says that the pair's 95 % intervals exclude 0 at both; `before` and `after` are the differences there.
    `sure_before` and `sure_after` are the nearest severities on each side, with no other crossing between, at which
    the interval excludes 0.
    """

    rising: str
    falling: str
    low: float
    high: float
    at: float
    before: float
    after: float
    n: int
    settled: bool
    sure_before: float | None
    sure_after: float | None


@dataclass(frozen=True)
class Robustness:
    """What a comparison finds over severities, as fractions: `arms` by area, the largest first."""

    severities: tuple[float, ...]
    zero_shot: tuple[float, ...] | None
    zero_shot_area: float | None
    arms: tuple[SeverityArm, ...]
    pairs: tuple[SeverityPair, ...]
    crossings: tuple[Crossing, ...]
    notes: tuple[str, ...] = ()


def parse_severities(value: object) -> object:
    """Read `0.5,1,1.5` or one number as a list of severities, `none` as none."""
    if given(value) in (None, "none"):
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


def accuracies_in(metrics: Mapping[str, float], beginning: str = ACCURACY) -> dict[float, float]:
    """Return the accuracy at each severity that a run recorded, in order."""
    found = {key.removeprefix(beginning): value for key, value in metrics.items() if key.startswith(beginning)}
    # A plugin may have a metric of such a name.
    return dict(sorted((float(name), value) for name, value in found.items() if NUMBER.fullmatch(name)))
