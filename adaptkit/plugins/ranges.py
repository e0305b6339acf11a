"""What is searched of one setting: a range or a list, as in `1e-4..1e-1/log`, `2..32` or `2,4,8`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import BadInput

GRAMMAR = "write a range as 1e-4..1e-1/log or 2..32, or a list as 2,4,8"
#: a chosen value in this share of its range, at either end, lies on the edge
EDGE = 0.1
#: digits that a value of a range is given with
DIGITS = 3


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, searched evenly on a linear or a log scale."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def position(self, value: float) -> float:
        """Return where a value lies on the range's own scale: 0 at its low end, 1 at its high one."""
        low, high, place = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (place - low) / (high - low)

    def at(self, share: float) -> float:
        """Return the value at this share of the way, as people would write it."""
        exact = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        return self.written(exact)

    def written(self, value: float) -> float:
        """Return the nearest value of few digits that the range holds."""
        near = round(value) if self.integer else float(f"{value:.{DIGITS}g}")
        return min(max(near, self.low), self.high)

    def side(self, value: float) -> str:
        """Return `low` or `high` for a value on that edge, else nothing."""
        place = self.position(value)
        return "low" if place <= EDGE else "high" if place >= 1 - EDGE else ""

    def grown(self, side: str, factor: float, allowed: Callable[[float], bool]) -> Range | None:
        """Return the range with that end moved by a factor, as far as is allowed; None if that is not at all."""
        end = self.low if side == "low" else self.high
        if self.log or self.integer or end > 0:
            further = end * factor if side == "high" else end / factor
        else:  # on a linear scale there may be zero, which no factor moves
            further = end + (self.high - self.low) * (1 if side == "high" else -1)
        if self.integer:
            further = math.floor(further)
            while further != end and not allowed(further):  # half the way, then half of that
                further = end + math.trunc((further - end) / 2)
        else:
            further = float(f"{further:.{DIGITS}g}")
        if further == end or not allowed(further):
            return None
        return dataclasses.replace(self, low=further) if side == "low" else dataclasses.replace(self, high=further)

    @property
    def text(self) -> str:
        """Return the range as it is written on the command line."""
        return f"{self.low:g}..{self.high:g}{'/log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """A list of values."""

    values: tuple[Any, ...]

    def side(self, value: Any) -> str:
        """Return `low` or `high` for a number at that end of three or more, else nothing."""
        if len(self.values) < 3 or not all(_is_number(known) for known in self.values):
            return ""
        return "low" if value == min(self.values) else "high" if value == max(self.values) else ""

    @property
    def text(self) -> str:
        """Return the list as it is written on the command line."""
        return ",".join(f"{value:g}" if _is_number(value) else str(value) for value in self.values)


Dimension = Range | Choice


def parse_dimension(key: str, text: str, *, integer: bool = False) -> Dimension:
    """Return what a text stands for; a list's values stay texts. Raises BadInput with one line."""
    values = [part.strip() for part in text.split(",")]
    if ".." not in text:
        if not all(values):
            raise BadInput(f"{key}: {text!r} has an empty value; {GRAMMAR}")
        if len(set(values)) < len(values):
            raise BadInput(f"{key}: {text!r} names a value twice")
        return Choice(tuple(values))
    ends, slash, scale = text.strip().partition("/")
    first, _, last = ends.partition("..")
    try:
        low, high = float(first), float(last)
    except ValueError:
        raise BadInput(f"{key}: {text!r} is no range; {GRAMMAR}") from None
    if slash and scale.strip() != "log":
        raise BadInput(f"{key}: {text!r} must end with /log, or without a scale; {GRAMMAR}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInput(f"{key}: {text!r} must rise from a number to a greater one")
    if slash and low <= 0:
        raise BadInput(f"{key}: {text!r} must begin above 0 on a log scale")
    if integer and not (low.is_integer() and high.is_integer()):
        raise BadInput(f"{key}: {text!r} must go from one whole number to another")
    return Range(int(low), int(high), bool(slash), True) if integer else Range(low, high, bool(slash))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
