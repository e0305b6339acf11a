"""The chance of the test images: every run's score on the same bootstrap samples of its test set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from adaptkit.comparison import ComparedRun
from adaptkit.contracts import Predictions
from adaptkit.reports.metrics import TEST_SETS
from adaptkit.reports.statistics import resampling_weights

#: of the generator that draws test images: fixed, so that a report can be computed again
SEED = 0


def resampled_scores(metric: str, runs: Sequence[ComparedRun]) -> NDArray[numpy.float64] | None:
    """Return each run's score `[runs, resamples]` on bootstrap samples of the test images, drawn once for all runs.

    None for a metric that test images do not decide. Gain and retention are scored as the accuracy: their difference
    between two runs is the same.
    """
    if metric not in TEST_SETS:
        return None
    found = [run.predictions[TEST_SETS[metric]] for run in runs]
    weights = resampling_weights(len(found[0].truth), SEED)
    if metric.endswith("macro_f1"):
        classes = len(runs[0].classes)
        return numpy.stack([_macro_f1(predictions, weights, classes) for predictions in found])
    right = numpy.stack([predictions.predicted == predictions.truth for predictions in found]).astype(weights.dtype)
    scores: NDArray[numpy.float64] = (right @ weights.T).astype(float) / weights.shape[1]
    return scores


def _macro_f1(predictions: Predictions, weights: NDArray[numpy.float32], classes: int) -> NDArray[numpy.float64]:
    truth = numpy.eye(classes, dtype=weights.dtype)[predictions.truth]
    predicted = numpy.eye(classes, dtype=weights.dtype)[predictions.predicted]
    both = weights @ (truth * predicted)
    total = weights @ truth + weights @ predicted
    f1 = numpy.divide(2 * both, total, out=numpy.zeros_like(both), where=total > 0)
    # As scikit-learn does: a class that neither occurs nor is predicted is no class of this sample.
    mean: NDArray[numpy.float64] = f1.sum(1) / numpy.maximum((total > 0).sum(1), 1)
    return mean
