"""The built-in metrics of classification; where scikit-learn has a metric, its function is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from adaptkit.contracts import Metric

    Floats = NDArray[numpy.float64]
    Integers = NDArray[numpy.int64]

#: number of bins of equal mass in the expected calibration error
BINS = 15
#: smallest probability in a logarithm
SMALLEST = 1e-12


class Accuracy:
    """Share of images whose most probable class is the true one."""

    name: ClassVar[str] = "accuracy"
    title: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "points"
    higher_is_better: ClassVar[bool] = True

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the accuracy as a fraction."""
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(truth, probabilities.argmax(1), sample_weight=weights))


class BalancedAccuracy:
    """Mean over classes of the share of their images that are recognised."""

    name: ClassVar[str] = "balanced_accuracy"
    title: ClassVar[str] = "balanced accuracy"
    unit: ClassVar[str] = "points"
    higher_is_better: ClassVar[bool] = True

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the mean recall of the classes that occur, as a fraction."""
        return float(_recalls(probabilities, truth, weights).mean())


class MacroF1:
    """Mean over classes of F1, the harmonic mean of precision and recall."""

    name: ClassVar[str] = "macro_f1"
    title: ClassVar[str] = "macro F1"
    unit: ClassVar[str] = "points"
    higher_is_better: ClassVar[bool] = True

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the mean F1 of the classes that occur or are predicted, as a fraction."""
        from sklearn.metrics import f1_score

        predicted = probabilities.argmax(1)
        return float(f1_score(truth, predicted, average="macro", sample_weight=weights, zero_division=0))


class Kappa:
    """Agreement with the truth beyond chance, by Cohen (1960); 0 is chance, 1 is perfect."""

    name: ClassVar[str] = "kappa"
    title: ClassVar[str] = "Cohen's kappa"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return kappa; 0 if the truth and the predictions are a single class."""
        return _kappa(probabilities, truth, weights, penalty=None)


class WeightedKappa:
    """Kappa with quadratic penalties for distant classes, in the order of the classes: for grades and stages."""

    name: ClassVar[str] = "weighted_kappa"
    title: ClassVar[str] = "weighted kappa"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return kappa with quadratic weights; 0 if the truth and the predictions are a single class."""
        return _kappa(probabilities, truth, weights, penalty="quadratic")


class NegativeLogLikelihood:
    """Mean negative logarithm of the probability of the true class (log loss); probabilities are at least 1e-12."""

    name: ClassVar[str] = "nll"
    title: ClassVar[str] = "negative log-likelihood"
    unit: ClassVar[str] = "nats"
    higher_is_better: ClassVar[bool] = False

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the mean log loss in nats."""
        import numpy

        return float(numpy.average(log_losses(probabilities, truth), weights=weights))


class Brier:
    """Mean squared distance of the probabilities from the truth, summed over classes; 0 to 2."""

    name: ClassVar[str] = "brier"
    title: ClassVar[str] = "Brier score"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the mean over images of the squared distance."""
        import numpy

        return float(numpy.average(squared_distances(probabilities, truth), weights=weights))


class CalibrationError:
    """Expected calibration error: mean gap between confidence and accuracy, in 15 bins of equal mass."""

    name: ClassVar[str] = "ece"
    title: ClassVar[str] = "calibration error"
    unit: ClassVar[str] = "points"
    higher_is_better: ClassVar[bool] = False

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the error as a fraction. Images of equal confidence are in one bin."""
        import numpy

        mass = numpy.ones(len(truth)) if weights is None else numpy.asarray(weights, dtype=float)
        gaps = (probabilities.argmax(1) == truth) - probabilities.max(1)
        sums = numpy.bincount(bins_of(probabilities, mass), weights=mass * gaps, minlength=BINS)
        return float(numpy.abs(sums).sum() / mass.sum())


class Auroc:
    """Area under the ROC curve, one class versus the rest, averaged over classes."""

    name: ClassVar[str] = "auroc"
    title: ClassVar[str] = "AUROC"
    unit: ClassVar[str] = "points"
    higher_is_better: ClassVar[bool] = True

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the mean area over the classes that occur next to others, as a fraction; NaN without one."""
        from sklearn.metrics import roc_auc_score

        return _over_classes(roc_auc_score, probabilities, truth, weights)


class AveragePrecision:
    """Average precision, one class versus the rest, averaged over classes."""

    name: ClassVar[str] = "average_precision"
    title: ClassVar[str] = "average precision"
    unit: ClassVar[str] = "points"
    higher_is_better: ClassVar[bool] = True

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the mean over the classes that occur next to others, as a fraction; NaN without one."""
        from sklearn.metrics import average_precision_score

        return _over_classes(average_precision_score, probabilities, truth, weights)


class WorstClassRecall:
    """Share of recognised images of the class that is recognised worst."""

    name: ClassVar[str] = "worst_class_recall"
    title: ClassVar[str] = "worst class recall"
    unit: ClassVar[str] = "points"
    higher_is_better: ClassVar[bool] = True

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the lowest recall of the classes that occur, as a fraction."""
        return float(_recalls(probabilities, truth, weights).min())


class WorstGroupAccuracy:
    """Accuracy on the group of images with the lowest one; it needs groups."""

    name: ClassVar[str] = "worst_group_accuracy"
    title: ClassVar[str] = "worst group accuracy"
    unit: ClassVar[str] = "points"
    higher_is_better: ClassVar[bool] = True

    def score(
        self, probabilities: Floats, truth: Integers, *, weights: Floats | None = None, groups: Integers | None = None
    ) -> float:
        """Return the lowest accuracy of a group, as a fraction; NaN without groups."""
        import numpy

        if groups is None:
            return float("nan")
        right = (probabilities.argmax(1) == truth).astype(float)
        mass = numpy.ones(len(truth)) if weights is None else numpy.asarray(weights, dtype=float)
        which = numpy.unique(groups, return_inverse=True)[1]
        total = numpy.bincount(which, weights=mass)
        shares = numpy.bincount(which, weights=mass * right)[total > 0] / total[total > 0]
        return float(shares.min())


def log_losses(probabilities: Floats, truth: Integers) -> Floats:
    """Return the negative logarithm of the probability of the true class of each image."""
    import numpy

    losses: Floats = -numpy.log(numpy.maximum(probabilities[numpy.arange(len(truth)), truth], SMALLEST))
    return losses


def squared_distances(probabilities: Floats, truth: Integers) -> Floats:
    """Return the squared distance of the probabilities of each image from the truth."""
    import numpy

    distances: Floats = ((probabilities - numpy.eye(probabilities.shape[1])[truth]) ** 2).sum(1)
    return distances


def bins_of(probabilities: Floats, weights: Floats | None = None, *, count: int = BINS) -> Integers:
    """Return the bin of each image: bins of equal mass by confidence, with images of equal confidence in one bin."""
    import numpy

    mass = numpy.ones(len(probabilities)) if weights is None else weights
    levels, which = numpy.unique(probabilities.max(1), return_inverse=True)
    by_level = numpy.bincount(which, weights=mass, minlength=len(levels))
    middle = (numpy.cumsum(by_level) - by_level / 2) / mass.sum()
    bins: Integers = numpy.minimum((count * middle).astype(numpy.int64), count - 1)[which]
    return bins


def _recalls(probabilities: Floats, truth: Integers, weights: Floats | None) -> Floats:
    """Return the recall of each class that occurs."""
    import numpy
    from sklearn.metrics import recall_score

    present = numpy.unique(truth)
    recalls: Floats = recall_score(
        truth, probabilities.argmax(1), labels=present, average=None, sample_weight=weights, zero_division=0
    )
    return recalls


def _kappa(probabilities: Floats, truth: Integers, weights: Floats | None, *, penalty: str | None) -> float:
    from sklearn.metrics import cohen_kappa_score

    predicted = probabilities.argmax(1)
    if len({*truth.tolist(), *predicted.tolist()}) == 1:
        return 0.0
    labels = list(range(probabilities.shape[1]))
    return float(cohen_kappa_score(truth, predicted, labels=labels, weights=penalty, sample_weight=weights))


def _over_classes(score: object, probabilities: Floats, truth: Integers, weights: Floats | None) -> float:
    """Return the mean of a binary score over the classes that occur next to others."""
    import numpy

    classes = [number for number in numpy.unique(truth) if not (truth == number).all()]
    assert callable(score)
    values = [score(truth == number, probabilities[:, number], sample_weight=weights) for number in classes]
    return float(numpy.mean(values)) if values else float("nan")


@hookimpl
def adaptkit_metrics() -> list[type[Metric]]:
    """Return the built-in metrics."""
    return [
        Accuracy,
        BalancedAccuracy,
        MacroF1,
        Kappa,
        WeightedKappa,
        NegativeLogLikelihood,
        Brier,
        CalibrationError,
        Auroc,
        AveragePrecision,
        WorstClassRecall,
        WorstGroupAccuracy,
    ]
