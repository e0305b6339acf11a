"""Estimate how far a score, or a difference of two scores, is from its value for new labelled and new test images.

There is one function for each protocol. Each takes the scores of runs, or the differences of paired runs, `[runs]`, and
the influence of each unit on them, `[runs, units]`. A unit is an image, or a group of images that belong together. The
influence of an image on a mean is `(value - mean) / images`; `comparison.scores` computes it for all metrics and for
groups, by the jackknife. Influences add up to 0, and the influence on a difference of two scores is the difference of
the influences.

`resolution` is the influence of one image: a sample in which no prediction differs cannot show a smaller error.
"""

from __future__ import annotations

import bisect
import functools
import math
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike, NDArray
from scipy import special

ALPHA = 0.05
#: probability that a difference of the size `detectable` is found
POWER = 0.8
#: largest number of runs that is recommended, and largest multiple of the number of units
MOST_RUNS, MOST_TIMES = 100, 100

Floats = NDArray[numpy.float64]


@dataclass(frozen=True)
class Inference:
    """An estimate with the degrees of freedom of Student's t, which are None if its error was not measured.

    Its variance is the sum of a part that more runs would reduce, and of one that more units would reduce.
    """

    mean: float
    df: float | None = None
    over_runs: float = 0.0
    over_units: float = 0.0
    #: degrees of freedom of the part over units
    unit_df: float = math.inf

    @property
    def error(self) -> float:
        """Return the standard error."""
        return math.sqrt(self.over_runs + self.over_units)

    @property
    def p(self) -> float | None:
        """Return the two-sided p-value of the hypothesis that the true value is 0; it is never 0."""
        if self.df is None:
            return None
        if self.error == 0:
            return 1.0 if self.mean == 0 else float(numpy.finfo(float).tiny)
        p = 2 * special.stdtr(self.df, -abs(self.mean) / self.error)
        return float(max(p, numpy.finfo(float).tiny))

    def half_width(self, alpha: float = ALPHA) -> float | None:
        """Return half the width of the interval that covers the true value with probability `1 - alpha`."""
        return None if self.df is None else quantile(alpha / 2, self.df) * self.error

    def detectable(self, pairs: int = 1) -> float | None:
        """Return the smallest true difference that is found with a probability of 80 % among this number of pairs.

        The strictest step of Holm's method is assumed.
        """
        if self.df is None:
            return None
        return (quantile(ALPHA / (2 * pairs), self.df) + quantile(1 - POWER, self.df)) * self.error


def infer_folds(scores: ArrayLike, influence: ArrayLike, *, folds: ArrayLike, resolution: float = 0.0) -> Inference:
    """Estimate from repeated K-fold cross-validation; `scores` are pooled over all images, one for each repeat.

    `folds` `[runs, units]` numbers the fold of each unit in each repeat, from 0. The variance over units is
    `K/(K-1) * G/(G-1) * sum of squared influences`, averaged over repeats before squaring, with G - 1 degrees of
    freedom for G units. The factor K/(K-1) accounts for the training images that the fits share: Nadeau and Bengio
    (Machine Learning 52, 2003) and Bouckaert and Frank (PAKDD 2004) derive such corrections for the variance over fits.

    All units of a fold share one training, and so its luck, which the variance over units does not contain. It is
    estimated as in an analysis of variance: the variance with folds as units, minus that with the units themselves,
    both within repeats, divided by the number of repeats. The estimate can be negative, but the sum is at least the
    variance over units without its factor. Degrees of freedom of the sum: Satterthwaite. If each unit is a fold, luck
    is a part of the variance over units.
    """
    influences, numbers = numpy.asarray(influence, dtype=float), numpy.asarray(folds)
    repeats, units = influences.shape
    count = int(numbers.max()) + 1
    plain, df = _over_units(influences, resolution)
    if units <= count:
        factor = count / (count - 1) if units > 1 else 1
        return Inference(mean=_mean(scores), df=df, over_units=factor * plain, unit_df=df)
    corrected = count / (count - 1) * plain
    cells = (numbers + count * numpy.arange(repeats)[:, None]).ravel()
    sums = numpy.bincount(cells, weights=influences.ravel(), minlength=repeats * count)
    over_folds = count / (count - 1) * float(sums @ sums) / repeats**2
    luck = over_folds - units / (units - 1) * float((influences**2).sum()) / repeats**2
    total = max(corrected + luck, plain)
    over_runs = max(luck, 0.0)
    return Inference(
        mean=_mean(scores),
        df=satterthwaite((corrected, df), (over_folds, repeats * (count - 1)), total=total),
        over_runs=over_runs,
        over_units=total - over_runs,
        unit_df=df,
    )


def infer_given(scores: ArrayLike, influence: ArrayLike, *, resolution: float = 0.0) -> Inference:
    """Estimate from runs that differ in the seed of the training and share training and test images.

    The variance is that of the mean over runs, plus that over test images. With a single run, it is that over test
    images, and says something only about the trained models. Degrees of freedom: Satterthwaite (Biometrics Bulletin 2,
    1946).
    """
    values = numpy.asarray(scores, dtype=float)
    over_units, df = _over_units(influence, resolution)
    over_runs = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    return Inference(
        mean=_mean(values),
        df=satterthwaite((over_runs, len(values) - 1), (over_units, df)),
        over_runs=over_runs,
        over_units=over_units,
        unit_df=df,
    )


def infer_draws(
    scores: ArrayLike, influence: ArrayLike, *, divisions: ArrayLike, resolution: float = 0.0
) -> Inference | None:
    """Estimate from disjoint draws of training images; return None if no division of the pool has two runs.

    `divisions` `[runs]` numbers the divisions of the pool: draws of one division share no image and are independent
    samples of the domain. Each unit is one test image. The variance over draws contains that of single predictions,
    which the variance over test images contains too, so it is subtracted once.
    """
    values, influences = numpy.asarray(scores, dtype=float), numpy.asarray(influence, dtype=float)
    numbers = numpy.asarray(divisions)
    over_units, df = _over_units(influences, resolution)
    images = influences.shape[-1]
    single = values[:, None] + images * influences  # the value of each image, for a mean over images
    parts, freedom = [], 0
    for number in numpy.unique(numbers):
        members = numbers == number
        count = int(members.sum())
        if count > 1:
            noise = float(single[members].var(0, ddof=1).mean()) / images
            parts.append((float(values[members].var(ddof=1)) / count, noise / count))
            freedom += count - 1
    if not parts:
        return None
    over_draws, noise = numpy.mean(parts, axis=0).tolist()
    over_runs = max(over_draws - noise, 0.0)
    freedoms = satterthwaite((over_draws, freedom), (over_units, df), total=over_runs + over_units)
    return Inference(mean=_mean(values), df=freedoms, over_runs=over_runs, over_units=over_units, unit_df=df)


def infer_fits(scores: ArrayLike, influence: ArrayLike, *, folds: int, resolution: float = 0.0) -> Inference:
    """Estimate from fits of repeated K-fold cross-validation that are all evaluated on other test images.

    `scores` and `influence` have one row for each fit. The variance over fits is multiplied by `1/fits + 1/(K-1)`, the
    correction of Nadeau and Bengio for training images that the fits share, with fits - 1 degrees of freedom (Bouckaert
    and Frank). That over test images is added.
    """
    values = numpy.asarray(scores, dtype=float)
    over_units, df = _over_units(influence, resolution)
    over_fits = (1 / len(values) + 1 / (folds - 1)) * float(values.var(ddof=1))
    return Inference(
        mean=_mean(values),
        df=satterthwaite((over_fits, len(values) - 1), (over_units, df)),
        over_runs=over_fits,
        over_units=over_units,
        unit_df=df,
    )


def infer_runs(values: ArrayLike) -> Inference:
    """Estimate the mean of a cost, such as the training time, from independent measurements."""
    measured = numpy.asarray(values, dtype=float)
    if len(measured) < 2:
        return Inference(_mean(measured))
    over_runs = float(measured.var(ddof=1)) / len(measured)
    return Inference(mean=_mean(measured), df=len(measured) - 1, over_runs=over_runs)


def satterthwaite(*terms: tuple[float, float], total: float | None = None) -> float:
    """Return the degrees of freedom of a sum of independent variances, given as pairs of variance and its own.

    `total` is the sum; it is given if a known part was subtracted from it.
    """
    total = sum(variance for variance, _ in terms) if total is None else total
    if not total:
        return max(df for _, df in terms)
    return total**2 / sum(variance**2 / df for variance, df in terms if variance)


def units_needed(difference: Inference, units: int, pairs: int = 1) -> int | None:
    """Return how many units would show this difference with an even chance; None for more than a hundred times as many.

    The part of the variance over units is assumed to shrink with their number, and the difference to stay the same.
    """
    room = _allowed(difference, pairs) - difference.over_runs
    needed = units * difference.over_units / room if room > 0 else math.inf
    return max(units + 1, math.ceil(needed)) if needed <= MOST_TIMES * units else None


def runs_needed(difference: Inference, runs: int, pairs: int = 1, *, parts: int = MOST_RUNS) -> int | None:
    """Return how many runs would show this difference with an even chance; None for more than a hundred.

    Only runs of one division into `parts` disjoint draws reduce the variance; more runs only make it more certain.
    """
    single = difference.over_runs * min(runs, parts)

    def shows(count: int) -> bool:
        over_runs = single / min(count, parts)
        df = satterthwaite((over_runs, count - math.ceil(count / parts)), (difference.over_units, difference.unit_df))
        error = math.sqrt(over_runs + difference.over_units)
        return abs(difference.mean) >= quantile(ALPHA / (2 * pairs), df) * error

    # Bisection works, because a difference that some runs show is also shown by more.
    plans = range(runs + 1, MOST_RUNS + 1)
    place = bisect.bisect_left(plans, True, key=shows)
    return plans[place] if place < len(plans) else None


def _allowed(difference: Inference, pairs: int) -> float:
    """Return the variance at which a difference is significant at the strictest step of Holm's method."""
    if difference.df is None:
        return 0.0
    return (difference.mean / quantile(ALPHA / (2 * pairs), difference.df)) ** 2


@functools.lru_cache(maxsize=100_000)
def quantile(tail: float, df: float) -> float:
    """Return the upper quantile of Student's t. It is cached: `scipy.special` takes 10 µs, a table has thousands."""
    return float(special.stdtrit(df, 1 - tail))


def _over_units(influence: ArrayLike, resolution: float) -> tuple[float, float]:
    """Return the variance of the mean score over units, with its degrees of freedom."""
    mean = numpy.asarray(influence, dtype=float).mean(0)
    units = len(mean)
    if units < 2:
        return math.inf, 1
    return max(units / (units - 1) * float(mean @ mean), resolution**2), units - 1


def _mean(values: ArrayLike) -> float:
    return float(numpy.asarray(values, dtype=float).mean())
