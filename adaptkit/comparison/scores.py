"""Score predictions, and the influence of each image (or group of images) on the score.

`comparison.inference` says what an influence is. For a mean over images it is exact. For other metrics it is that of
the jackknife: `(G-1)/G * (mean of the scores without one unit - score without this unit)` for G units. The squares of
these influences times G/(G-1) add up to the jackknife's variance (Efron and Stein, Annals of Statistics 9, 1981). The
scores without one image are computed in closed form for the built-in metrics, and one by one for those of plugins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from adaptkit.contracts import Metric
from adaptkit.metrics.classification import BINS, bins_of, log_losses, squared_distances

Floats = NDArray[numpy.float64]
Integers = NDArray[numpy.int64]


@dataclass(frozen=True)
class Answers:
    """Predicted probabilities `[n, classes]`, predicted and true classes `[n]`, and groups `[n]` if there are any.

    `probabilities` are None for runs of earlier versions, which did not record them.
    """

    predicted: Integers
    truth: Integers
    classes: int
    probabilities: Floats | None = None
    groups: Integers | None = None

    def shares(self) -> Floats:
        """Return the probabilities; those of earlier versions are 1 for the predicted class."""
        if self.probabilities is None:
            certain: Floats = numpy.eye(self.classes)[self.predicted]
            return certain
        return self.probabilities

    def without(self, left_out: NDArray[numpy.bool_]) -> Answers:
        """Return the answers for the other images."""
        kept = ~left_out
        return Answers(
            predicted=self.predicted[kept],
            truth=self.truth[kept],
            classes=self.classes,
            probabilities=None if self.probabilities is None else self.probabilities[kept],
            groups=None if self.groups is None else self.groups[kept],
        )

    def score(self, metric: Metric) -> float:
        """Return the score of a metric; NaN if it is not defined for these answers."""
        return float(metric.score(self.shares(), self.truth, groups=self.groups))


@dataclass(frozen=True)
class Scored:
    """A score with the influence of each unit on it `[units]`, as in `comparison.inference`."""

    value: float
    influence: Floats

    def __sub__(self, other: Scored) -> Scored:
        return Scored(self.value - other.value, self.influence - other.influence)


#: built-in metrics that need probabilities
PROBABILISTIC = ("nll", "brier", "ece", "auroc", "average_precision")
#: built-in metrics that need predicted classes only
OF_CLASSES = (
    *("accuracy", "balanced_accuracy", "macro_f1", "kappa", "weighted_kappa"),
    *("worst_class_recall", "worst_group_accuracy"),
)
#: metrics that depend on one class or group, so that the jackknife does not measure their error
OF_THE_WORST = ("worst_class_recall", "worst_group_accuracy")


def score(metric: Metric, answers: Answers, units: Integers | None = None) -> Scored | None:
    """Return the score of a metric with influences; `units` numbers the group of each image, from 0.

    Returns None if the answers have no probabilities and the metric needs them, if the score is not defined, or if its
    error cannot be measured.
    """
    if metric.name in OF_THE_WORST:
        return None
    if answers.probabilities is None and metric.name in PROBABILISTIC:
        return None
    if metric.name in PER_IMAGE:
        return mean_score(PER_IMAGE[metric.name](answers), units)
    value = answers.score(metric)
    if not numpy.isfinite(value):
        return None
    if units is None and metric.name in WITHOUT_IMAGES:
        without = WITHOUT_IMAGES[metric.name](answers)
    elif units is not None and metric.name in OF_COUNTS:
        without = OF_COUNTS[metric.name](_counts_without(answers, units))
    else:
        numbers = numpy.arange(len(answers.truth)) if units is None else units
        left = (answers.without(numbers == unit) for unit in range(int(numbers.max()) + 1))
        without = numpy.array([part.score(metric) for part in left])
    return jackknife(value, without)


def mean_score(values: NDArray[numpy.generic], units: Integers | None = None) -> Scored:
    """Return the mean of one value for each image; `units` numbers the group of each image, from 0."""
    numbers = numpy.asarray(values, dtype=float)
    mean = float(numbers.mean())
    if units is None:
        return Scored(mean, (numbers - mean) / len(numbers))
    sums, sizes = numpy.bincount(units, weights=numbers - mean), numpy.bincount(units)
    # A single group has no mean without it, and no measured error.
    return jackknife(mean, mean - sums / numpy.maximum(len(numbers) - sizes, 1))


def jackknife(value: float, without: Floats) -> Scored:
    """Return a score with the influences that follow from the scores without one unit each.

    Where such a score is not defined, because it needs this unit, the influence is 0.
    """
    count = len(without)
    known = numpy.isfinite(without)
    mean = without[known].mean() if known.any() else 0.0
    return Scored(value, numpy.where(known, (count - 1) / count * (mean - without), 0.0))


def macro_f1_score(truth: Integers, predicted: Integers, *, classes: int, units: Integers | None = None) -> Scored:
    """Return the mean F1 over classes; like scikit-learn, without classes that neither occur nor are predicted."""
    from adaptkit.metrics.classification import MacroF1

    scored = score(MacroF1(), Answers(predicted=predicted, truth=truth, classes=classes), units)
    assert scored is not None
    return scored


def right(answers: Answers) -> Floats:
    """Return 1 for each image that is classified correctly, otherwise 0."""
    is_right: Floats = (answers.predicted == answers.truth).astype(float)
    return is_right


#: metrics that are means over images -> the value of each image
PER_IMAGE: dict[str, Callable[[Answers], Floats]] = {
    "accuracy": right,
    "nll": lambda answers: log_losses(answers.shares(), answers.truth),
    "brier": lambda answers: squared_distances(answers.shares(), answers.truth),
}


def _class_mean(answers: Answers, of_class: Callable[[Floats, Floats, Floats], Floats]) -> Floats:
    """Return the mean over classes without each image, which changes only the scores of its two classes.

    `of_class` takes the numbers of correct, actual and predicted images of each class.
    """
    truth, predicted, hit = answers.truth, answers.predicted, right(answers)
    correct, actual, claimed = (_count(of, answers.classes) for of in (truth[hit == 1], truth, predicted))
    each = of_class(correct, actual, claimed)
    changes = (
        (truth, of_class(correct[truth] - hit, actual[truth] - 1, claimed[truth] - hit), numpy.ones_like(hit)),
        (predicted, of_class(correct[predicted], actual[predicted], claimed[predicted] - 1), 1 - hit),
    )
    total = numpy.full(len(truth), numpy.nansum(each))
    known = numpy.full(len(truth), float((~numpy.isnan(each)).sum()))
    for of, new, where in changes:
        total += where * (numpy.nan_to_num(new) - numpy.nan_to_num(each[of]))
        known += where * ((~numpy.isnan(new)).astype(float) - ~numpy.isnan(each[of]))
    mean: Floats = total / numpy.maximum(known, 1)
    return mean


def _count(classes: Integers, size: int) -> Floats:
    return numpy.bincount(classes, minlength=size).astype(float)


def _f1(correct: Floats, actual: Floats, claimed: Floats) -> Floats:
    return _share(2 * correct, actual + claimed)


def _recall(correct: Floats, actual: Floats, claimed: Floats) -> Floats:
    return _share(correct, actual)


def _share(part: Floats, whole: Floats) -> Floats:
    """Return a quotient; NaN where the whole is 0."""
    return numpy.divide(part, whole, out=numpy.full_like(whole, numpy.nan), where=whole > 0)


def _kappa(answers: Answers, distance: Floats) -> Floats:
    """Return Cohen's kappa without each image, for penalties `[classes, classes]` of confusions."""
    truth, predicted, classes = answers.truth, answers.predicted, answers.classes
    counts = numpy.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes).astype(float)
    actual, claimed, images = counts.sum(1), counts.sum(0), len(truth) - 1
    observed = (counts * distance).sum() - distance[truth, predicted]
    # The chance confusions of the margins without the image: (a - e_t)' D (b - e_p).
    chance = actual @ distance @ claimed - distance[truth] @ claimed - actual @ distance[:, predicted]
    chance = (chance + distance[truth, predicted]) / images
    return numpy.where(chance > 0, 1 - observed / numpy.where(chance > 0, chance, 1), 0.0)


def _auroc(answers: Answers) -> Floats:
    def without(scores: Floats, positive: NDArray[numpy.bool_]) -> Floats:
        high, low = numpy.sort(scores[positive]), numpy.sort(scores[~positive])
        below = (numpy.searchsorted(low, scores, "left") + numpy.searchsorted(low, scores, "right")) / 2
        above = len(high) - (numpy.searchsorted(high, scores, "left") + numpy.searchsorted(high, scores, "right")) / 2
        total = below[positive].sum()
        left = numpy.where(positive, total - below, total - above)
        pairs = numpy.where(positive, (len(high) - 1) * len(low), len(high) * (len(low) - 1))
        return _share(left, pairs.astype(float))

    return _over_classes(answers, without)


def _average_precision(answers: Answers) -> Floats:
    def without(scores: Floats, positive: NDArray[numpy.bool_]) -> Floats:
        high, every = numpy.sort(scores[positive])[::-1], numpy.sort(scores)
        # At the threshold of each positive image, the highest first: positive and all images that are not below.
        hits = numpy.searchsorted(-high, -high, "right").astype(float)
        chosen = (len(every) - numpy.searchsorted(every, high, "left")).astype(float)
        # Thresholds above an image stay as they are; those up to it lose the image.
        start = numpy.searchsorted(-high, -scores, "left")
        whole = numpy.concatenate([[0.0], numpy.cumsum(hits / chosen)])
        fewer = numpy.maximum(chosen - 1, 1)
        both = numpy.concatenate([[0.0], numpy.cumsum((hits - 1) / fewer)])
        one = numpy.concatenate([[0.0], numpy.cumsum(hits / fewer)])
        place = numpy.clip(start, 0, len(high) - 1)
        own = ((hits - 1) / fewer)[place]  # the threshold of the positive image itself goes
        total = whole[start] + numpy.where(positive, both[-1] - both[start] - own, one[-1] - one[start])
        left = numpy.where(positive, len(high) - 1, len(high)).astype(float)
        others = len(every) - 1 - left
        return numpy.where(others > 0, _share(total, left), numpy.nan)

    return _over_classes(answers, without)


def _over_classes(answers: Answers, without: Callable[[Floats, NDArray[numpy.bool_]], Floats]) -> Floats:
    """Return the mean over classes of a score of one class versus the rest, without each image."""
    parts = []
    for number in numpy.unique(answers.truth):
        positive = answers.truth == number
        if not positive.all():
            parts.append(without(answers.shares()[:, number], positive))
    each = numpy.stack(parts)
    known = ~numpy.isnan(each)
    return _share(numpy.nansum(each, axis=0), known.sum(0).astype(float))


def _calibration_error(answers: Answers) -> Floats:
    """Return the calibration error without each image, in the bins of all images."""
    shares = answers.shares()
    confidence, bins = shares.max(1), bins_of(shares)
    gaps = (shares.argmax(1) == answers.truth) - confidence
    sums = numpy.bincount(bins, weights=gaps, minlength=BINS)
    total = numpy.abs(sums).sum() - numpy.abs(sums[bins]) + numpy.abs(sums[bins] - gaps)
    return numpy.asarray(total / (len(gaps) - 1), dtype=float)


def _counts_without(answers: Answers, units: Integers) -> Floats:
    """Return the numbers of images by true and predicted class without each group, `[groups, classes, classes]`."""
    classes, groups = answers.classes, int(units.max()) + 1
    codes = (units * classes + answers.truth) * classes + answers.predicted
    counts = _count(codes, groups * classes**2).reshape(groups, classes, classes)
    left: Floats = counts.sum(0) - counts
    return left


def _kappa_of_counts(counts: Floats, distance: Floats) -> Floats:
    observed = (counts * distance).sum((1, 2))
    chance = numpy.einsum("ga,ab,gb->g", counts.sum(2), distance, counts.sum(1)) / counts.sum((1, 2))
    return numpy.where(chance > 0, 1 - observed / numpy.where(chance > 0, chance, 1), 0.0)


def _recalls_of_counts(counts: Floats) -> Floats:
    return _share(numpy.diagonal(counts, axis1=1, axis2=2).copy(), counts.sum(2))


def _f1_of_counts(counts: Floats) -> Floats:
    correct = numpy.diagonal(counts, axis1=1, axis2=2)
    return numpy.nanmean(_share(2 * correct, counts.sum(1) + counts.sum(2)), axis=1)  # type: ignore[no-any-return]


def _distances(classes: int) -> Floats:
    places = numpy.arange(classes, dtype=float)
    distances: Floats = (places[:, None] - places) ** 2
    return distances


#: built-in metrics that are not means over images -> the scores without each image
WITHOUT_IMAGES: dict[str, Callable[[Answers], Floats]] = {
    "balanced_accuracy": lambda answers: _class_mean(answers, _recall),
    "macro_f1": lambda answers: _class_mean(answers, _f1),
    "kappa": lambda answers: _kappa(answers, 1 - numpy.eye(answers.classes)),
    "weighted_kappa": lambda answers: _kappa(answers, _distances(answers.classes)),
    "auroc": _auroc,
    "average_precision": _average_precision,
    "ece": _calibration_error,
}

#: built-in metrics of confusion counts -> their scores, from counts `[many, classes, classes]`, true classes in rows
OF_COUNTS: dict[str, Callable[[Floats], Floats]] = {
    "balanced_accuracy": lambda counts: numpy.nanmean(_recalls_of_counts(counts), axis=1),
    "macro_f1": _f1_of_counts,
    "kappa": lambda counts: _kappa_of_counts(counts, 1 - numpy.eye(counts.shape[1])),
    "weighted_kappa": lambda counts: _kappa_of_counts(counts, _distances(counts.shape[1])),
}
