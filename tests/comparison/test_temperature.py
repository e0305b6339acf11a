"""One temperature for the logits of a model: its fit, and the cross-fitted figures before and after."""

from __future__ import annotations

import dataclasses
import math

import numpy
import pytest
from scipy.special import softmax

from adaptkit.comparison.temperature import (
    calibrate_predictions,
    calibration_text,
    fit_temperature,
    log_probabilities,
)
from adaptkit.errors import BadInput
from adaptkit.events import Predictions

CLASSES = 4


def overconfident(images: int, factor: float, seed: int = 0) -> Predictions:
    """Return predictions whose logits are `factor` times those of a calibrated model, in five folds."""
    random = numpy.random.default_rng(seed)
    logits = random.normal(size=(images, CLASSES)) * 1.5
    truth = (softmax(logits, axis=1).cumsum(1) > random.random((images, 1))).argmax(1)
    shares = softmax(factor * logits, axis=1).astype(numpy.float32)
    return Predictions(
        image=numpy.arange(images),
        truth=truth,
        predicted=shares.argmax(1),
        confidence=shares.max(1),
        probabilities=shares,
        fold=numpy.arange(images) % 5,
    )


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_known_temperature_is_found(factor: float) -> None:
    found = calibrate_predictions(overconfident(20_000, factor))
    assert found.temperature == pytest.approx(factor, rel=0.03)
    assert (found.images, found.parts) == (20_000, 5)
    assert found.ece_after < 0.015
    if factor != 1:
        assert found.nll_after < found.nll_before - 0.05 and found.ece_before > 0.08
    # The bins are those of the calibration error.
    for bins, error in ((found.bins_before, found.ece_before), (found.bins_after, found.ece_after)):
        assert sum(one.share for one in bins) == pytest.approx(1)
        assert sum(one.share * abs(one.accuracy - one.confidence) for one in bins) == pytest.approx(error)


def test_fit_is_a_minimum() -> None:
    predictions = overconfident(200, 2.0)
    logits = log_probabilities(numpy.asarray(predictions.probabilities, dtype=float))
    best = fit_temperature(logits, predictions.truth)
    losses = [
        -numpy.log(softmax(logits / value, axis=1)[numpy.arange(200), predictions.truth]).mean()
        for value in (0.99 * best, best, 1.01 * best)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_images_do_not_calibrate_themselves() -> None:
    predictions = overconfident(200, 2.0)
    found = calibrate_predictions(predictions)
    logits = log_probabilities(numpy.asarray(predictions.probabilities, dtype=float))
    losses = numpy.empty(200)
    for fold in range(5):
        rows = predictions.fold == fold
        temperature = fit_temperature(logits[~rows], predictions.truth[~rows])
        losses[rows] = -numpy.log(softmax(logits / temperature, axis=1)[numpy.arange(200), predictions.truth])[rows]
    assert found.nll_after == pytest.approx(losses.mean())


def test_predictions_without_folds_are_divided_by_group() -> None:
    predictions = dataclasses.replace(overconfident(60, 2.0), fold=None)
    assert calibrate_predictions(predictions).parts == 5
    groups = tuple("abc"[number % 3] for number in range(60))
    by_group = calibrate_predictions(dataclasses.replace(predictions, groups=groups))
    as_folds = calibrate_predictions(dataclasses.replace(predictions, fold=numpy.arange(60) % 3))
    assert by_group == as_folds and by_group.parts == 3


def test_few_images_do_not_change_a_calibrated_model() -> None:
    """Without the likelihood-ratio test, the temperature of every model would differ from 1."""
    kept = {factor: 0 for factor in (1.0, 3.0)}
    for factor in kept:
        for seed in range(50):
            few = overconfident(100, factor, seed)
            logits = log_probabilities(numpy.asarray(few.probabilities, dtype=float))
            kept[factor] += fit_temperature(logits, few.truth) == 1
    assert kept[1.0] >= 43 and kept[3.0] == 0
    calibrated = calibrate_predictions(overconfident(100, 1.0))
    assert calibrated.temperature == 1
    assert calibration_text(calibrated).startswith("Temperature 1, which changes no probability: 100 predictions")


def test_right_predictions_keep_their_confidence() -> None:
    predictions = overconfident(40, 2.0)
    found = calibrate_predictions(dataclasses.replace(predictions, truth=predictions.predicted))
    assert found.temperature == 1 and found.nll_after == found.nll_before


def test_predictions_worse_than_chance_have_a_finite_temperature() -> None:
    predictions = overconfident(40, 2.0)
    wrong = numpy.asarray(predictions.probabilities).argmin(1)
    found = calibrate_predictions(dataclasses.replace(predictions, truth=wrong))
    assert 50 < found.temperature <= 100 and found.nll_after == pytest.approx(math.log(CLASSES), rel=0.05)


def test_zeros_of_tables_with_six_decimals() -> None:
    exact = overconfident(2_000, 6.0)
    rounded = dataclasses.replace(exact, probabilities=numpy.asarray(exact.probabilities).round(6))
    assert (rounded.probabilities == 0).any()
    assert calibrate_predictions(rounded).temperature == pytest.approx(
        calibrate_predictions(exact).temperature, rel=0.2
    )


def test_predictions_that_cannot_be_calibrated() -> None:
    predictions = overconfident(40, 2.0)
    with pytest.raises(BadInput, match="no probabilities of all classes"):
        calibrate_predictions(dataclasses.replace(predictions, probabilities=None))
    with pytest.raises(BadInput, match="at least two folds"):
        calibrate_predictions(dataclasses.replace(predictions, fold=numpy.zeros(40)))
