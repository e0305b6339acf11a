"""Judge pairs of arms: differences for new images, verdicts and what would decide; and Pareto dominance.

Two runs are paired if they used the same images in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy
from numpy.typing import NDArray

from adaptkit.comparison.classes import class_f1
from adaptkit.comparison.evidence import Design, Scores, infer, infer_domain, score_run, subtract
from adaptkit.comparison.inference import MOST_RUNS, Inference, infer_runs, runs_needed, units_needed
from adaptkit.comparison.metrics import is_cost
from adaptkit.comparison.numbers import SAME
from adaptkit.comparison.records import COSTS, ArmResult, ComparedRun, DomainResult, Metric, PairResult
from adaptkit.comparison.statistics import holm, verdict
from adaptkit.names import (
    DRAWN_IMAGES_TAG,
    FINAL_GAIN,
    FINAL_RETENTION,
    PAIR_ID_TAG,
    POOL_IMAGES_TAG,
    TIME_INFERENCE_RATIO,
    TIME_TRAIN_SECONDS,
    TUNED_ON_TAG,
)


def pair_id(run: ComparedRun) -> str:
    """Return the id that paired runs share. For older runs without this id, return the seed."""
    return run.tags.get(PAIR_ID_TAG, str(run.seed))


def shared_runs(a: ArmResult, b: ArmResult) -> list[tuple[ComparedRun, ComparedRun]]:
    """Return the paired runs of two arms, in the order of their seeds."""
    partners = {pair_id(run): run for run in b.runs}
    return [(run, partners[pair_id(run)]) for run in a.runs if pair_id(run) in partners]


@dataclass(frozen=True)
class _Couple:
    """Two arms with the positions of their paired runs among all runs, and what these say about the difference."""

    a: ArmResult
    b: ArmResult
    first: list[int]
    second: list[int]
    inference: Inference | None
    domains: tuple[Inference, ...]
    only_models: bool


def judge_pairs(
    arms: Sequence[ArmResult], metric: Metric, design: Design, *, margin: float, timings_comparable: bool
) -> tuple[PairResult, ...]:
    """Compare all pairs of these arms, which are sorted by score, the best first."""
    runs = [run for arm in arms for run in arm.runs]
    couples = list(_couples(arms, runs, metric, design))
    values, gains, retentions = (_column(runs, key) for key in (metric.key, FINAL_GAIN, FINAL_RETENTION))
    predicted = numpy.stack([run.predictions["shifted"].predicted for run in runs])
    f1 = class_f1(runs)
    pairs = []
    for couple, tested in zip(couples, _tested(couples, metric, design, margin=margin), strict=True):
        a, b, first, second = couple.a, couple.b, couple.first, couple.second
        differences = values[first] - values[second]
        pairs.append(
            dataclasses.replace(
                tested,
                difference=_mean(differences),
                sd=float(differences.std(ddof=1)) if len(first) > 1 else None,
                disagreement=_mean((predicted[first] != predicted[second]).mean(1)),
                class_f1_difference=tuple((f1[first] - f1[second]).mean(0).tolist()) if first else (),
                gain_difference=_mean(gains[first] - gains[second]),
                retention_difference=_mean(retentions[first] - retentions[second]),
                trainable_ratio=a.trainable / b.trainable,
                seconds_ratio=_ratio(a.train_seconds.mean, b.train_seconds.mean) if timings_comparable else None,
            )
        )
    return tuple(pairs)


def _couples(
    arms: Sequence[ArmResult], runs: Sequence[ComparedRun], metric: Metric, design: Design
) -> Iterator[_Couple]:
    position = {id(run): index for index, run in enumerate(runs)}
    positions = [{pair_id(run): position[id(run)] for run in arm.runs} for arm in arms]
    scores = [score_run(run, metric.key, design) for run in runs]
    domains = range(len(design.held_out)) if metric.test == "shifted" else ()
    by_domain = [[score_run(run, metric.key, design, domain=domain) for run in runs] for domain in domains]
    for (a, of_a), (b, of_b) in combinations(zip(arms, positions, strict=True), 2):
        shared = [draw for draw in map(pair_id, a.runs) if draw in of_b]
        first, second = [of_a[draw] for draw in shared], [of_b[draw] for draw in shared]
        inference = None
        if found := _differences(scores, first, second):
            inference = infer(found, [runs[index] for index in first], metric.key, design)
        elif is_cost(metric.key) and first:
            values = _column(runs, metric.key)
            inference = infer_runs(values[first] - values[second])
        yield _Couple(
            a,
            b,
            first=first,
            second=second,
            inference=inference,
            domains=tuple(infer_domain(_differences(of, first, second)) for of in by_domain) if first else (),
            only_models=bool(found) and not design.repeats(first),
        )


def _differences(scores: Sequence[Scores | None], first: Sequence[int], second: Sequence[int]) -> list[Scores]:
    """Return the differences of the scores of paired runs; none if one of them has no score."""
    couples = [(scores[one], scores[other]) for one, other in zip(first, second, strict=True)]
    found = [subtract(one, other) for one, other in couples if one is not None and other is not None]
    return found if len(found) == len(couples) else []


def _tested(couples: Sequence[_Couple], metric: Metric, design: Design, *, margin: float) -> list[PairResult]:
    """Return the pairs with p-values corrected for their number, with verdicts, and with what would decide."""
    known = {index: couple.inference.p for index, couple in enumerate(couples) if couple.inference is not None}
    tested = {index: p for index, p in known.items() if p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())).tolist(), strict=True)) if tested else {}
    domains = _by_domain(couples, metric, design, margin=margin)
    sign = 1 if metric.higher_is_better else -1
    pairs = []
    for index, couple in enumerate(couples):
        runs = len(couple.first)
        inference = couple.inference or Inference(0.0)
        half, p = inference.half_width(), corrected.get(index)
        low, high = (None, None) if half is None else (inference.mean - half, inference.mean + half)
        is_judged = p is not None and not couple.only_models and not saw_labels(couple.a, couple.b)
        word = verdict(inference, p=p, margin=margin, sign=sign) if p is not None and is_judged else "undecided"
        pair = PairResult(
            a=couple.a.name,
            b=couple.b.name,
            n=runs,
            verdict=word,
            protocol=design.protocol,
            only_models=couple.only_models,
            groups=design.groups,
            difference=None,
            sd=None,
            low=low,
            high=high,
            df=inference.df,
            p=p,
            p_unadjusted=inference.p,
            labels_needed=None,
            seeds_needed=None,
            test_images_needed=None,
            detectable=inference.detectable(len(tested)),
            domains=domains[index],
            disagreement=None,
            class_f1_difference=(),
            gain_difference=None,
            retention_difference=None,
            trainable_ratio=1.0,
            seconds_ratio=None,
        )
        if word == "undecided" and is_judged and metric.test is not None:
            pair = _with_needs(pair, inference, couple=couple, metric=metric, design=design, pairs=len(tested))
        pairs.append(pair)
    return pairs


def saw_labels(*arms: ArmResult) -> bool:
    """Return whether an arm has values from a tuning that saw the evaluated labels, and so gets no verdict."""
    return any(run.tags.get(TUNED_ON_TAG) == "evaluated" for arm in arms for run in arm.runs)


def _with_needs(
    pair: PairResult, inference: Inference, *, couple: _Couple, metric: Metric, design: Design, pairs: int
) -> PairResult:
    """Return an undecided pair with the number of labels, seeds or test images that would decide it."""
    run = couple.a.runs[0]
    images = len(run.predictions[metric.test or "shifted"].truth)
    if design.held_out:
        return pair
    if design.protocol == "folds" and metric.test == "shifted":
        if (labels := units_needed(inference, images, pairs)) is not None:
            return dataclasses.replace(pair, labels_needed=labels)
        return dataclasses.replace(pair, seeds_needed=runs_needed(inference, pair.n, pairs))
    if design.protocol == "folds":
        return pair
    pool, drawn = (int(run.tags.get(tag, 0)) for tag in (POOL_IMAGES_TAG, DRAWN_IMAGES_TAG))
    parts = max(2, pool // drawn) if design.protocol == "draws" and drawn else MOST_RUNS
    if (seeds := runs_needed(inference, pair.n, pairs, parts=parts)) is not None:
        return dataclasses.replace(pair, seeds_needed=seeds)
    if design.protocol == "draws" and (seeds := runs_needed(inference, min(pair.n, parts), pairs)) is not None:
        return dataclasses.replace(pair, labels_needed=seeds * drawn)  # a pool with room for this number of draws
    return dataclasses.replace(pair, test_images_needed=units_needed(inference, images, pairs))


def _by_domain(
    couples: Sequence[_Couple], metric: Metric, design: Design, *, margin: float
) -> list[tuple[DomainResult, ...]]:
    """Return the results of each couple on each held-out value, corrected for the number of all of these tests."""
    tests = [(index, place, one) for index, couple in enumerate(couples) for place, one in enumerate(couple.domains)]
    results: list[list[DomainResult]] = [[] for _ in couples]
    if not tests:
        return [() for _ in couples]
    corrected = holm([one.p or 1.0 for _, _, one in tests]).tolist()
    sign = 1 if metric.higher_is_better else -1
    for (index, place, one), p in zip(tests, corrected, strict=True):
        couple = couples[index]
        is_judged = len(couple.first) > 1 and not saw_labels(couple.a, couple.b)
        half = one.half_width() or 0.0
        results[index].append(
            DomainResult(
                name=design.held_out[place],
                images=int(numpy.sum(couple.a.runs[0].predictions["shifted"].fold == place)),
                verdict=verdict(one, p=p, margin=margin, sign=sign) if is_judged else "undecided",
                difference=one.mean,
                low=one.mean - half,
                high=one.mean + half,
                p=p,
                p_unadjusted=one.p or 1.0,
            )
        )
    return [tuple(rows) for rows in results]


def _column(runs: Sequence[ComparedRun], key: str) -> NDArray[numpy.float64]:
    """Return a metric of each run; NaN for a run without it."""
    return numpy.array([run.metrics.get(key, numpy.nan) for run in runs], dtype=float)


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def _mean(values: NDArray[numpy.float64]) -> float | None:
    """Return the mean; None if there are no values or if one is missing."""
    return float(values.mean()) if len(values) and not numpy.isnan(values).any() else None


#: measured costs, which vary between runs, so that a paired interval decides which arm is cheaper
NOISY = (TIME_TRAIN_SECONDS, TIME_INFERENCE_RATIO)


def dominators(
    arms: Sequence[ArmResult], pairs: Sequence[PairResult], *, timings_comparable: bool
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return, for each arm and cost, the arms that dominate it.

    An arm dominates another if it is better and costs no more, or if they are tied and it costs less. In an undecided
    pair, no arm dominates the other.
    """
    by_name = {arm.name: arm for arm in arms}
    dominating: dict[str, dict[str, list[str]]] = {arm.name: {cost: [] for cost in COSTS} for arm in arms}
    for pair in pairs:
        directions = {"better": [(pair.a, pair.b)], "worse": [(pair.b, pair.a)]}
        directions["tie"] = directions["better"] + directions["worse"]
        for winner, loser in directions.get(pair.verdict, []):
            for cost in COSTS:
                if cost == TIME_TRAIN_SECONDS and not timings_comparable:
                    continue
                one, other = by_name[winner], by_name[loser]
                if cheaper(one, other, cost) or (pair.verdict != "tie" and equally_dear(one, other, cost)):
                    dominating[loser][cost].append(winner)
    return {name: {cost: tuple(names) for cost, names in costs.items()} for name, costs in dominating.items()}


def cheaper(a: ArmResult, b: ArmResult, cost: str) -> bool:
    """Return whether `a` costs less than `b`. For measured times, the paired 95 % interval must exclude 0."""
    if cost not in NOISY:
        return a.cost(cost).mean < b.cost(cost).mean
    difference = infer_runs([one.metrics[cost] - other.metrics[cost] for one, other in shared_runs(a, b)] or [0.0])
    half = difference.half_width()
    return half is not None and difference.mean + half < 0


def equally_dear(a: ArmResult, b: ArmResult, cost: str) -> bool:
    """Return whether two arms cost the same; measured times are the same if they differ by less than 5 %."""
    one, other = a.cost(cost).mean, b.cost(cost).mean
    return abs(one - other) < SAME * other if cost in NOISY else one == other
