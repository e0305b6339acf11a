"""Calibrate the probabilities of a model with one temperature (Guo and others, ICML 2017).

The temperature is fitted on predictions of models that were not trained on the predicted images: those of other folds,
or of the test part. The probabilities determine the logits up to a constant of each image, which changes nothing.

A temperature that is fitted to few images is uncertain, and would make a model worse that is calibrated already. So it
is 1 unless a likelihood-ratio test shows that another one is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import chdtrc, log_softmax, softmax

from adaptkit.errors import BadInput
from adaptkit.events import Calibration, ConfidenceBin, Predictions
from adaptkit.metrics.classification import BINS, CalibrationError, NegativeLogLikelihood, bins_of
from adaptkit.names import (
    CALIBRATION_ECE_AFTER,
    CALIBRATION_ECE_BEFORE,
    CALIBRATION_NLL_AFTER,
    CALIBRATION_NLL_BEFORE,
    CALIBRATION_TEMPERATURE,
)

Floats = NDArray[numpy.float64]
Integers = NDArray[numpy.int64]

#: smallest and largest temperature
RANGE = (0.01, 100.0)
#: level of the test that the temperature is not 1
LEVEL = 0.05
#: number of parts for cross-fitting predictions that have no folds
PARTS = 5
#: images in a point of a reliability diagram; with fewer, its accuracy is mostly chance
LEAST_IMAGES, LEAST_POINTS = 25, 3


@dataclass(frozen=True)
class CrossFitted:
    """True classes `[n]`, and the probabilities `[n, classes]` before and after calibration.

    The temperature of each of `parts` parts of the images is fitted on the other parts. `logits` are those of `before`.
    """

    truth: Integers
    logits: Floats
    before: Floats
    after: Floats
    parts: int


def cross_fit(predictions: Predictions) -> CrossFitted:
    """Calibrate predictions for images that did not train their models, each part by the others.

    Raises BadInput without the probabilities of all classes, or for a single fold or group.
    """
    if predictions.probabilities is None:
        raise BadInput("its predictions have no probabilities of all classes, which --calibrate needs; repeat the run")
    truth = numpy.asarray(predictions.truth, dtype=numpy.int64)
    parts = _parts(predictions)
    names = numpy.unique(parts)
    if len(names) < 2:
        raise BadInput("--calibrate needs predictions of at least two folds, groups or images")
    logits = log_probabilities(numpy.asarray(predictions.probabilities, dtype=float))
    after = numpy.empty_like(logits)
    for name in names:
        rows = parts == name
        after[rows] = softmax(logits[rows] / fit_temperature(logits[~rows], truth[~rows]), axis=1)
    before = softmax(logits, axis=1)  # rounded numbers do not add up to 1
    return CrossFitted(truth=truth, logits=logits, before=before, after=after, parts=len(names))


def calibrate_predictions(predictions: Predictions) -> Calibration:
    """Fit the temperature to predictions for images that did not train their models, and cross-fit its effect.

    Raises BadInput without the probabilities of all classes, or for a single fold or group.
    """
    fitted = cross_fit(predictions)
    truth, before, after = fitted.truth, fitted.before, fitted.after
    nll, ece = NegativeLogLikelihood(), CalibrationError()
    return Calibration(
        temperature=fit_temperature(fitted.logits, truth),
        images=len(truth),
        parts=fitted.parts,
        nll_before=nll.score(before, truth),
        nll_after=nll.score(after, truth),
        ece_before=ece.score(before, truth),
        ece_after=ece.score(after, truth),
        bins_before=confidence_bins(before, truth),
        bins_after=confidence_bins(after, truth),
    )


def log_probabilities(probabilities: Floats) -> Floats:
    """Return the logarithms of probabilities; a probability of 0 was too small for its table."""
    smallest = probabilities[probabilities > 0].min() / 2
    logarithms: Floats = numpy.log(numpy.maximum(probabilities, smallest))
    return logarithms


def fit_temperature(logits: Floats, truth: Integers) -> float:
    """Return the temperature with the smallest negative log-likelihood of the true classes, if it is shown not to be 1.

    It is 1 if the likelihood-ratio test does not reject that, and if all predictions are right: then there is no
    smallest value, because the loss falls with the temperature.
    """
    rows = numpy.arange(len(truth))
    if (logits.argmax(1) == truth).all():
        return 1.0

    def loss(scale: float) -> float:
        return float(-log_softmax(logits / math.exp(scale), axis=1)[rows, truth].mean())

    low, high = map(math.log, RANGE)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    ratio = 2 * len(truth) * (loss(0.0) - float(found.fun))  # chi-squared with one degree of freedom
    return math.exp(float(found.x)) if chdtrc(1, max(ratio, 0.0)) < LEVEL else 1.0


def calibration_metrics(calibration: Calibration) -> dict[str, float]:
    """Return the final metrics of a calibrated refit."""
    return {
        CALIBRATION_TEMPERATURE: calibration.temperature,
        CALIBRATION_NLL_BEFORE: calibration.nll_before,
        CALIBRATION_NLL_AFTER: calibration.nll_after,
        CALIBRATION_ECE_BEFORE: calibration.ece_before,
        CALIBRATION_ECE_AFTER: calibration.ece_after,
    }


def calibration_text(calibration: Calibration) -> str:
    """Return the effect of a calibration as a sentence."""
    shown = f"{calibration.images:,} predictions of models that had not seen the image"
    found = f"Calibrated with temperature {calibration.temperature:.3g}, fitted on {shown}."
    is_unchanged, changed = calibration.temperature == 1, calibration.nll_after != calibration.nll_before
    if is_unchanged:
        found = f"Temperature 1, which changes no probability: {shown} do not show that another one is better."
    others = ", some of which chose another temperature" if is_unchanged and changed else ""
    return (
        f"{found} Cross-fitted in {calibration.parts} parts{others}: negative log-likelihood "
        f"{calibration.nll_before:.3f} -> {calibration.nll_after:.3f}, calibration error "
        f"{100 * calibration.ece_before:.1f} -> {100 * calibration.ece_after:.1f} points."
    )


def _parts(predictions: Predictions) -> Integers:
    """Return the number of each image's part: its fold, or without folds one of five; no group is divided."""
    if predictions.fold is not None:
        return numpy.asarray(predictions.fold, dtype=numpy.int64)
    units: Sequence[object] = range(len(predictions.truth)) if predictions.groups is None else predictions.groups
    return numpy.unique(numpy.array(units), return_inverse=True)[1].astype(numpy.int64) % PARTS


def confidence_bins(probabilities: Floats, truth: Integers, *, repeats: int = 1) -> tuple[ConfidenceBin, ...]:
    """Return predictions of similar confidence together, in bins of equal size; fewer bins for fewer images.

    `repeats` is the number of predictions for each image: they do not narrow the intervals.
    """
    from scipy.stats import binomtest  # takes half a second

    images = len(truth) // repeats
    bins = bins_of(probabilities, count=min(BINS, max(LEAST_POINTS, images // LEAST_IMAGES)))
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    found = []
    for number in numpy.unique(bins):
        inside = bins == number
        accuracy, count = float(right[inside].mean()), max(1, round(int(inside.sum()) / repeats))
        ends = binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
        found.append(
            ConfidenceBin(
                share=float(inside.mean()),
                confidence=float(confidence[inside].mean()),
                accuracy=accuracy,
                low=min(accuracy, float(ends.low)),
                high=max(accuracy, float(ends.high)),
            )
        )
    return tuple(found)
