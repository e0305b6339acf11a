"""The grammar of lists and ranges that sweeps, tuning and plugins share."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptkit.errors import BadInput
from adaptkit.plugins.ranges import GRAMMAR, Choice, Range, parse_dimension, parse_list


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2,4,8,16", ("2", "4", "8", "16")),
        ("2", ("2",)),
        (" 2 , 4 ", ("2", "4")),
        ("1e-4..1e-2/5log", (0.0001, 0.000316228, 0.001, 0.00316228, 0.01)),
        ("0..0.4/5", (0.0, 0.1, 0.2, 0.3, 0.4)),
        ("1..3/3,10", (1.0, 2.0, 3.0, "10")),
        ("1e-4..1e-1/log", (Range(1e-4, 0.1, log=True),)),
        ("0..0.5", (Range(0, 0.5),)),
    ],
)
def test_list_values(text: str, values: tuple[Any, ...]) -> None:
    assert parse_list("lr", text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,,2", f"x: '1,,2' has an empty value; {GRAMMAR}"),
        ("1..2/1", f"x: '1..2/1' must have from 2 to 1000 values; {GRAMMAR}"),
        ("1..2/1000000", f"x: '1..2/1000000' must have from 2 to 1000 values; {GRAMMAR}"),
        ("a..b", f"x: 'a..b' is not a range; {GRAMMAR}"),
        ("1..", f"x: '1..' is not a range; {GRAMMAR}"),
        ("1..2/", f"x: '1..2/' is not a range; {GRAMMAR}"),
        ("1..2/ln", f"x: '1..2/ln' is not a range; {GRAMMAR}"),
        ("1..2/5ln", f"x: '1..2/5ln' is not a range; {GRAMMAR}"),
        ("2..1/5", "x: '2..1/5' must go from a number to a greater number"),
        ("nan..1", "x: 'nan..1' must go from a number to a greater number"),
        ("1..inf", "x: '1..inf' must go from a number to a greater number"),
        ("0..1/log", "x: '0..1/log' must begin above 0 on a log scale"),
        ("0..1/5log", "x: '0..1/5log' must begin above 0 on a log scale"),
        ("-1e308..1e308/5", "x: '-1e308..1e308/5' is too wide: its values overflow"),
        ("1,2,1", "x: 1 is named twice"),
        ("2,2.0", "x: 2.0 is named twice"),
        ("1..2,1..2", "x: 1..2 is named twice"),
    ],
)
def test_syntax_errors(text: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_list("x", text)
    assert caught.value.problems == (message,)


@given(st.text(max_size=40))
def test_any_text_gives_values_or_one_message(text: str) -> None:
    try:
        values = parse_list("lr", text)
    except BadInput as error:
        assert len(error.problems) == 1
    else:
        assert 1 <= len(values) <= 1000 * (text.count(",") + 1)


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e6), st.integers(2, 30))
def test_log_points_have_equal_factors(low: float, factor: float, count: int) -> None:
    low = float(f"{low:.3g}")
    high = float(f"{low * factor:.3g}")
    if high <= low:
        return
    try:
        values = [
            float(value) for value in parse_list("lr", f"{low!r}..{high!r}/{count}log") if isinstance(value, float)
        ]
    except BadInput as error:  # the points are equal in six digits
        assert "named twice" in error.problems[0]
        return
    assert (values[0], values[-1], len(values)) == (low, high, count)
    step = (high / low) ** (1 / (count - 1))
    assert all(b / a == pytest.approx(step, rel=1e-4) for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4..1e-1/log", Range(1e-4, 0.1, log=True)),
        ("0..0.5", Range(0, 0.5)),
        ("-1..1", Range(-1, 1)),
        ("1.2345678..2", Range(1.2345678, 2)),
        ("2, 4,8", Choice(("2", "4", "8"))),
        ("8", Choice(("8",))),
    ],
)
def test_dimension_round_trip(text: str, expected: Range | Choice) -> None:
    assert parse_dimension("lr", text) == expected
    assert parse_dimension("lr", expected.text) == expected


def test_points_are_a_choice() -> None:
    assert parse_dimension("lr", "0.1..0.3/3") == Choice((0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1..3,5", "x: '1..3,5' mixes a range with other values; give one range, or a number of values as in 1..3/5"),
        ("1..2.5", "x: the ends of '1..2.5' must be whole numbers"),
    ],
)
def test_dimension_errors(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        parse_dimension("x", text, integer=True)


@pytest.mark.parametrize(
    ("dimension", "value", "side"),
    [
        (Range(1e-4, 1e-2, log=True), 1.5e-4, "low"),
        (Range(1e-4, 1e-2, log=True), 1.7e-4, ""),
        (Range(1e-4, 1e-2, log=True), 1e-2, "high"),
        (Range(0, 1), 0.05, "low"),
        (Range(0, 1), 0.5, ""),
        (Choice((2, 4, 8)), 8, "high"),
        (Choice((2, 4, 8)), 4, ""),
        (Choice((2, 4)), 4, ""),
        (Choice((True, False)), True, ""),
        (Choice(("a", "b", "c")), "c", ""),
    ],
)
def test_edges(dimension: Any, value: Any, side: str) -> None:
    assert dimension.side(value) == side
