"""Comparisons from Python: the best strategy, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fabrication import fabricate

import adaptkit


@pytest.fixture
def uri(store: Path) -> str:
    return f"sqlite:///{store}"


def test_best_strategy(uri: str) -> None:
    for seed in range(5):
        fabricate(uri, "good", seed, range(seed, 10))
        fabricate(uri, "bad", seed, range(seed, 60))
    comparisons = adaptkit.compare(tracking_uri=uri, track=False)
    assert len(comparisons) == 1 and list(comparisons) == [comparisons[0]]
    (pair,) = comparisons[0].pairs
    assert {pair.verdict} <= {"better", "worse"}
    best = comparisons[0].best
    assert best is not None and best.name == "good"
    assert comparisons[0].to_dict() == comparisons.to_dict()
    table = comparisons[0].to_dataframe()
    assert list(table.index) == ["good", "bad"]
    assert table.loc["good", "target_accuracy"] == best.shifted.mean == table.loc["good", "mean"]
    assert table.loc["bad", "n"] == 5


def test_no_best_strategy_without_verdict(uri: str) -> None:
    for seed in range(2):
        fabricate(uri, "one", seed, range(seed, 20 + 9 * seed))
        fabricate(uri, "other", seed, range(seed, 30 - 9 * seed))
    comparison = adaptkit.compare(tracking_uri=uri, track=False)[0]
    assert comparison.best is None
    assert [pair.verdict for pair in comparison.pairs] == ["undecided"]
