"""Verdicts and their correction for many pairs, resampling weights, and scores of confusion counts: pure functions."""

from __future__ import annotations

import math
from typing import Any

import numpy
from numpy.typing import ArrayLike, NDArray

from adaptkit.comparison.inference import ALPHA, Inference

RESAMPLES = 2_000

Floats = NDArray[numpy.float64]


def holm(p: ArrayLike) -> Floats:
    """Correct p-values `[..., pairs]` for their number by Holm's method (1979)."""
    values = numpy.asarray(p, dtype=float)
    count = values.shape[-1]
    order = values.argsort(-1)
    steps = numpy.take_along_axis(values, order, -1) * numpy.arange(count, 0, -1)
    steps = numpy.minimum(numpy.maximum.accumulate(steps, -1), 1.0)
    corrected = numpy.empty_like(values)
    numpy.put_along_axis(corrected, order, steps, -1)
    return corrected


def verdict(difference: Inference, *, p: float, margin: float, sign: int = 1) -> str:
    """Return better or worse (corrected p < .05), else tie, else undecided; `sign` is -1 if lower is better.

    A tie is a 95 % interval within ±margin: two one-sided tests of equivalence at 2.5 % each.
    """
    if p < ALPHA and difference.mean:
        return "better" if sign * difference.mean > 0 else "worse"
    half = difference.half_width()
    return "tie" if half is not None and abs(difference.mean) + half <= margin else "undecided"


def resampling_weights(images: int, seed: int, resamples: int = RESAMPLES) -> NDArray[numpy.float32]:
    """Draw bootstrap samples for all runs, and return the count of each test image, `[resamples, images]`."""
    generator = numpy.random.default_rng(seed)
    weights = numpy.empty((resamples, images), dtype=numpy.float32)
    for row in weights:
        row[:] = numpy.bincount(generator.integers(images, size=images), minlength=images)
    return weights


def confusion(truth: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[numpy.int64]:
    """Return the number of images of each class (row) that were predicted as each class (column)."""
    cells = numpy.asarray(truth, dtype=numpy.int64) * classes + predicted
    return numpy.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def f1_scores(counts: ArrayLike) -> Floats:
    """Return the F1 of each class from confusion counts `[classes, classes]`; 0 for a class that never occurs."""
    counts = numpy.asarray(counts, dtype=float)
    both = counts.sum(0) + counts.sum(1)
    scores: Floats = numpy.divide(2 * numpy.diagonal(counts), both, out=numpy.zeros(len(counts)), where=both > 0)
    return scores


def ppt(score: float, trainable: int, constant: float) -> float:
    """Return V-PETL Bench's performance-parameter trade-off (Xin et al., 2024): M exp(-log10(P / C + 1)), M <= 1."""
    return score * math.exp(-math.log10(trainable / constant + 1))
