"""The built-in metrics against scikit-learn and hand calculations, on random answers with ties and absent classes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from adaptkit.comparison.scores import OF_COUNTS, WITHOUT_IMAGES, Answers, score
from adaptkit.metrics.classification import adaptkit_metrics

Floats = NDArray[numpy.float64]
BY_NAME = {cls.name: cls() for cls in adaptkit_metrics()}


def random_answers(seed: int) -> tuple[Floats, NDArray[numpy.int64], Floats, NDArray[numpy.int64]]:
    """Return probabilities, true classes, weights and groups; every other table has ties, every third lacks a class."""
    rng = numpy.random.default_rng(seed)
    images, classes = int(rng.integers(12, 60)), int(rng.integers(2, 6))
    probabilities = rng.dirichlet(numpy.ones(classes), images)
    if seed % 2:
        probabilities = numpy.round(probabilities * 4) / 4 + 0.01
        probabilities /= probabilities.sum(1, keepdims=True)
    truth = rng.integers(0, classes, images)
    if seed % 3 == 0:
        truth[truth == classes - 1] = 0
    truth[:2] = [0, 1 if classes == 2 or seed % 3 else 0]
    return probabilities, truth, rng.uniform(0.2, 3, images), rng.integers(0, 4, images)


def one_versus_rest(score: Callable[..., float], p: Floats, truth: Any, weights: Floats | None) -> float:
    classes = [number for number in numpy.unique(truth) if not (truth == number).all()]
    return float(numpy.mean([score(truth == number, p[:, number], sample_weight=weights) for number in classes]))


def brier(p: Floats, truth: Any, weights: Floats | None) -> float:
    return float(numpy.average(((p - numpy.eye(p.shape[1])[truth]) ** 2).sum(1), weights=weights))


def kappa(p: Floats, truth: Any, weights: Floats | None, penalty: str | None) -> float:
    labels = list(range(p.shape[1]))
    return float(sk.cohen_kappa_score(truth, p.argmax(1), labels=labels, weights=penalty, sample_weight=weights))


EXPECTED: dict[str, Callable[[Floats, Any, Floats | None], float]] = {
    "accuracy": lambda p, y, w: sk.accuracy_score(y, p.argmax(1), sample_weight=w),
    "balanced_accuracy": lambda p, y, w: sk.balanced_accuracy_score(y, p.argmax(1), sample_weight=w),
    "macro_f1": lambda p, y, w: sk.f1_score(y, p.argmax(1), average="macro", sample_weight=w, zero_division=0),
    "kappa": lambda p, y, w: kappa(p, y, w, None),
    "weighted_kappa": lambda p, y, w: kappa(p, y, w, "quadratic"),
    "nll": lambda p, y, w: sk.log_loss(y, p, labels=range(p.shape[1]), sample_weight=w),
    "brier": brier,
    "auroc": lambda p, y, w: one_versus_rest(sk.roc_auc_score, p, y, w),
    "average_precision": lambda p, y, w: one_versus_rest(sk.average_precision_score, p, y, w),
    "worst_class_recall": lambda p, y, w: min(
        sk.recall_score(y, p.argmax(1), labels=numpy.unique(y), average=None, sample_weight=w, zero_division=0)
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_equal_to_scikit_learn(name: str) -> None:
    for seed in range(50):
        probabilities, truth, weights, _ = random_answers(seed)
        for chosen in (None, weights):
            score = BY_NAME[name].score(probabilities, truth, weights=chosen)
            assert score == pytest.approx(EXPECTED[name](probabilities, truth, chosen), abs=1e-9), seed


def test_calibration_error_by_hand() -> None:
    # One bin for each of the first 15 levels of confidence: two images each, one of which is right.
    confidence = numpy.repeat(numpy.linspace(0.55, 0.95, 15), 2)
    probabilities = numpy.stack([confidence, 1 - confidence], 1)
    truth = numpy.tile([0, 1], 15)
    assert BY_NAME["ece"].score(probabilities, truth) == pytest.approx((confidence - 0.5).mean())
    # Equal confidences are in one bin, in which errors of both signs cancel.
    same = numpy.tile([0.75, 0.25], (40, 1))
    assert BY_NAME["ece"].score(same, numpy.repeat([0, 1], [30, 10])) == pytest.approx(0)
    # Weights are numbers of copies.
    twice = BY_NAME["ece"].score(numpy.repeat(probabilities, 2, axis=0), numpy.repeat(truth, 2))
    assert BY_NAME["ece"].score(probabilities, truth, weights=numpy.full(30, 2.0)) == pytest.approx(twice)


def test_worst_group_accuracy_by_hand() -> None:
    probabilities = numpy.eye(2)[[0, 0, 1, 1, 1]]
    truth, groups = numpy.array([0, 1, 1, 1, 0]), numpy.array([5, 5, 7, 7, 7])
    metric = BY_NAME["worst_group_accuracy"]
    assert metric.score(probabilities, truth, groups=groups) == 0.5
    weights = numpy.array([1.0, 3.0, 1.0, 1.0, 1.0])
    assert metric.score(probabilities, truth, groups=groups, weights=weights) == 0.25
    assert math.isnan(metric.score(probabilities, truth))


def test_single_class() -> None:
    probabilities, truth = numpy.tile([0.9, 0.1], (5, 1)), numpy.zeros(5, dtype=int)
    assert BY_NAME["kappa"].score(probabilities, truth) == 0
    assert math.isnan(BY_NAME["auroc"].score(probabilities, truth))
    assert BY_NAME["balanced_accuracy"].score(probabilities, truth) == 1


@pytest.mark.parametrize("name", OF_COUNTS)
def test_scores_without_each_group(name: str) -> None:
    for seed in range(12):
        probabilities, truth, _, groups = random_answers(seed)
        answers = Answers(predicted=probabilities.argmax(1), truth=truth, classes=probabilities.shape[1])
        scored = score(BY_NAME[name], answers, groups)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            without = numpy.array([answers.without(groups == group).score(BY_NAME[name]) for group in range(4)])
        assert scored is not None and scored.influence == pytest.approx(3 / 4 * (without.mean() - without), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WITHOUT_IMAGES if name != "ece"])
def test_scores_without_each_image(name: str) -> None:
    for seed in range(12):
        probabilities, truth, _, _ = random_answers(seed)
        answers = Answers(
            predicted=probabilities.argmax(1),
            truth=truth,
            classes=probabilities.shape[1],
            probabilities=probabilities,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn, about classes that are absent without one image
            expected = [
                answers.without(numpy.arange(len(truth)) == one).score(BY_NAME[name]) for one in range(len(truth))
            ]
        assert WITHOUT_IMAGES[name](answers) == pytest.approx(numpy.array(expected), abs=1e-9, nan_ok=True), seed
