"""Statistical tests and intervals of a comparison: pure functions of arrays.

The last axis holds seeds, pairs or images. Functions accept many families at once, so that simulations can test the
error rates of the verdicts.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from adaptkit.comparison.records import Estimate

ALPHA = 0.05
RESAMPLES = 2_000
#: largest number of seeds that is recommended
MOST_SEEDS = 10_000
#: smaller spreads and differences of accuracies are rounding errors
ROUNDING = 1e-9

Floats = NDArray[numpy.float64]


@dataclass(frozen=True)
class PairedTest:
    """Results of paired t-tests: arrays of means, standard deviations, 95 % t-intervals and two-sided p-values."""

    mean: Floats
    sd: Floats
    low: Floats
    high: Floats
    p: Floats


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values with its 95 % t-interval; a single value has no interval."""
    mean, n = math.fsum(values) / len(values), len(values)
    if n < 2:
        return Estimate(mean, n)
    sd = float(numpy.std(values, ddof=1))
    half = _quantile(ALPHA / 2, n - 1) * sd / math.sqrt(n)
    return Estimate(mean, n, sd=sd, low=mean - half, high=mean + half)


def paired_t(differences: ArrayLike, resolution: float = 0.0) -> PairedTest:
    """Test with Student's paired t-test whether the mean of differences `[..., n]`, n > 1, is 0.

    `resolution` is the change of the metric by one test image. A finite test set cannot show a smaller spread, so that
    equal and nearly equal differences are tested with this standard deviation. If all differences are 0, p is 1 and
    the interval is [0, 0]. p is never 0.
    """
    values = numpy.asarray(differences, dtype=float)
    n = values.shape[-1]
    mean, sd = values.mean(-1), values.std(-1, ddof=1)
    equal = sd <= ROUNDING * numpy.maximum(1.0, numpy.abs(mean))
    zero = equal & (numpy.abs(mean) <= ROUNDING)
    sd = numpy.where(zero, 0.0, numpy.maximum(numpy.where(equal, 0.0, sd), resolution))
    mean = numpy.where(zero, 0.0, mean)
    error = sd / math.sqrt(n)
    # scipy.stats would take ten times as long, and a comparison tests thousands of pairs.
    half = _quantile(ALPHA / 2, n - 1) * error
    with numpy.errstate(divide="ignore", invalid="ignore"):
        p = numpy.where(zero, 1.0, 2 * special.stdtr(n - 1, -numpy.abs(mean) / error))
    return PairedTest(mean=mean, sd=sd, low=mean - half, high=mean + half, p=numpy.maximum(p, numpy.finfo(float).tiny))


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> float:
    """Return the two-sided p of McNemar's exact test on two models' correct predictions of the same images."""
    a, b = numpy.asarray(right_a, dtype=bool), numpy.asarray(right_b, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


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


def verdicts(mean: ArrayLike, *, low: ArrayLike, high: ArrayLike, p: ArrayLike, margin: float) -> NDArray[Any]:
    """Return the verdict of each pair: better or worse (corrected p < .05), else tie, else unclear.

    A tie is a 95 % interval within ±margin: two one-sided tests of equivalence at 2.5 % each.
    """
    mean, p = numpy.asarray(mean), numpy.asarray(p)
    decided = p < ALPHA
    tie = (numpy.asarray(low) >= -margin) & (numpy.asarray(high) <= margin)
    return numpy.select([decided & (mean > 0), decided & (mean < 0), tie], ["better", "worse", "tie"], "unclear")


def supported(verdict: str, *, low: float, high: float, margin: float) -> bool:
    """Return whether the interval over resampled test images confirms a verdict."""
    return {"better": low > 0, "worse": high < 0, "tie": low >= -margin and high <= margin}.get(verdict, True)


def seeds_needed(mean: float, sd: float, *, margin: float, pairs: int) -> int | None:
    """Return the number of seeds that would decide a pair with this mean and spread; None above 10,000.

    A pair is decided if it is a tie, or better or worse under the strictest of Holm's corrections.
    """

    def decided(n: int) -> bool:
        error = sd / math.sqrt(n)
        different = abs(mean) > error * _quantile(ALPHA / (2 * pairs), n - 1)
        return different or abs(mean) + error * _quantile(ALPHA / 2, n - 1) <= margin

    # Bisection works, because a pair that is decided with n seeds is also decided with more.
    plans = range(2, MOST_SEEDS + 1)
    return plans[bisect.bisect_left(plans, True, key=decided)] if decided(MOST_SEEDS) else None


@functools.cache
def _quantile(tail: float, freedom: int) -> float:
    """Return the upper quantile of Student's t. It is cached, because `seeds_needed` evaluates many quantiles."""
    return float(special.stdtrit(freedom, 1 - tail))


def images_needed(verdict: str, *, mean: float, low: float, high: float, margin: float, images: int) -> int | None:
    """Return the number of test images that would confirm a verdict at the observed difference; None if none would.

    The width of the resampled interval shrinks with the square root of the number of images.
    """
    room = abs(mean) if verdict in ("better", "worse") else margin - abs(mean)
    if room <= 0:
        return None
    return math.ceil(images * ((high - low) / 2 / room) ** 2)


def resampling_weights(images: int, seed: int, resamples: int = RESAMPLES) -> NDArray[numpy.float32]:
    """Draw bootstrap samples for all runs, and return the count of each test image, `[resamples, images]`."""
    generator = numpy.random.default_rng(seed)
    weights = numpy.empty((resamples, images), dtype=numpy.float32)
    for row in weights:
        row[:] = numpy.bincount(generator.integers(images, size=images), minlength=images)
    return weights


def percentile_intervals(samples: Floats) -> tuple[Floats, Floats]:
    """Return the lower and upper ends of the bootstrap's 95 % percentile intervals of samples `[..., resamples]`."""
    low, high = numpy.quantile(samples, [ALPHA / 2, 1 - ALPHA / 2], axis=-1)
    return low, high


def sampling_error(accuracy: float, images: int) -> float:
    """Return the half-width of an accuracy's 95 % binomial interval (normal approximation)."""
    return float(stats.norm.ppf(1 - ALPHA / 2)) * math.sqrt(accuracy * (1 - accuracy) / images)


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
