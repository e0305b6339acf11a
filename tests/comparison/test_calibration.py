"""Error rates of verdicts on real trainings with a known truth: a small version of `benchmarks/calibration.py`.

Each rate is also measured with a part of the statistics left out, to show that the test would notice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from adaptkit.comparison import inference
from adaptkit.comparison.inference import ALPHA, infer_folds, infer_given
from adaptkit.comparison.scores import macro_f1_score, mean_score
from adaptkit.comparison.statistics import holm

CLASSES, FEATURES, MEMBERS = 4, 8, 4
#: sizes of groups; the images of a group have equal features and labels
SIZES = numpy.array([1, 1, 2, 4, 8, 20])
ALL, HALF = MEMBERS, MEMBERS + 1  # positions of the learners that use all features, and the first half of them

Array = NDArray[Any]


@dataclass(frozen=True)
class Pool:
    """Predictions for one pool of labelled images.

    `truth` `[images]`, out-of-fold predictions `[learners, repeats, images]`, the group of each image, the fold of each
    group `[repeats, groups]`, and the accuracy of each learner on new images `[learners]`.
    """

    truth: Array
    predicted: Array
    groups: Array
    folds: Array
    accuracy: Array


def trained_pools(
    count: int, *, images: int, folds: int, repeats: int, used: int, grouped: bool = False
) -> Iterator[Pool]:
    """Train learners on each of many independent pools, in repeated cross-validation.

    All are classifiers by the nearest class mean. Four use a random subset of the features in each training, so that
    they are equal in truth; the others use all features, and the first half of them.
    """
    centres = numpy.random.default_rng(7).normal(size=(CLASSES, FEATURES))
    new = 300
    for number in range(count):
        random = numpy.random.default_rng([number, images, folds])
        of_group = numpy.arange(images + new)
        if grouped:
            of_group = of_group.repeat(random.choice(SIZES, images + new))[: images + new]
        truth = random.integers(CLASSES, size=images + new)[of_group]
        features = centres[truth] + random.normal(size=(images + new, FEATURES))[of_group]
        groups = of_group[:images]
        assigned = numpy.stack([random.permutation(groups[-1] + 1) % folds for _ in range(repeats)])
        evaluated = (assigned[:, None, groups] == numpy.arange(folds)[:, None]).reshape(-1, images)
        one_hot = numpy.eye(CLASSES)[truth[:images]]
        numbers = ~evaluated @ one_hot
        sums = ~evaluated @ (one_hot[:, :, None] * features[:images, None]).reshape(images, -1)
        means = sums.reshape(-1, CLASSES, FEATURES) / numpy.maximum(numbers, 1)[:, :, None]
        ranks = random.random((MEMBERS, len(means), FEATURES)).argsort(-1)
        fixed = numpy.arange(FEATURES) < numpy.array([FEATURES, FEATURES // 2])[:, None, None]
        kept = numpy.concatenate([ranks < used, fixed.repeat(len(means), axis=1)])
        offsets = ((means**2) * kept[:, :, None]).sum(-1) / 2 + numpy.where(numbers > 0, 0, numpy.inf)
        predicted = (features @ (means * kept[:, :, None]).swapaxes(-1, -2) - offsets[:, :, None]).argmax(-1)
        fits = numpy.arange(repeats)[:, None] * folds + assigned[:, groups]
        accuracy = (predicted[:, :, images:] == truth[images:]).mean((1, 2))
        yield Pool(truth[:images], predicted[:, fits, numpy.arange(images)], groups, assigned, accuracy)


def differences(
    pool: Pool, pairs: Sequence[tuple[int, int]], *, f1: bool = False, is_grouped: bool = True, luck: bool = True
) -> list[Any]:
    """Return the inference of the difference of each pair of learners.

    If not `is_grouped`, groups are ignored; without `luck`, the variance that images of one fold share is left out.
    """
    units = pool.groups if is_grouped else None
    folds = pool.folds if is_grouped else pool.folds[:, pool.groups]

    def scored(predicted: Array) -> Any:
        if f1:
            return macro_f1_score(pool.truth, predicted, classes=CLASSES, units=units)
        return mean_score(predicted == pool.truth, units)

    scores = [[scored(run) for run in runs] for runs in pool.predicted]
    results = []
    for a, b in pairs:
        rows = [one - other for one, other in zip(scores[a], scores[b], strict=True)]
        values, influence = [row.value for row in rows], numpy.array([row.influence for row in rows])
        resolution = 1 / len(pool.truth)
        if luck:
            results.append(infer_folds(values, influence, folds=folds, resolution=resolution))
        else:
            count = folds.max() + 1
            corrected = math.sqrt(count / (count - 1)) * influence.mean(0, keepdims=True)
            results.append(infer_given([numpy.mean(values)], corrected, resolution=resolution))
    return results


FAMILY = list(itertools.combinations(range(MEMBERS), 2))


def false_pairs(pools: Sequence[Pool], **options: bool) -> float:
    """Return the share of equal pairs that are called better or worse."""
    found = [difference.p < ALPHA for pool in pools for difference in differences(pool, FAMILY, **options)]
    return float(numpy.mean(found))


def false_families(pools: Sequence[Pool], correct: Any = holm) -> float:
    """Return the share of families of four equal learners with a false verdict."""
    values = [[difference.p for difference in differences(pool, FAMILY)] for pool in pools]
    return float(numpy.mean((correct(numpy.array(values)) < ALPHA).any(1)))


def coverage(pools: Sequence[Pool], **options: bool) -> float:
    """Return the share of intervals that cover the true difference of all features and half of them."""
    true = numpy.mean([pool.accuracy[ALL] - pool.accuracy[HALF] for pool in pools])
    results = [differences(pool, [(ALL, HALF)], **options)[0] for pool in pools]
    return float(numpy.mean([abs(result.mean - true) <= result.half_width() for result in results]))


@pytest.mark.slow
def test_factor_for_shared_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = list(trained_pools(400, images=40, folds=2, repeats=5, used=4))
    assert coverage(pools) >= 0.95
    assert coverage(pools, f1=True) >= 0.93
    over_units = inference._over_units

    def without_factor(influence: Any, resolution: float) -> tuple[float, float]:
        variance, df = over_units(influence, resolution)
        return variance / 2, df  # K / (K - 1) is 2

    monkeypatch.setattr(inference, "_over_units", without_factor)
    assert coverage(pools) < 0.93


@pytest.mark.slow
def test_training_luck_that_a_fold_shares_and_holm() -> None:
    pools = list(trained_pools(300, images=300, folds=5, repeats=2, used=4))
    assert false_pairs(pools) <= ALPHA
    assert false_pairs(pools, f1=True) <= ALPHA
    assert false_families(pools) <= ALPHA
    assert coverage(pools) >= 0.95
    assert false_pairs(pools, luck=False) > 1.5 * ALPHA
    assert false_families(pools, correct=lambda p: p) > 2 * ALPHA


def test_groups_of_unequal_sizes() -> None:
    pools = list(trained_pools(300, images=400, folds=5, repeats=3, used=4, grouped=True))
    assert false_pairs(pools) <= ALPHA
    assert coverage(pools) >= 0.93
    assert coverage(pools, is_grouped=False) < 0.85
