"""Judge pairs of arms: paired tests over shared seeds, bootstrap over test images, verdicts and Pareto dominance.

Two runs are paired if they used the same images in the same way. A pair has a verdict only if the paired test over the
seeds and the interval over resampled test images agree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy
from numpy.typing import NDArray

from adaptkit.comparison.classes import class_f1
from adaptkit.comparison.metrics import TEST_SETS, of_severities
from adaptkit.comparison.records import COSTS, ArmResult, ComparedRun, Metric, PairResult
from adaptkit.comparison.statistics import (
    holm,
    images_needed,
    mcnemar,
    paired_t,
    percentile_intervals,
    resampling_weights,
    seeds_needed,
    supported,
    verdicts,
)
from adaptkit.events import Predictions
from adaptkit.names import (
    FINAL_GAIN,
    FINAL_RETENTION,
    FINAL_SHIFTED_ACCURACY,
    FINAL_TEST_ACCURACY,
    PAIR_ID_TAG,
    TIME_INFERENCE_RATIO,
    TIME_TRAIN_SECONDS,
)

#: seed of the bootstrap: fixed, so that a report is reproducible
SEED = 0


def resampled_scores(metric: str, runs: Sequence[ComparedRun]) -> NDArray[numpy.float64] | None:
    """Return the score of each run on bootstrap samples of the test images, `[runs, resamples]`.

    All runs share the samples. Returns None if the metric cannot be computed from predictions. The scores of gain and
    retention are accuracies, because the difference between two runs is the same.
    """
    if metric not in TEST_SETS:
        return None
    predictions = [run.predictions[TEST_SETS[metric]] for run in runs]
    weights = resampling_weights(len(predictions[0].truth), SEED)
    if metric.endswith("macro_f1"):
        classes = len(runs[0].classes)
        return numpy.stack([_macro_f1(one, weights, classes) for one in predictions])
    correct = numpy.stack([one.predicted == one.truth for one in predictions]).astype(weights.dtype)
    scores: NDArray[numpy.float64] = (correct @ weights.T).astype(float) / weights.shape[1]
    return scores


def _macro_f1(predictions: Predictions, weights: NDArray[numpy.float32], classes: int) -> NDArray[numpy.float64]:
    truth = numpy.eye(classes, dtype=weights.dtype)[predictions.truth]
    predicted = numpy.eye(classes, dtype=weights.dtype)[predictions.predicted]
    both = weights @ (truth * predicted)
    total = weights @ truth + weights @ predicted
    f1 = numpy.divide(2 * both, total, out=numpy.zeros_like(both), where=total > 0)
    # Like scikit-learn, skip a class that neither occurs nor is predicted in the sample.
    mean: NDArray[numpy.float64] = f1.sum(1) / numpy.maximum((total > 0).sum(1), 1)
    return mean


#: number of pairs whose bootstrap samples are in memory at a time
AT_ONCE = 256
ACCURACIES = (FINAL_SHIFTED_ACCURACY, FINAL_TEST_ACCURACY, FINAL_GAIN, FINAL_RETENTION)


def shared_runs(a: ArmResult, b: ArmResult) -> list[tuple[ComparedRun, ComparedRun]]:
    """Return the paired runs of two arms, in the order of their seeds."""
    partners = {pair_id(run): run for run in b.runs}
    return [(run, partners[pair_id(run)]) for run in a.runs if pair_id(run) in partners]


def pair_id(run: ComparedRun) -> str:
    """Return the id that paired runs share. For older runs without this id, return the seed."""
    return run.tags.get(PAIR_ID_TAG, str(run.seed))


@dataclass(frozen=True)
class _Couple:
    """Two arms with the positions of their paired runs among all runs."""

    a: ArmResult
    b: ArmResult
    first: tuple[int, ...]
    second: tuple[int, ...]


def judge_pairs(
    arms: Sequence[ArmResult], metric: Metric, *, margin: float, timings_comparable: bool
) -> tuple[PairResult, ...]:
    """Compare all pairs of these arms, which are sorted by score, the best first."""
    runs = [run for arm in arms for run in arm.runs]
    couples = list(_couples(arms, runs))
    # The smallest possible change of an accuracy is one test image.
    test = TEST_SETS.get(metric.key) or ("shifted" if of_severities(metric.key) else None)
    resolution = 1 / len(runs[0].predictions[test].truth) if test else 0.0
    values, gains, retentions = (_column(runs, key) for key in (metric.key, FINAL_GAIN, FINAL_RETENTION))
    predicted = numpy.stack([run.predictions["shifted"].predicted for run in runs])
    shares = class_f1(runs)
    image_intervals = _image_intervals(couples, resampled_scores(metric.key, runs))
    tests = _paired_tests(couples, values, resolution)
    pairs = []
    for couple, (image_low, image_high), tested in zip(couples, image_intervals, tests, strict=True):
        a, b, first, second = couple.a, couple.b, list(couple.first), list(couple.second)
        if len(first) == 1 and metric.key in ACCURACIES:
            one, other = (runs[index].predictions[TEST_SETS[metric.key]] for index in (*first, *second))
            p = mcnemar(one.predicted == one.truth, other.predicted == other.truth)
            # One seed has no spread, so the interval over test images is used.
            tested = {"test": "mcnemar", "low": image_low, "high": image_high, "p_unadjusted": p}
        test_fields: dict[str, Any] = {
            "test": None,
            "difference": _mean(values[first] - values[second]),
            **dict.fromkeys(("sd", "low", "high", "p_unadjusted")),
            **tested,
        }
        pairs.append(
            PairResult(
                a=a.name,
                b=b.name,
                n=len(first),
                verdict="unclear",
                seeds_verdict="unclear",
                p=None,
                image_low=image_low,
                image_high=image_high,
                seeds_needed=None,
                images_needed=None,
                disagreement=_mean((predicted[first] != predicted[second]).mean(1)),
                class_f1_difference=tuple((shares[first] - shares[second]).mean(0).tolist()) if first else (),
                gain_difference=_mean(gains[first] - gains[second]),
                retention_difference=_mean(retentions[first] - retentions[second]),
                trainable_ratio=a.trainable / b.trainable,
                seconds_ratio=_ratio(a.train_seconds.mean, b.train_seconds.mean) if timings_comparable else None,
                **test_fields,
            )
        )
    images = len(runs[0].predictions[TEST_SETS.get(metric.key, "shifted")].truth)
    return _with_verdicts(pairs, metric, margin=margin, images=images)


def _couples(arms: Sequence[ArmResult], runs: Sequence[ComparedRun]) -> Iterator[_Couple]:
    position = {id(run): index for index, run in enumerate(runs)}
    positions = [{pair_id(run): position[id(run)] for run in arm.runs} for arm in arms]
    for (a, of_a), (b, of_b) in combinations(zip(arms, positions, strict=True), 2):
        shared = [draw for draw in map(pair_id, a.runs) if draw in of_b]
        yield _Couple(a, b, first=tuple(of_a[draw] for draw in shared), second=tuple(of_b[draw] for draw in shared))


def _column(runs: Sequence[ComparedRun], key: str) -> NDArray[numpy.float64]:
    """Return a metric of each run; NaN for a run without it."""
    return numpy.array([run.metrics.get(key, numpy.nan) for run in runs], dtype=float)


def _image_intervals(
    couples: Sequence[_Couple], scores: NDArray[numpy.float64] | None
) -> list[tuple[float | None, float | None]]:
    """Return the 95 % interval of each couple over resampled test images; (None, None) without scores."""
    intervals: list[tuple[float | None, float | None]] = [(None, None)] * len(couples)
    if scores is None:
        return intervals

    @functools.lru_cache(maxsize=AT_ONCE)
    def mean(members: tuple[int, ...]) -> NDArray[numpy.float64]:
        average: NDArray[numpy.float64] = scores[list(members)].mean(0)
        return average

    shared = [index for index, couple in enumerate(couples) if couple.first]
    for start in range(0, len(shared), AT_ONCE):
        batch = shared[start : start + AT_ONCE]
        samples = numpy.stack([mean(couples[index].first) - mean(couples[index].second) for index in batch])
        low, high = percentile_intervals(samples)
        for index, ends in zip(batch, zip(low.tolist(), high.tolist(), strict=True), strict=True):
            intervals[index] = ends
    return intervals


def _paired_tests(
    couples: Sequence[_Couple], values: NDArray[numpy.float64], resolution: float
) -> list[dict[str, Any]]:
    """Return the results of the paired t-test as fields of `PairResult`; empty for fewer than two shared seeds.

    Couples with equally many seeds are tested in one batch.
    """
    fields: list[dict[str, Any]] = [{} for _ in couples]
    for count in {len(couple.first) for couple in couples} - {0, 1}:
        same = [index for index, couple in enumerate(couples) if len(couple.first) == count]
        first, second = ([getattr(couples[index], side) for index in same] for side in ("first", "second"))
        test = paired_t(values[numpy.array(first)] - values[numpy.array(second)], resolution)
        columns = (test.mean, test.sd, test.low, test.high, test.p)
        for index, row in zip(same, zip(*(column.tolist() for column in columns), strict=True), strict=True):
            names = ("difference", "sd", "low", "high", "p_unadjusted")
            fields[index] = {"test": "paired t"} | dict(zip(names, row, strict=True))
    return fields


def _with_verdicts(
    pairs: Sequence[PairResult], metric: Metric, *, margin: float, images: int
) -> tuple[PairResult, ...]:
    """Return the pairs with p-values corrected for their number, and with verdicts."""
    tested = [
        (index, pair.p_unadjusted, pair.difference, pair.low, pair.high)
        for index, pair in enumerate(pairs)
        if None not in (pair.p_unadjusted, pair.difference, pair.low, pair.high)
    ]
    if not tested:
        return tuple(pairs)
    _, unadjusted, *intervals = zip(*tested, strict=True)
    sign = 1 if metric.higher_is_better else -1
    better_by, *ends = (sign * numpy.array(column) for column in intervals)
    corrected = holm(unadjusted)
    words = verdicts(better_by, low=numpy.minimum(*ends), high=numpy.maximum(*ends), p=corrected, margin=margin)
    result = list(pairs)
    for (index, *_), p, word, better in zip(
        tested, corrected.tolist(), words.tolist(), better_by.tolist(), strict=True
    ):
        pair = pairs[index]
        change: dict[str, object] = {"p": p, "verdict": word, "seeds_verdict": word}
        if pair.image_low is not None and pair.image_high is not None:
            low, high = sorted((sign * pair.image_low, sign * pair.image_high))
            if not supported(word, low=low, high=high, margin=margin):
                change["verdict"] = "unclear"
                change["images_needed"] = images_needed(
                    word, mean=better, low=low, high=high, margin=margin, images=images
                )
        if word == "unclear" and pair.sd is not None:
            change["seeds_needed"] = seeds_needed(better, pair.sd, margin=margin, pairs=len(tested))
        result[index] = dataclasses.replace(pair, **change)  # type: ignore[arg-type]
    return tuple(result)


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
    """Return, for each arm and cost, the arms that dominate it: they are cheaper, and better or tied.

    In an unclear pair, no arm dominates the other.
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
                if cheaper(by_name[winner], by_name[loser], cost):
                    dominating[loser][cost].append(winner)
    return {name: {cost: tuple(names) for cost, names in costs.items()} for name, costs in dominating.items()}


def cheaper(a: ArmResult, b: ArmResult, cost: str) -> bool:
    """Return whether `a` costs less than `b`. For measured times, the paired 95 % interval must exclude 0."""
    if cost not in NOISY:
        return a.cost(cost).mean < b.cost(cost).mean
    if a.cost(cost).mean >= b.cost(cost).mean:
        return False
    differences = [one.metrics[cost] - other.metrics[cost] for one, other in shared_runs(a, b)]
    return len(differences) > 1 and bool(paired_t(differences).high < 0)
