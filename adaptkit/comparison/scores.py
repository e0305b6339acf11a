"""Score predictions, and the influence of each image (or group of images) on the score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]
Integers = NDArray[numpy.int64]


@dataclass(frozen=True)
class Scored:
    """A score with the influence of each unit on it `[units]`, as in `comparison.inference`."""

    value: float
    influence: Floats

    def __sub__(self, other: Scored) -> Scored:
        return Scored(self.value - other.value, self.influence - other.influence)


def mean_score(values: NDArray[numpy.generic], units: Integers | None = None) -> Scored:
    """Return the mean of one value for each image; `units` numbers the group of each image, from 0."""
    numbers = numpy.asarray(values, dtype=float)
    mean = float(numbers.mean())
    if units is None:
        return Scored(mean, (numbers - mean) / len(numbers))
    sums, sizes = numpy.bincount(units, weights=numbers - mean), numpy.bincount(units)
    # a single group has no mean without it, and no measured error
    without = mean - sums / numpy.maximum(len(numbers) - sizes, 1)
    return Scored(mean, _influence(without))


def macro_f1_score(truth: Integers, predicted: Integers, *, classes: int, units: Integers | None = None) -> Scored:
    """Return the mean F1 over classes; like scikit-learn, without classes that neither occur nor are predicted."""
    return class_mean_score(truth, predicted, classes=classes, units=units, score=f1_of_counts)


def f1_of_counts(right: Floats, actual: Floats, predicted: Floats) -> Floats:
    """Return F1 from numbers of correct, actual and predicted images; NaN where there are none."""
    total = actual + predicted
    return numpy.divide(2 * right, total, out=numpy.full_like(total, numpy.nan), where=total > 0)


def class_mean_score(
    truth: Integers,
    predicted: Integers,
    *,
    classes: int,
    units: Integers | None,
    score: Callable[[Floats, Floats, Floats], Floats],
) -> Scored:
    """Return the mean over classes of a score, with the influence of each unit by the jackknife.

    `score` takes the numbers of correct, actual and predicted images of each class. The influence of a unit is
    `(G-1)/G * (mean of the scores without one unit - score without this unit)` for G units: their squares times
    G/(G-1) add up to the jackknife's variance (Efron and Stein, Annals of Statistics 9, 1981).
    """
    is_right = truth == predicted
    sums = [_counts(of, classes) for of in (truth[is_right], truth, predicted)]
    if units is None:
        without = _without_images(truth, predicted, sums, score)
    else:
        groups = int(units.max()) + 1
        codes = (units[is_right] * classes + truth[is_right], units * classes + truth, units * classes + predicted)
        parts = (_counts(code, groups * classes).reshape(groups, classes) for code in codes)
        left = [total - part for total, part in zip(sums, parts, strict=True)]
        without = numpy.nanmean(score(left[0], left[1], left[2]), axis=1)
    return Scored(float(numpy.nanmean(score(sums[0], sums[1], sums[2]))), _influence(without))


def _influence(without: Floats) -> Floats:
    """Return the influence of each unit by the jackknife, from the scores without it."""
    influence: Floats = (len(without) - 1) / len(without) * (without.mean() - without)
    return influence


def _counts(of: Integers, size: int) -> Floats:
    return numpy.bincount(of, minlength=size).astype(float)


def _without_images(
    truth: Integers, predicted: Integers, sums: list[Floats], score: Callable[[Floats, Floats, Floats], Floats]
) -> Floats:
    """Return the mean score without each image, which changes only the scores of its two classes."""
    right, actual, claimed = sums
    each = score(right, actual, claimed)
    total, known = numpy.nansum(each), (~numpy.isnan(each)).sum()
    is_right = truth == predicted
    hit = is_right.astype(float)
    changed = [(truth, score(right[truth] - hit, actual[truth] - 1, claimed[truth] - hit), True)]
    changed.append((predicted, score(right[predicted], actual[predicted], claimed[predicted] - 1), ~is_right))
    sum_without, known_without = numpy.full(len(truth), total), numpy.full(len(truth), float(known))
    for of, new, where in changed:
        old = each[of]
        sum_without += numpy.where(where, numpy.nan_to_num(new) - numpy.nan_to_num(old), 0)
        known_without += numpy.where(where, (~numpy.isnan(new)).astype(float) - ~numpy.isnan(old), 0)
    mean: Floats = sum_without / numpy.maximum(known_without, 1)
    return mean
