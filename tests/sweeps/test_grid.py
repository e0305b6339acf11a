"""Grids of a sweep: the values of each key and the messages for wrong grids."""

from __future__ import annotations

from typing import Any

import pytest

from adaptkit.errors import BadInput
from adaptkit.sweeps.grid import parse_grid, parse_values


@pytest.mark.parametrize(
    ("value", "values"),
    [
        ("2,4", ("2", "4")),
        ("1e-4..1e-2/3log", (0.0001, 0.001, 0.01)),
        ([2, 4], (2, 4)),
        (["adam", "sgd"], ("adam", "sgd")),
        (7, (7,)),
        (True, (True,)),
    ],
)
def test_values_of_texts_and_lists(value: object, values: tuple[Any, ...]) -> None:
    assert parse_values("lr", value) == values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lora.rank", "grid lora.rank: write key=values, as in lora.rank=2,4,8"),
        ("=2", "grid 2: write key=values, as in lora.rank=2,4,8"),
        ("lr=", "grid lr: write key=values, as in lora.rank=2,4,8"),
        ("lr=1..2", "grid lr: the range 1..2 needs a number of values, as in 1..2/5"),
        ("lr=0.1..1/log", "grid lr: the range 0.1..1/log needs a number of values, as in 0.1..1/5log"),
        ("lr=1..2/600,3..4/600", "grid lr: must have at most 1000 values, got 1200"),
        ("lr=1,2,1", "grid lr: 1 is named twice"),
    ],
)
def test_error_messages(text: str, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_grid([text])
    assert caught.value.problems == (problem,)


def test_empty_and_repeated_lists() -> None:
    with pytest.raises(BadInput, match="grid lr: has no values"):
        parse_values("lr", [])
    with pytest.raises(BadInput, match=r"grid lr: 2\.0 is named twice"):
        parse_values("lr", [2, 2.0])


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        parse_grid(["lr=1..2", "lora.rank", "epochs=1", "epochs=2"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["grid lr", "grid lora.rank", "grid epochs"]
    assert caught.value.problems[-1] == "grid epochs: is given twice"
