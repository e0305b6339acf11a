"""Scores and the influence of images and groups on them, against scores without them."""

from __future__ import annotations

import numpy
import pytest
from sklearn.metrics import f1_score

from adaptkit.comparison.scores import macro_f1_score, mean_score


def answers(seed: int = 0) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return true and predicted classes of 60 images, with a class of one image and one that is only predicted."""
    rng = numpy.random.default_rng(seed)
    truth = rng.integers(0, 4, 60)
    predicted = numpy.where(rng.random(60) < 0.7, truth, rng.integers(0, 4, 60))
    truth[0], predicted[1] = 4, 5
    return truth, predicted


def jackknife(without: list[float]) -> numpy.ndarray:
    values = numpy.array(without)
    return (len(values) - 1) / len(values) * (values.mean() - values)


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_influence_of_images(seed: int) -> None:
    truth, predicted = answers(seed)
    scored = macro_f1_score(truth, predicted, classes=7)
    assert scored.value == pytest.approx(f1_score(truth, predicted, average="macro"))
    without = [
        float(f1_score(numpy.delete(truth, place), numpy.delete(predicted, place), average="macro"))
        for place in range(60)
    ]
    assert scored.influence == pytest.approx(jackknife(without))
    assert scored.influence.sum() == pytest.approx(0)


def test_macro_f1_influence_of_groups() -> None:
    truth, predicted = answers()
    units = numpy.random.default_rng(1).integers(0, 9, 60)
    scored = macro_f1_score(truth, predicted, classes=7, units=units)
    without = [float(f1_score(truth[units != g], predicted[units != g], average="macro")) for g in range(9)]
    assert scored.influence == pytest.approx(jackknife(without))


def test_mean_influence() -> None:
    right = numpy.array([1, 0, 1, 1])
    scored = mean_score(right)
    assert scored.value == 0.75
    assert scored.influence.tolist() == [0.0625, -0.1875, 0.0625, 0.0625]
    grouped = mean_score(right, numpy.array([0, 0, 1, 1]))
    assert grouped.influence.tolist() == [-0.125, 0.125]
