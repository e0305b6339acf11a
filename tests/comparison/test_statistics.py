"""Verdicts, Holm's correction, resampling weights and scores of confusion counts, against hand calculations."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from adaptkit.comparison.inference import Inference, quantile
from adaptkit.comparison.statistics import confusion, f1_scores, holm, ppt, resampling_weights, verdict

MARGIN = 0.01


def near(value: object, rel: float = 1e-9) -> Any:
    """Return a value that compares equal up to rounding."""
    return pytest.approx(value, rel=rel, abs=1e-15)


# --- Holm


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.03], [0.03]),
        # .005 x 4, .01 x 3, .03 x 2, and .04 x 1, which is raised to the previous step
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.9, 0.4, 0.6], [1.0, 1.0, 1.0]),
        ([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]),
        ([0.001, 0.049], [0.002, 0.049]),
        ([0.03, 0.049], [0.06, 0.06]),
    ],
)
def test_holm_by_hand(p: list[float], corrected: list[float]) -> None:
    assert holm(p).tolist() == near(corrected)


def test_holm_equals_step_down_procedure() -> None:
    rng = numpy.random.default_rng(2)
    for count in (1, 2, 6, 15):
        for p in rng.beta(0.3, 2, (50, count)):
            corrected = holm(p)
            for alpha in (0.01, 0.05, 0.3):
                rejected = set()
                for step, index in enumerate(numpy.argsort(p)):
                    if p[index] > alpha / (count - step):
                        break
                    rejected.add(int(index))
                assert set(numpy.flatnonzero(corrected <= alpha).tolist()) == rejected


def test_holm_monotone_bounded_and_independent_of_order() -> None:
    rng = numpy.random.default_rng(3)
    families = rng.beta(0.5, 2, (500, 6))
    families[:100] = numpy.round(families[:100], 1)
    corrected = holm(families)
    assert (corrected >= families).all() and (corrected <= 1).all()
    assert (corrected <= numpy.minimum(families * 6, 1) + 1e-15).all()
    order = families.argsort(-1)
    assert (numpy.diff(numpy.take_along_axis(corrected, order, -1)) >= 0).all()
    for shuffle in list(permutations(range(6)))[::37]:
        assert numpy.array_equal(holm(families[:, shuffle]), corrected[:, shuffle])


def test_holm_does_not_change_its_input() -> None:
    p = numpy.array([0.02, 0.01])
    holm(p)
    assert p.tolist() == [0.02, 0.01]


# --- verdicts


@pytest.mark.parametrize(
    ("mean", "half", "p", "word"),
    [
        (0.02, 0.01, 0.0499, "better"),
        (-0.02, 0.01, 0.0499, "worse"),
        (0.02, 0.015, 0.05, "undecided"),
        (0.0, 0.00999, 1.0, "tie"),
        (0.0, 0.0100001, 1.0, "undecided"),
        (0.005, 0.004, 0.2, "tie"),
        # A small but significant difference is not a tie.
        (0.005, 0.004, 0.01, "better"),
        (-0.005, 0.004, 0.01, "worse"),
        (0.02, 0.005, 0.2, "undecided"),
        (0.0, 0.0, 1.0, "tie"),
    ],
)
def test_verdict(mean: float, half: float, p: float, word: str) -> None:
    difference = Inference(mean, df=9, over_units=(half / quantile(0.025, 9)) ** 2)
    assert verdict(difference, p=p, margin=MARGIN) == word
    swapped = {"better": "worse", "worse": "better"}
    assert verdict(difference, p=p, margin=MARGIN, sign=-1) == swapped.get(word, word)


def test_tie_without_margin_is_zero_difference() -> None:
    assert verdict(Inference(0.0, df=3), p=1.0, margin=0.0) == "tie"
    assert verdict(Inference(0.0, df=3, over_runs=1e-12), p=1.0, margin=0.0) == "undecided"


# --- resampling


def test_resampling_weights_are_reproducible_bootstrap() -> None:
    weights = resampling_weights(300, seed=7)
    assert weights.shape == (2000, 300) and weights.dtype == numpy.float32
    assert (weights.sum(1) == 300).all()
    assert set(numpy.unique(weights).tolist()) <= set(range(12))
    # A share of (1 - 1/300)^300 of the images is not drawn.
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 300) ** 300, abs=0.002)
    assert numpy.array_equal(weights, resampling_weights(300, seed=7))
    assert not numpy.array_equal(weights, resampling_weights(300, seed=8))
    assert numpy.array_equal(weights[:5], resampling_weights(300, seed=7, resamples=5))


# --- classes


def test_confusion_and_f1_against_scikit_learn() -> None:
    rng = numpy.random.default_rng(6)
    truth = rng.integers(0, 10, 500)
    predicted = numpy.where(rng.random(500) < 0.8, truth, rng.integers(0, 10, 500))
    counts = confusion(truth, predicted, 10)
    assert numpy.array_equal(counts, confusion_matrix(truth, predicted))
    assert f1_scores(counts).tolist() == near(f1_score(truth, predicted, average=None).tolist())
    assert f1_scores(counts).mean() == near(f1_score(truth, predicted, average="macro"))


def test_f1_of_absent_classes() -> None:
    # 1 is never predicted, 2 never true, 3 neither.
    truth, predicted = numpy.array([0, 0, 1, 1, 4]), numpy.array([0, 2, 0, 2, 4])
    counts = confusion(truth, predicted, 5)
    assert counts.tolist() == [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0], [0] * 5, [0] * 5, [0, 0, 0, 0, 1]]
    expected = f1_score(truth, predicted, average=None, labels=range(5), zero_division=0)
    assert f1_scores(counts).tolist() == near(expected.tolist()) == [0.5, 0, 0, 0, 1]


def test_confusion_of_one_byte_indices() -> None:
    truth = numpy.arange(100, dtype=numpy.uint8)
    assert numpy.array_equal(confusion(truth, truth, 100), numpy.eye(100))


# --- cost


@pytest.mark.parametrize(
    ("score", "trainable", "constant", "expected"),
    [
        (0.8, 0, 1e7, 0.8),
        # log10(9 + 1) = 1
        (0.8, 90_000_000, 1e7, 0.8 / math.e),
        (0.8, 9_000, 1e3, 0.8 / math.e),
        (0.8, 10_000_000, 1e7, 0.8 * math.exp(-math.log10(2))),
    ],
)
def test_ppt(score: float, trainable: int, constant: float, expected: float) -> None:
    assert ppt(score, trainable, constant) == near(expected)


@pytest.mark.parametrize(
    ("score", "trainable", "shown"),
    [
        # V-PETL Bench's mean accuracies. LoRA on VTAB-1k: .7225 exp(-log10 1.029) = .7225 x .98766
        (0.7225, 290_000, 0.7136),
        # LoRA on FGVC: .8478 exp(-log10 1.077) = .8478 x .96829
        (0.8478, 770_000, 0.8209),
        # BitFit on FGVC: .8802 exp(-log10 1.01) = .8802 x .99569
        (0.8802, 100_000, 0.8764),
    ],
)
def test_ppt_of_published_results(score: float, trainable: int, shown: float) -> None:
    assert round(ppt(score, trainable, 1e7), 4) == shown
