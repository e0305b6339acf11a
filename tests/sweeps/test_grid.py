"""The grammar of grids: what a text stands for, and the line that one gets for a text that stands for nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptkit.errors import BadInput
from adaptkit.sweeps.grid import GRAMMAR, parse_grid, parse_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2,4,8,16", ("2", "4", "8", "16")),
        ("2", ("2",)),
        (" 2 , 4 ", ("2", "4")),
        ("1e-4..1e-2/5log", (0.0001, 0.000316228, 0.001, 0.00316228, 0.01)),
        ("0..0.4/5", (0.0, 0.1, 0.2, 0.3, 0.4)),
        ("1..3/3,10", (1.0, 2.0, 3.0, "10")),
        ([2, 4], (2, 4)),
        (["adam", "sgd"], ("adam", "sgd")),
        (7, (7,)),
        (True, (True,)),
    ],
)
def test_a_text_or_a_list_stands_for_values(text: object, values: tuple[Any, ...]) -> None:
    assert parse_values("lr", text) == values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lora.rank", "grid lora.rank: write key=values, as in lora.rank=2,4,8"),
        ("=2", "grid 2: write key=values, as in lora.rank=2,4,8"),
        ("lr=", "grid lr: write key=values, as in lora.rank=2,4,8"),
        ("lr=1,,2", f"grid lr: a value is empty; {GRAMMAR}"),
        ("lr=1..2", f"grid lr: '1..2' needs a number of values from 2 to 1000; {GRAMMAR}"),
        ("lr=1..2/1", f"grid lr: '1..2/1' needs a number of values from 2 to 1000; {GRAMMAR}"),
        ("lr=1..2/1000000", f"grid lr: '1..2/1000000' needs a number of values from 2 to 1000; {GRAMMAR}"),
        ("lr=a..b/5", f"grid lr: 'a..b/5' is no range; {GRAMMAR}"),
        ("lr=1..2/5ln", f"grid lr: '1..2/5ln' is no range; {GRAMMAR}"),
        ("lr=2..1/5", "grid lr: '2..1/5' must rise from a number to a greater one"),
        ("lr=nan..1/5", "grid lr: 'nan..1/5' must rise from a number to a greater one"),
        ("lr=1..inf/5", "grid lr: '1..inf/5' must rise from a number to a greater one"),
        ("lr=0..1/5log", "grid lr: '0..1/5log' must begin above 0 on a log scale"),
        ("lr=1,2,1", "grid lr: 1 is named twice"),
    ],
)
def test_what_is_no_grid_is_told_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_grid([text])
    assert caught.value.problems == (problem,)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        parse_grid(["lr=1..2", "lora.rank", "epochs=1", "epochs=2"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["grid lr", "grid lora.rank", "grid epochs"]
    assert caught.value.problems[-1] == "grid epochs: is given twice"


@given(st.text(max_size=40))
def test_no_text_is_anything_but_values_or_bad_input(text: str) -> None:
    try:
        values = parse_values("lr", text)
    except BadInput as error:
        assert len(error.problems) == 1 and "\n" not in error.problems[0].strip() + ""
    else:
        assert 1 <= len(values) <= 1000 * (text.count(",") + 1)


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e6), st.integers(2, 30))
def test_a_log_range_rises_by_equal_factors_from_end_to_end(low: float, factor: float, count: int) -> None:
    low = float(f"{low:.3g}")
    high = float(f"{low * factor:.3g}")
    if high <= low:
        return
    try:
        values = parse_values("lr", f"{low!r}..{high!r}/{count}log")
    except BadInput as error:  # so close that six digits do not tell them apart
        assert "named twice" in error.problems[0]
        return
    assert (values[0], values[-1], len(values)) == (low, high, count)
    step = (high / low) ** (1 / (count - 1))
    assert all(b / a == pytest.approx(step, rel=1e-4) for a, b in itertools.pairwise(values))
