"""Compare arms over severities of the shift: the areas under their accuracies, and the crossings of their means.

They are shown without verdicts: the predictions at each severity are not kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy

from adaptkit.comparison.evidence import Design, estimate_accuracy
from adaptkit.comparison.grouping import RunGroup
from adaptkit.comparison.numbers import listed
from adaptkit.comparison.pairs import shared_runs
from adaptkit.comparison.records import ArmResult, ComparedRun, Estimate, Metric
from adaptkit.errors import BadInput
from adaptkit.names import SEVERITY_ACCURACY, SEVERITY_AREA, SEVERITY_ZERO_SHOT
from adaptkit.settings.severities import accuracies_in, area, written


@dataclass(frozen=True)
class SeverityArm:
    """Accuracies of one arm at each severity of the shift.

    `area` is the mean accuracy over the range of severities; None for one severity. It has no interval, because the
    accuracies at all severities are measured on the same images.
    """

    name: str
    slug: str
    strategy: str
    accuracies: tuple[Estimate, ...]
    area: float | None

    @property
    def score(self) -> float:
        """Return the score for ranking arms: the area, or the only accuracy."""
        return self.accuracies[0].mean if self.area is None else self.area


@dataclass(frozen=True)
class Crossing:
    """Crossing of the mean accuracies of two arms: `rising` is behind at severity `low` and ahead at severity `high`.

    `before` and `after` are the differences at `low` and `high`. They get no verdict: the predictions at each
    severity are not kept, so that their common test images cannot be taken into account.
    """

    rising: str
    falling: str
    low: float
    high: float
    at: float
    before: float
    after: float
    n: int


@dataclass(frozen=True)
class Robustness:
    """Results of a comparison over severities of the shift; `arms` are sorted by area, the largest first."""

    severities: tuple[float, ...]
    zero_shot: tuple[float, ...] | None
    zero_shot_area: float | None
    arms: tuple[SeverityArm, ...]
    crossings: tuple[Crossing, ...]
    notes: tuple[str, ...] = ()


#: smaller differences of accuracies are rounding errors
LEVEL = 1e-9


def over_common(group: RunGroup, metric: Metric) -> RunGroup:
    """Return the group with the area of each run recomputed over the severities that all runs share.

    Raises BadInput if the metric is the area and the runs share fewer than two severities.
    """
    tested = _tested([run for arm in group.arms for run in arm.runs])
    severities = common_severities(tested)
    if len({tuple(accuracies_in(run.metrics)) for run in tested}) < 2:
        return group
    if metric.key == SEVERITY_AREA and len(severities) < 2:
        raise BadInput(
            f"--metric: these runs have no two severities in common, and therefore no {SEVERITY_AREA} to compare"
        )

    def recomputed(run: ComparedRun) -> ComparedRun:
        accuracies = accuracies_in(run.metrics)
        whole = area(severities, [accuracies[severity] for severity in severities]) if accuracies else None
        rest = {key: value for key, value in run.metrics.items() if key != SEVERITY_AREA}
        return dataclasses.replace(run, metrics=rest if whole is None else rest | {SEVERITY_AREA: whole})

    arms = (dataclasses.replace(arm, runs=tuple(map(recomputed, arm.runs))) for arm in group.arms)
    return dataclasses.replace(group, arms=tuple(arms))


def common_severities(runs: Sequence[ComparedRun]) -> tuple[float, ...]:
    """Return the severities at which all of these runs were tested."""
    every = [set(accuracies_in(run.metrics)) for run in runs]
    return tuple(sorted(set.intersection(*every))) if every else ()


def judge_robustness(arms: Sequence[ArmResult], design: Design) -> Robustness | None:
    """Compare arms over the severities that their runs share; return None if they share none.

    Runs that were not tested over severities are left out; a note names them.
    """
    runs_by_arm = {arm.name: _tested(arm.runs) for arm in arms}
    runs = [run for tested in runs_by_arm.values() for run in tested]
    severities = common_severities(runs)
    if not severities:
        return None
    tested = [dataclasses.replace(arm, runs=tuple(runs_by_arm[arm.name])) for arm in arms if runs_by_arm[arm.name]]
    results = {arm.name: _arm(arm, severities, design) for arm in tested}
    tested.sort(key=lambda arm: -results[arm.name].score)
    base = accuracies_in(runs[0].metrics, SEVERITY_ZERO_SHOT)
    zero_shot = tuple(base[severity] for severity in severities) if set(severities) <= set(base) else None
    return Robustness(
        severities=severities,
        zero_shot=zero_shot,
        zero_shot_area=None if zero_shot is None else area(severities, zero_shot),
        arms=tuple(results[arm.name] for arm in tested),
        crossings=tuple(crossing for a, b in combinations(tested, 2) for crossing in crossings(a, b, severities)),
        notes=_notes(runs_by_arm, runs, severities),
    )


def crossings(a: ArmResult, b: ArmResult, severities: Sequence[float]) -> list[Crossing]:
    """Return the crossings of the means of two arms over shared seeds, with straight lines between severities.

    If the arms are equal at a severity and change order there, they cross at this severity.
    """
    pairs = shared_runs(a, b)
    if not pairs:
        return []
    one, other = (
        numpy.array([[accuracies_in(run.metrics)[severity] for severity in severities] for run in runs])
        for runs in zip(*pairs, strict=True)
    )
    differences = (one - other).T  # [severities, seeds]
    means = differences.mean(1)
    result = []
    unequal = numpy.flatnonzero(numpy.abs(means) > LEVEL).tolist()
    for left, right in pairwise(unequal):
        if means[left] * means[right] > 0:
            continue
        low, high = severities[left], severities[right]
        at = low + (high - low) * float(means[left] / (means[left] - means[right]))
        if right > left + 1:  # equal at the severities in between
            at = (severities[left + 1] + severities[right - 1]) / 2
        rising, falling = (a.name, b.name) if means[right] > 0 else (b.name, a.name)
        sign = 1.0 if means[right] > 0 else -1.0
        result.append(
            Crossing(
                rising=rising,
                falling=falling,
                low=low,
                high=high,
                at=at,
                before=sign * float(means[left]),
                after=sign * float(means[right]),
                n=len(pairs),
            )
        )
    return result


def _tested(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    return [run for run in runs if accuracies_in(run.metrics)]


def _arm(arm: ArmResult, severities: Sequence[float], design: Design) -> SeverityArm:
    lines = [[run.metrics[f"{SEVERITY_ACCURACY}{written(severity)}"] for severity in severities] for run in arm.runs]
    areas = [whole for line in lines if (whole := area(severities, line)) is not None]
    images = len(arm.runs[0].predictions["shifted"].truth)
    return SeverityArm(
        name=arm.name,
        slug=arm.slug,
        strategy=arm.strategy,
        accuracies=tuple(estimate_accuracy(column, images, design) for column in zip(*lines, strict=True)),
        area=sum(areas) / len(areas) if areas else None,
    )


def _notes(
    runs_by_arm: dict[str, list[ComparedRun]], runs: Sequence[ComparedRun], severities: Sequence[float]
) -> tuple[str, ...]:
    notes = []
    if missing := [name for name, tested in runs_by_arm.items() if not tested]:
        notes.append(f"{listed(missing)} was not tested over severities: run it again with --severity.")
    every = {severity for run in runs for severity in accuracies_in(run.metrics)}
    if len(every) > len(severities):
        shared = listed(map(written, severities))
        notes.append(f"The runs were tested at different severities. Only the shared ones are compared: {shared}.")
    return tuple(notes)
