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
    deviations = (numbers - mean) / len(numbers)
    return Scored(mean, deviations if units is None else numpy.bincount(units, weights=deviations))


def macro_f1_score(truth: Integers, predicted: Integers, *, classes: int, units: Integers | None = None) -> Scored:
    """Return the mean F1 over classes; like scikit-learn, without classes that neither occur nor are predicted."""
    return jackknifed(truth, predicted, classes=classes, units=units, score=_macro_f1)


def jackknifed(
    truth: Integers,
    predicted: Integers,
    *,
    classes: int,
    units: Integers | None,
    score: Callable[[Floats], Floats],
) -> Scored:
    """Return a score of confusion counts with the influence of each unit by the jackknife.

    `score` takes counts `[many, classes, classes]`, true classes in rows. The influence of a unit is
    `(G-1)/G * (mean of the scores without one unit - score without this unit)` for G units: their squares times
    G/(G-1) add up to the jackknife's variance (Efron and Stein, Annals of Statistics 9, 1981).
    """
    cells = truth * classes + predicted
    counts = numpy.bincount(cells, minlength=classes**2).astype(float)
    if units is None:  # all images of a cell have the same influence
        members, which = numpy.unique(cells, return_inverse=True)
        without = _scores(counts, members, classes, score)[which]
    else:
        groups = int(units.max()) + 1
        each = numpy.zeros((groups, classes**2))
        numpy.add.at(each, (units, cells), 1)
        without = score((counts - each).reshape(groups, classes, classes))
    count = len(without)
    value = float(score(counts.reshape(1, classes, classes))[0])
    return Scored(value, (count - 1) / count * (without.mean() - without))


def _scores(counts: Floats, members: Integers, classes: int, score: Callable[[Floats], Floats]) -> Floats:
    """Return the scores of counts without one image of each of these cells, some at a time to save memory."""
    at_once = max(1, 4_000_000 // classes**2)
    parts = []
    for start in range(0, len(members), at_once):
        some = members[start : start + at_once]
        left = numpy.repeat(counts[None], len(some), axis=0)
        left[numpy.arange(len(some)), some] -= 1
        parts.append(score(left.reshape(len(some), classes, classes)))
    return numpy.concatenate(parts)


def _macro_f1(counts: Floats) -> Floats:
    total = counts.sum(1) + counts.sum(2)
    right = numpy.diagonal(counts, axis1=1, axis2=2)
    f1 = numpy.divide(2 * right, total, out=numpy.zeros_like(total), where=total > 0)
    mean: Floats = f1.sum(1) / numpy.maximum((total > 0).sum(1), 1)
    return mean
