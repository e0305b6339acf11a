"""Parse values: lists (`2,4,8`), ranges (`1e-4..1e-1/log`) and points of a range (`0..0.4/5`).

Sweeps (`--grid`), tuning (`--space`) and the `tune` metadata of strategy options use this grammar. A sweep runs single
values, so that its ranges need a number of values. A tuning searches a list or one range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import BadInput

GRAMMAR = (
    "write a list as 2,4,8, a range as 2..32 or 1e-4..1e-1/log, "
    "or 5 evenly spaced values of a range as 0..0.4/5 or 1e-4..1e-2/5log"
)
#: maximum number of values in one range
MOST_POINTS = 1000
#: a value counts as on the edge if its distance from an end is at most this fraction of the range
EDGE = 0.1
#: significant digits of a proposed value
DIGITS = 3
#: significant digits of the evenly spaced points of a range: 0.000316228
POINT_DIGITS = 6


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, on a linear or a logarithmic scale."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def position(self, value: float) -> float:
        """Return the position of a value on the scale of the range: 0 at the low end, 1 at the high end."""
        low, high, point = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (point - low) / (high - low)

    def at(self, position: float) -> float:
        """Return the value at a position from 0 to 1, rounded to a few digits."""
        return self.rounded(self._exact(position))

    def points(self, count: int) -> list[float]:
        """Return `count` evenly spaced values from end to end."""
        return [float(f"{self._exact(index / (count - 1)):.{POINT_DIGITS}g}") for index in range(count)]

    def _exact(self, position: float) -> float:
        if self.log:
            return float(self.low * (self.high / self.low) ** position)
        return self.low + position * (self.high - self.low)

    def rounded(self, value: float) -> float:
        """Return the nearest value in the range with a few significant digits."""
        near = round(value) if self.integer else float(f"{value:.{DIGITS}g}")
        return min(max(near, self.low), self.high)

    def side(self, value: float) -> str:
        """Return `low` or `high` for a value on that edge, else an empty string."""
        position = self.position(value)
        return "low" if position <= EDGE else "high" if position >= 1 - EDGE else ""

    def grown(self, side: str, factor: float, allowed: Callable[[float], bool]) -> Range | None:
        """Return the range with one end moved outwards by a factor, or as far as allowed.

        Returns None if the end cannot be moved.
        """
        end = self.low if side == "low" else self.high
        if self.log or self.integer or end > 0:
            further = end * factor if side == "high" else end / factor
        else:  # a factor cannot move an end past zero on a linear scale
            further = end + (self.high - self.low) * (1 if side == "high" else -1)
        if self.integer:
            further = math.floor(further)
            while further != end and not allowed(further):  # halve the step until the value is allowed
                further = end + math.trunc((further - end) / 2)
        else:
            further = float(f"{further:.{DIGITS}g}")
        if further == end or not allowed(further):
            return None
        return dataclasses.replace(self, low=further) if side == "low" else dataclasses.replace(self, high=further)

    @property
    def text(self) -> str:
        """Return the text of the range on the command line."""
        return f"{_written(self.low)}..{_written(self.high)}{'/log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """A list of values."""

    values: tuple[Any, ...]

    def side(self, value: Any) -> str:
        """Return `low` or `high` for the smallest or largest of three or more numbers, else an empty string."""
        if len(self.values) < 3 or not all(map(_is_number, self.values)):
            return ""
        return "low" if value == min(self.values) else "high" if value == max(self.values) else ""

    @property
    def text(self) -> str:
        """Return the text of the list on the command line."""
        return ",".join(map(_written, self.values))


Dimension = Range | Choice


def shown_range(text: str) -> str:
    """Return the text of a range or list for display: `0.0001..0.1 (log)`."""
    return f"{text.removesuffix('/log')} (log)" if text.endswith("/log") else text


def parse_list(title: str, text: str) -> tuple[str | float | Range, ...]:
    """Read comma-separated values: plain values stay texts, `LOW..HIGH/N` gives N numbers, `LOW..HIGH` a range.

    Raises BadInput with one message that begins with `title`.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise BadInput(f"{title}: {text!r} has an empty value; {GRAMMAR}")
    values = tuple(value for part in parts for value in (_parse_range(title, part) if ".." in part else [part]))
    require_distinct(title, values)
    return values


#: default range of a learning rate: from the default divided by this factor to the default times this factor
DECADE = 10.0


#: number of learning rates that `--lr auto` tries
TRIED_RATES = 5


def five_around(lr: float) -> Choice:
    """Return the learning rates that `--lr auto` tries: two per decade, the default in the middle."""
    return Choice(tuple(float(f"{lr * DECADE ** (step / 2 - 1):.2g}") for step in range(TRIED_RATES)))


def around(lr: float) -> Range:
    """Return the default range of a learning rate."""
    return Range(float(f"{lr / DECADE:.6g}"), float(f"{lr * DECADE:.6g}"), log=True)


def parse_dimension(title: str, text: str, *, integer: bool = False) -> Dimension:
    """Read the dimension of a search: one range, or a list, whose plain values stay texts.

    Raises BadInput with one message that begins with `title`.
    """
    values = parse_list(title, text)
    ranges = [value for value in values if isinstance(value, Range)]
    if not ranges:
        return Choice(values)
    first = ranges[0]
    if len(values) > 1:
        raise BadInput(
            f"{title}: {text!r} mixes a range with other values; give one range, or a number of values as in "
            f"{with_points(first)}"
        )
    if not integer:
        return first
    if not (first.low.is_integer() and first.high.is_integer()):
        raise BadInput(f"{title}: the ends of {text!r} must be whole numbers")
    return Range(int(first.low), int(first.high), log=first.log, integer=True)


def with_points(searched: Range) -> str:
    """Return how to write five evenly spaced values of a range."""
    return f"{_written(searched.low)}..{_written(searched.high)}/5{'log' if searched.log else ''}"


def require_distinct(title: str, values: Sequence[object]) -> None:
    """Raise BadInput if two values are equal, including equal numbers such as 2 and 2.0."""
    comparable = [_number(value) for value in values]
    for index, value in enumerate(values):
        if comparable[index] in comparable[:index]:
            raise BadInput(f"{title}: {value.text if isinstance(value, Range) else value} is named twice")


def _parse_range(title: str, part: str) -> list[float] | list[Range]:
    """Read `LOW..HIGH`, `LOW..HIGH/log`, `LOW..HIGH/N` or `LOW..HIGH/Nlog`."""
    ends, slash, scale = (piece.strip() for piece in part.partition("/"))
    first, _, last = ends.partition("..")
    number = scale.removesuffix("log")
    is_log = scale != number
    try:
        low, high = float(first), float(last)
        count = int(number) if slash and not (is_log and not number) else None
    except ValueError:
        raise BadInput(f"{title}: {part!r} is not a range; {GRAMMAR}") from None
    if count is not None and not 2 <= count <= MOST_POINTS:
        raise BadInput(f"{title}: {part!r} must have from 2 to {MOST_POINTS} values; {GRAMMAR}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInput(f"{title}: {part!r} must go from a number to a greater number")
    if is_log and low <= 0:
        raise BadInput(f"{title}: {part!r} must begin above 0 on a log scale")
    if count is None:
        return [Range(low, high, log=is_log)]
    points = Range(low, high, log=is_log).points(count)
    if not all(map(math.isfinite, points)):
        raise BadInput(f"{title}: {part!r} is too wide: its values overflow")
    return points


def _number(value: object) -> object:
    """Convert a text to a number if possible; return other values unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _written(value: Any) -> str:
    """Return the shortest text that is parsed as the same value."""
    if not _is_number(value):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
