"""How optimistic it is to choose the best of several strategies, on simulated strategies of known accuracy."""

from __future__ import annotations

import numpy
import pytest

from adaptkit.comparison.optimism import selection_optimism

IMAGES, REPEATS = 200, 150


@pytest.mark.parametrize("accuracies", [[0.7] * 5, [0.7, 0.7], [0.9, 0.5, 0.5], [0.72, 0.7, 0.68, 0.66]])
def test_optimism_is_that_of_the_simulation(accuracies: list[float]) -> None:
    random = numpy.random.default_rng(3)
    true, estimated = [], []
    for seed in range(REPEATS):
        correct = random.random((len(accuracies), IMAGES)) < numpy.array(accuracies)[:, None]
        best = correct.mean(1).argmax()
        true.append(correct.mean(1)[best] - accuracies[best])
        estimated.append(selection_optimism(correct, resamples=100, seed=seed))
    # The mean of the true optimism has a standard error of 0.3 points.
    assert numpy.mean(estimated) == pytest.approx(numpy.mean(true), abs=0.008)


def test_a_single_strategy_is_not_chosen() -> None:
    assert selection_optimism([[1, 0, 1, 1]]) == 0.0


def test_equal_predictions_give_no_optimism() -> None:
    correct = numpy.random.default_rng(0).random(IMAGES) < 0.7
    assert selection_optimism([correct, correct]) == pytest.approx(0.0, abs=0.002)


def test_the_same_seed_gives_the_same_number() -> None:
    correct = numpy.random.default_rng(0).random((3, IMAGES)) < 0.7
    assert selection_optimism(correct) == selection_optimism(correct) > 0
