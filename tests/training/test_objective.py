"""The loss: class weights equal to scikit-learn's, and a weighted mean over the images of a batch."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.utils.class_weight import compute_sample_weight

from adaptkit.training.objective import balanced_weights, loss_of


@pytest.mark.parametrize("labels", [[0] * 60 + [1] * 15, [2, 0, 2, 2, 5, 0, 2], [3, 3]])
def test_balanced_weights(labels: list[int]) -> None:
    weights = balanced_weights(torch.tensor(labels))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(compute_sample_weight("balanced", labels))
    assert weights.mean().item() == pytest.approx(1)


def test_weighted_loss() -> None:
    logits, labels = torch.randn(75, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0] * 60 + [1] * 15)
    weights = balanced_weights(labels)
    by_class = [loss_of(logits[labels == label], labels[labels == label]).item() for label in (0, 1)]
    assert loss_of(logits, labels, weights).item() == pytest.approx(sum(by_class) / 2)
    assert loss_of(logits, labels).item() == pytest.approx((60 * by_class[0] + 15 * by_class[1]) / 75)
    # The weight of a class also counts in a batch without other classes.
    rare = loss_of(logits[60:], labels[60:], weights[60:]).item()
    assert rare == pytest.approx(75 / 30 * by_class[1])
    assert loss_of(torch.zeros(75, 2), labels, weights).item() == pytest.approx(math.log(2))
