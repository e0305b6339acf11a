"""Judge arms over severities of the shift: their areas as any metric is judged, and where their mean lines cross."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy
from numpy.typing import NDArray

from adaptkit.comparison.grouping import RunGroup
from adaptkit.comparison.metrics import find_metric
from adaptkit.comparison.numbers import listed
from adaptkit.comparison.pairs import judge_pairs, shared_runs
from adaptkit.comparison.records import (
    ArmResult,
    ComparedRun,
    Crossing,
    Metric,
    PairResult,
    Robustness,
    SeverityArm,
    SeverityPair,
)
from adaptkit.comparison.statistics import estimate, paired_t
from adaptkit.errors import BadInput
from adaptkit.names import SEVERITY_ACCURACY, SEVERITY_AREA, SEVERITY_ZERO_SHOT
from adaptkit.settings.severities import accuracies_in, area, written

#: differences of accuracies that are 0 but for rounding
LEVEL = 1e-9


def over_common(group: RunGroup, metric: Metric) -> RunGroup:
    """Return the group with each run's area over the severities that its runs share.

    Raises BadInput where these are to be compared by area and share fewer than two.
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
        found = accuracies_in(run.metrics)
        whole = area(severities, [found[severity] for severity in severities]) if found else None
        rest = {key: value for key, value in run.metrics.items() if key != SEVERITY_AREA}
        return dataclasses.replace(run, metrics=rest if whole is None else rest | {SEVERITY_AREA: whole})

    arms = (dataclasses.replace(arm, runs=tuple(map(recomputed, arm.runs))) for arm in group.arms)
    return dataclasses.replace(group, arms=tuple(arms))


def common_severities(runs: Sequence[ComparedRun]) -> tuple[float, ...]:
    """Return the severities at which all these runs were tested."""
    every = [set(accuracies_in(run.metrics)) for run in runs]
    return tuple(sorted(set.intersection(*every))) if every else ()


def judge_robustness(arms: Sequence[ArmResult], margin: float, timings_comparable: bool) -> Robustness | None:
    """Return what arms are over the severities that their runs share; None if there are no such severities.

    Runs that were not tested over severities are left out, and said to be.
    """
    found = {arm.name: _tested(arm.runs) for arm in arms}
    runs = [run for tested in found.values() for run in tested]
    severities = common_severities(runs)
    if not severities:
        return None
    tested = [dataclasses.replace(arm, runs=tuple(found[arm.name])) for arm in arms if found[arm.name]]
    results = {arm.name: _arm(arm, severities) for arm in tested}
    tested.sort(key=lambda arm: -results[arm.name].score.mean)
    pairs: tuple[PairResult, ...] = ()
    if len(severities) > 1 and len(tested) > 1:
        chosen = find_metric(SEVERITY_AREA, runs)
        pairs = judge_pairs(tested, chosen, margin, timings_comparable)
    base = accuracies_in(runs[0].metrics, SEVERITY_ZERO_SHOT)
    zero_shot = tuple(base[severity] for severity in severities) if set(severities) <= set(base) else None
    return Robustness(
        severities=severities,
        zero_shot=zero_shot,
        zero_shot_area=None if zero_shot is None else area(severities, zero_shot),
        arms=tuple(results[arm.name] for arm in tested),
        pairs=tuple(_pair(pair) for pair in pairs),
        crossings=tuple(crossing for a, b in combinations(tested, 2) for crossing in crossings(a, b, severities)),
        notes=_notes(found, runs, severities),
    )


def crossings(a: ArmResult, b: ArmResult, severities: Sequence[float]) -> list[Crossing]:
    """Return where the means of two arms cross over the seeds that they share, straight between severities.

    Where they are level at a severity, and change places there, that is where they cross.
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
    decided = numpy.zeros(len(severities), dtype=bool)
    if len(pairs) > 1:
        test = paired_t(differences, 1 / len(pairs[0][0].predictions["shifted"].truth))
        decided = (test.low > 0) | (test.high < 0)
    found = []
    apart = numpy.flatnonzero(numpy.abs(means) > LEVEL).tolist()
    for left, right in pairwise(apart):
        if means[left] * means[right] > 0:
            continue
        low, high = severities[left], severities[right]
        at = low + (high - low) * float(means[left] / (means[left] - means[right]))
        if right > left + 1:  # level at what lies between
            at = (severities[left + 1] + severities[right - 1]) / 2
        rising, falling = (a.name, b.name) if means[right] > 0 else (b.name, a.name)
        sign = 1.0 if means[right] > 0 else -1.0
        found.append(
            Crossing(
                rising=rising,
                falling=falling,
                low=low,
                high=high,
                at=at,
                before=sign * float(means[left]),
                after=sign * float(means[right]),
                n=len(pairs),
                settled=bool(decided[left] and decided[right] and right == left + 1),
                sure_before=_nearest(severities, decided, means, range(left, -1, -1)),
                sure_after=_nearest(severities, decided, means, range(right, len(severities))),
            )
        )
    return found


def _nearest(
    severities: Sequence[float], decided: NDArray[numpy.bool_], means: NDArray[numpy.float64], steps: range
) -> float | None:
    """Return the first severity on the way at which a pair is decided, before its means change their sign again."""
    for index in steps:
        if means[index] * means[steps[0]] < 0:
            return None
        if decided[index]:
            return severities[index]
    return None


def _tested(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    return [run for run in runs if accuracies_in(run.metrics)]


def _arm(arm: ArmResult, severities: Sequence[float]) -> SeverityArm:
    lines = [[run.metrics[f"{SEVERITY_ACCURACY}{written(severity)}"] for severity in severities] for run in arm.runs]
    areas = [whole for line in lines if (whole := area(severities, line)) is not None]
    return SeverityArm(
        name=arm.name,
        slug=arm.slug,
        strategy=arm.strategy,
        accuracies=tuple(estimate(column) for column in zip(*lines, strict=True)),
        area=estimate(areas) if areas else None,
    )


def _pair(pair: PairResult) -> SeverityPair:
    return SeverityPair(
        pair.a, pair.b, pair.n, pair.verdict, pair.difference, pair.low, pair.high, pair.p, pair.p_unadjusted
    )


def _notes(
    found: dict[str, list[ComparedRun]], runs: Sequence[ComparedRun], severities: Sequence[float]
) -> tuple[str, ...]:
    notes = []
    if missing := [name for name, tested in found.items() if not tested]:
        notes.append(f"Over severities, there is nothing of {listed(missing)}: run again with --severity.")
    every = {severity for run in runs for severity in accuracies_in(run.metrics)}
    if len(every) > len(severities):
        shared = listed(map(written, severities))
        notes.append(f"The runs were tested at different severities: those that all share, {shared}, are compared.")
    return tuple(notes)
