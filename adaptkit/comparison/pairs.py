"""Set two arms side by side over the seeds that they share, and say which is better, or that nobody can tell."""

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

#: of the generator that draws test images: fixed, so that a report can be computed again
SEED = 0


def resampled_scores(metric: str, runs: Sequence[ComparedRun]) -> NDArray[numpy.float64] | None:
    """Return each run's score `[runs, resamples]` on bootstrap samples of the test images, drawn once for all runs.

    None for a metric that test images do not decide. Gain and retention are scored as the accuracy: their difference
    between two runs is the same.
    """
    if metric not in TEST_SETS:
        return None
    found = [run.predictions[TEST_SETS[metric]] for run in runs]
    weights = resampling_weights(len(found[0].truth), SEED)
    if metric.endswith("macro_f1"):
        classes = len(runs[0].classes)
        return numpy.stack([_macro_f1(predictions, weights, classes) for predictions in found])
    right = numpy.stack([predictions.predicted == predictions.truth for predictions in found]).astype(weights.dtype)
    scores: NDArray[numpy.float64] = (right @ weights.T).astype(float) / weights.shape[1]
    return scores


def _macro_f1(predictions: Predictions, weights: NDArray[numpy.float32], classes: int) -> NDArray[numpy.float64]:
    truth = numpy.eye(classes, dtype=weights.dtype)[predictions.truth]
    predicted = numpy.eye(classes, dtype=weights.dtype)[predictions.predicted]
    both = weights @ (truth * predicted)
    total = weights @ truth + weights @ predicted
    f1 = numpy.divide(2 * both, total, out=numpy.zeros_like(both), where=total > 0)
    # As scikit-learn does: a class that neither occurs nor is predicted is no class of this sample.
    mean: NDArray[numpy.float64] = f1.sum(1) / numpy.maximum((total > 0).sum(1), 1)
    return mean


#: pairs whose resampled test images are in memory at a time
AT_ONCE = 256
ACCURACIES = (FINAL_SHIFTED_ACCURACY, FINAL_TEST_ACCURACY, FINAL_GAIN, FINAL_RETENTION)


def shared_runs(a: ArmResult, b: ArmResult) -> list[tuple[ComparedRun, ComparedRun]]:
    """Return the runs of two arms that saw the same draw, in the order of their seeds."""
    partners = {pair_id(run): run for run in b.runs}
    return [(run, partners[pair_id(run)]) for run in a.runs if pair_id(run) in partners]


def pair_id(run: ComparedRun) -> str:
    """Return what two runs of one draw have in common."""
    return run.tags.get(PAIR_ID_TAG, str(run.seed))


@dataclass(frozen=True)
class _Couple:
    """Two arms, and where the runs of them that saw the same draws stand among all runs."""

    a: ArmResult
    b: ArmResult
    first: tuple[int, ...]
    second: tuple[int, ...]


def judge_pairs(
    arms: Sequence[ArmResult], metric: Metric, margin: float, timings_comparable: bool
) -> tuple[PairResult, ...]:
    """Return what is found between each two arms; `arms` are in the order of their scores."""
    runs = [run for arm in arms for run in arm.runs]
    couples = list(_couples(arms, runs))
    # An accuracy cannot change by less than one test image.
    test = TEST_SETS.get(metric.key) or ("shifted" if of_severities(metric.key) else None)
    resolution = 1 / len(runs[0].predictions[test].truth) if test else 0.0
    values, gains, retentions = (_column(runs, key) for key in (metric.key, FINAL_GAIN, FINAL_RETENTION))
    predicted = numpy.stack([run.predictions["shifted"].predicted for run in runs])
    shares = class_f1(runs)
    images = _image_intervals(couples, resampled_scores(metric.key, runs))
    tests = _paired_tests(couples, values, resolution)
    found = []
    for couple, (image_low, image_high), tested in zip(couples, images, tests, strict=True):
        a, b, first, second = couple.a, couple.b, list(couple.first), list(couple.second)
        if len(first) == 1 and metric.key in ACCURACIES:
            one, other = (runs[index].predictions[TEST_SETS[metric.key]] for index in (*first, *second))
            p = mcnemar(one.predicted == one.truth, other.predicted == other.truth)
            # With one seed there is no spread over seeds: the interval is that of the test images.
            tested = {"test": "mcnemar", "low": image_low, "high": image_high, "p_unadjusted": p}
        known: dict[str, Any] = {
            "test": None,
            "difference": _mean(values[first] - values[second]),
            **dict.fromkeys(("sd", "low", "high", "p_unadjusted")),
            **tested,
        }
        found.append(
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
                **known,
            )
        )
    return _worded(found, metric, margin, len(runs[0].predictions[TEST_SETS.get(metric.key, "shifted")].truth))


def _couples(arms: Sequence[ArmResult], runs: Sequence[ComparedRun]) -> Iterator[_Couple]:
    position = {id(run): index for index, run in enumerate(runs)}
    places = [{pair_id(run): position[id(run)] for run in arm.runs} for arm in arms]
    for (a, of_a), (b, of_b) in combinations(zip(arms, places, strict=True), 2):
        shared = [draw for draw in map(pair_id, a.runs) if draw in of_b]
        yield _Couple(a, b, tuple(of_a[draw] for draw in shared), tuple(of_b[draw] for draw in shared))


def _column(runs: Sequence[ComparedRun], key: str) -> NDArray[numpy.float64]:
    """Return a metric of each run; not a number where a run has none."""
    return numpy.array([run.metrics.get(key, numpy.nan) for run in runs], dtype=float)


def _image_intervals(
    couples: Sequence[_Couple], scores: NDArray[numpy.float64] | None
) -> list[tuple[float | None, float | None]]:
    """Return, where there are scores, the interval of each couple's difference over resampled test images."""
    found: list[tuple[float | None, float | None]] = [(None, None)] * len(couples)
    if scores is None:
        return found

    @functools.lru_cache(maxsize=AT_ONCE)
    def mean(members: tuple[int, ...]) -> NDArray[numpy.float64]:
        average: NDArray[numpy.float64] = scores[list(members)].mean(0)
        return average

    shared = [index for index, couple in enumerate(couples) if couple.first]
    for start in range(0, len(shared), AT_ONCE):
        some = shared[start : start + AT_ONCE]
        samples = numpy.stack([mean(couples[index].first) - mean(couples[index].second) for index in some])
        low, high = percentile_intervals(samples)
        for index, ends in zip(some, zip(low.tolist(), high.tolist(), strict=True), strict=True):
            found[index] = ends
    return found


def _paired_tests(
    couples: Sequence[_Couple], values: NDArray[numpy.float64], resolution: float
) -> list[dict[str, Any]]:
    """Return what the paired test says of each couple that shares several draws: all that share as many at once."""
    found: list[dict[str, Any]] = [{} for _ in couples]
    for count in {len(couple.first) for couple in couples} - {0, 1}:
        same = [index for index, couple in enumerate(couples) if len(couple.first) == count]
        first, second = ([getattr(couples[index], side) for index in same] for side in ("first", "second"))
        test = paired_t(values[numpy.array(first)] - values[numpy.array(second)], resolution)
        columns = (test.mean, test.sd, test.low, test.high, test.p)
        for index, row in zip(same, zip(*(column.tolist() for column in columns), strict=True), strict=True):
            names = ("difference", "sd", "low", "high", "p_unadjusted")
            found[index] = {"test": "paired t"} | dict(zip(names, row, strict=True))
    return found


def _worded(pairs: Sequence[PairResult], metric: Metric, margin: float, images: int) -> tuple[PairResult, ...]:
    """Correct the p-values for the number of pairs and find the word for each pair."""
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
    words = verdicts(better_by, numpy.minimum(*ends), numpy.maximum(*ends), corrected, margin)
    result = list(pairs)
    for (index, *_), p, word, better in zip(
        tested, corrected.tolist(), words.tolist(), better_by.tolist(), strict=True
    ):
        pair = pairs[index]
        change: dict[str, object] = {"p": p, "verdict": word, "seeds_verdict": word}
        if pair.image_low is not None and pair.image_high is not None:
            low, high = sorted((sign * pair.image_low, sign * pair.image_high))
            if not supported(word, low, high, margin):
                change["verdict"] = "unclear"
                change["images_needed"] = images_needed(word, better, low, high, margin, images)
        if word == "unclear" and pair.sd is not None:
            change["seeds_needed"] = seeds_needed(better, pair.sd, margin, len(tested))
        result[index] = dataclasses.replace(pair, **change)  # type: ignore[arg-type]
    return tuple(result)


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def _mean(values: NDArray[numpy.float64]) -> float | None:
    """Return the mean of what there is a number of for every pair; None for no pairs."""
    return float(values.mean()) if len(values) and not numpy.isnan(values).any() else None


#: costs that differ from run to run: cheaper is then a matter of their interval too
NOISY = (TIME_TRAIN_SECONDS, TIME_INFERENCE_RATIO)


def dominators(
    arms: Sequence[ArmResult], pairs: Sequence[PairResult], *, timings_comparable: bool
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return for each arm and cost the arms that are cheaper and better or tied; an unclear pair decides nothing."""
    by_name = {arm.name: arm for arm in arms}
    found: dict[str, dict[str, list[str]]] = {arm.name: {cost: [] for cost in COSTS} for arm in arms}
    for pair in pairs:
        directions = {"better": [(pair.a, pair.b)], "worse": [(pair.b, pair.a)]}
        directions["tie"] = directions["better"] + directions["worse"]
        for winner, loser in directions.get(pair.verdict, []):
            for cost in COSTS:
                if cost == TIME_TRAIN_SECONDS and not timings_comparable:
                    continue
                if cheaper(by_name[winner], by_name[loser], cost):
                    found[loser][cost].append(winner)
    return {name: {cost: tuple(names) for cost, names in costs.items()} for name, costs in found.items()}


def cheaper(a: ArmResult, b: ArmResult, cost: str) -> bool:
    """Tell whether `a` costs less than `b`: for measured times, only if the paired 95 % interval says so."""
    if cost not in NOISY:
        return a.cost(cost).mean < b.cost(cost).mean
    if a.cost(cost).mean >= b.cost(cost).mean:
        return False
    differences = [one.metrics[cost] - other.metrics[cost] for one, other in shared_runs(a, b)]
    return len(differences) > 1 and bool(paired_t(differences).high < 0)
