"""Set two arms side by side over the seeds that they share, and say which is better, or that nobody can tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations

import numpy
from numpy.typing import NDArray

from adaptkit.comparison import ArmResult, ComparedRun, Metric, PairResult
from adaptkit.reports.classes import class_f1
from adaptkit.reports.metrics import TEST_SETS, of_severities
from adaptkit.reports.resampling import resampled_scores
from adaptkit.reports.statistics import (
    holm,
    images_needed,
    mcnemar,
    paired_t,
    percentile_interval,
    seeds_needed,
    supported,
    verdicts,
)

ACCURACIES = ("final/shifted_accuracy", "final/test_accuracy", "final/gain", "final/retention")


def shared_runs(a: ArmResult, b: ArmResult) -> list[tuple[ComparedRun, ComparedRun]]:
    """Return the runs of two arms that saw the same draw, in the order of their seeds."""
    partners = {pair_id(run): run for run in b.runs}
    return [(run, partners[pair_id(run)]) for run in a.runs if pair_id(run) in partners]


def pair_id(run: ComparedRun) -> str:
    """Return what two runs of one draw have in common."""
    return run.tags.get("adaptkit.pair_id", str(run.seed))


def judge_pairs(
    arms: Sequence[ArmResult], metric: Metric, margin: float, timings_comparable: bool
) -> tuple[PairResult, ...]:
    """Return what is found between each two arms; `arms` are in the order of their scores."""
    runs = [run for arm in arms for run in arm.runs]
    position = {id(run): index for index, run in enumerate(runs)}
    scores = resampled_scores(metric.key, runs)
    shares = class_f1(runs)
    # An accuracy cannot change by less than one test image.
    test = TEST_SETS.get(metric.key) or ("shifted" if of_severities(metric.key) else None)
    resolution = 1 / len(runs[0].predictions[test].truth) if test else 0.0
    found = []
    for a, b in combinations(arms, 2):
        pairs = shared_runs(a, b)
        first, second = [position[id(run)] for run, _ in pairs], [position[id(run)] for _, run in pairs]
        images = scores[first].mean(0) - scores[second].mean(0) if scores is not None and pairs else None
        pair = _tested(a, b, pairs, metric, resolution, images)
        found.append(
            dataclasses.replace(
                pair,
                class_f1_difference=tuple((shares[first] - shares[second]).mean(0).tolist()) if pairs else (),
                seconds_ratio=pair.seconds_ratio if timings_comparable else None,
            )
        )
    return _worded(found, metric, margin, len(runs[0].predictions[TEST_SETS.get(metric.key, "shifted")].truth))


def _tested(
    a: ArmResult,
    b: ArmResult,
    pairs: Sequence[tuple[ComparedRun, ComparedRun]],
    metric: Metric,
    resolution: float,
    images: NDArray[numpy.float64] | None,
) -> PairResult:
    """Return the pair's difference and test, without a verdict."""
    differences = _differences(pairs, metric.key)
    low_images, high_images = percentile_interval(images) if images is not None else (None, None)
    pair = PairResult(
        a=a.name,
        b=b.name,
        n=len(pairs),
        verdict="unclear",
        seeds_verdict="unclear",
        test=None,
        difference=float(numpy.mean(differences)) if differences else None,
        sd=None,
        low=None,
        high=None,
        p=None,
        p_unadjusted=None,
        image_low=low_images,
        image_high=high_images,
        seeds_needed=None,
        images_needed=None,
        disagreement=_mean([_disagreement(one, other) for one, other in pairs]),
        class_f1_difference=(),
        gain_difference=_mean(_differences(pairs, "final/gain")),
        retention_difference=_mean(_differences(pairs, "final/retention")),
        trainable_ratio=a.trainable / b.trainable,
        seconds_ratio=a.train_seconds.mean / b.train_seconds.mean if b.train_seconds.mean else None,
    )
    if len(pairs) > 1:
        test = paired_t(differences, resolution)
        return dataclasses.replace(
            pair,
            test="paired t",
            difference=float(test.mean),
            sd=float(test.sd),
            low=float(test.low),
            high=float(test.high),
            p_unadjusted=float(test.p),
        )
    if len(pairs) == 1 and metric.key in ACCURACIES:
        one, other = (run.predictions[TEST_SETS[metric.key]] for run in pairs[0])
        p = mcnemar(one.predicted == one.truth, other.predicted == other.truth)
        # With one seed there is no spread over seeds: the interval is that of the test images.
        return dataclasses.replace(pair, test="mcnemar", low=low_images, high=high_images, p_unadjusted=p)
    return pair


def _worded(pairs: Sequence[PairResult], metric: Metric, margin: float, images: int) -> tuple[PairResult, ...]:
    """Correct the p-values for the number of pairs and find the word for each pair."""
    tested = [pair.p_unadjusted for pair in pairs if pair.p_unadjusted is not None]
    corrected = iter(holm(tested).tolist() if tested else [])
    sign = 1 if metric.higher_is_better else -1
    result = []
    for pair in pairs:
        if pair.p_unadjusted is None or pair.difference is None or pair.low is None or pair.high is None:
            result.append(pair)
            continue
        p = next(corrected)
        better_by = sign * pair.difference
        ends = sorted((sign * pair.low, sign * pair.high))
        word = str(verdicts(better_by, ends[0], ends[1], p, margin))
        change: dict[str, object] = {"p": p, "verdict": word, "seeds_verdict": word}
        if pair.image_low is not None and pair.image_high is not None:
            low, high = sorted((sign * pair.image_low, sign * pair.image_high))
            if not supported(word, low, high, margin):
                change["verdict"] = "unclear"
                change["images_needed"] = images_needed(word, better_by, low, high, margin, images)
        if word == "unclear" and pair.sd is not None:
            change["seeds_needed"] = seeds_needed(pair.difference, pair.sd, margin, len(tested))
        result.append(dataclasses.replace(pair, **change))  # type: ignore[arg-type]
    return tuple(result)


def _disagreement(one: ComparedRun, other: ComparedRun) -> float:
    return float((one.predictions["shifted"].predicted != other.predictions["shifted"].predicted).mean())


def _differences(pairs: Sequence[tuple[ComparedRun, ComparedRun]], key: str) -> list[float]:
    """Return how much the first's metric is above the second's in each pair; none where the metric does not exist."""
    if not all(key in run.metrics for pair in pairs for run in pair):
        return []
    return [one.metrics[key] - other.metrics[key] for one, other in pairs]


def _mean(values: Sequence[float]) -> float | None:
    return float(numpy.mean(values)) if values else None
