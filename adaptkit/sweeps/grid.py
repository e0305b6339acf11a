"""Read a grid: which values of which settings and options a sweep tries, as in `lr=1e-4..1e-2/5log`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adaptkit.errors import BadInput
from adaptkit.resolve import Layer

#: more points of one axis than anybody waits for
MOST_POINTS = 1000
GRAMMAR = "write a list as 2,4,8, or 1e-4..1e-2/5log for 5 values, evenly spaced on a log scale (without log: evenly)"


def parse_grid(texts: Sequence[str] | Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the values of each key of a grid, in order; raise BadInput with a line for each part that is none."""
    pairs = texts.items() if isinstance(texts, Mapping) else [_pair(text) for text in texts]
    grid: dict[str, tuple[Any, ...]] = {}
    problems: list[str] = []
    for key, value in pairs:
        try:
            if not key or value in ("", None):
                raise BadInput(f"grid {key or value}: write key=values, as in lora.rank=2,4,8")
            if key in grid:
                raise BadInput(f"grid {key}: is given twice")
            grid[key] = parse_values(key, value)
        except BadInput as error:
            problems.extend(error.problems)
    if problems:
        raise BadInput(*problems)
    return grid


def collect_grid(
    texts: Sequence[str] | Mapping[str, Any], layers: Sequence[Layer], problems: list[str]
) -> tuple[dict[str, tuple[Any, ...]], list[Layer]]:
    """Return the grid that is given, over those that config files hold under `grid`, and the layers without them.

    What cannot be read is noted among the problems.
    """
    below: dict[str, Any] = {}
    rest = []
    for layer in reversed(layers):
        below |= {key[5:]: value for key, value in layer.values.items() if key.startswith("grid.")}
        if "grid" in layer.values:
            where = f"{layer.label}: " if layer.label else ""
            problems.append(f"{where}grid: write a line KEY: VALUES below it for each")
        plain = {key: value for key, value in layer.values.items() if key != "grid" and not key.startswith("grid.")}
        rest.append(Layer(plain, layer.label))
    grid: dict[str, tuple[Any, ...]] = {}
    for given in (below, texts):
        try:
            grid |= parse_grid(given)
        except BadInput as error:
            problems.extend(error.problems)
    return grid, rest[::-1]


def parse_values(key: str, value: object) -> tuple[Any, ...]:
    """Return the values that a list, or a text such as `2,4,8` or `1e-4..1e-2/5log`, stands for."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        values = tuple(value)
    elif isinstance(value, str):
        values = tuple(point for part in value.split(",") for point in _points(key, part.strip()))
    else:
        values = (value,)
    if not values:
        raise BadInput(f"grid {key}: has no values")
    if len(values) > MOST_POINTS:
        raise BadInput(f"grid {key}: has more than {MOST_POINTS} values")
    plain = [_number(point) for point in values]
    repeated = [point for index, point in enumerate(values) if plain[index] in plain[:index]]
    if repeated:
        raise BadInput(f"grid {key}: {repeated[0]} is named twice")
    return values


def _number(point: Any) -> Any:
    """Return the number that a text is, however it is written; anything else as it is."""
    try:
        return float(point) if isinstance(point, str) else point
    except ValueError:
        return point


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.strip(), value.strip()


def _points(key: str, part: str) -> list[Any]:
    """Return the points of one part of a list: itself, or those of a range."""
    if not part:
        raise BadInput(f"grid {key}: a value is empty; {GRAMMAR}")
    if ".." not in part:
        return [part]
    ends, slash, steps = part.partition("/")
    is_log = steps.endswith("log")
    first, _, last = ends.partition("..")
    try:
        low, high = float(first), float(last)
        count = int(steps.removesuffix("log")) if slash else 0
    except ValueError:
        raise BadInput(f"grid {key}: {part!r} is no range; {GRAMMAR}") from None
    if not 2 <= count <= MOST_POINTS:
        raise BadInput(f"grid {key}: {part!r} needs a number of values from 2 to {MOST_POINTS}; {GRAMMAR}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInput(f"grid {key}: {part!r} must rise from a number to a greater one")
    if is_log and low <= 0:
        raise BadInput(f"grid {key}: {part!r} must begin above 0 on a log scale")
    points = [_rounded(low, high, index / (count - 1), is_log) for index in range(count)]
    if not all(map(math.isfinite, points)):
        raise BadInput(f"grid {key}: {part!r} is too wide to be divided")
    return points


def _rounded(low: float, high: float, share: float, is_log: bool) -> float:
    """Return the point at a share of the way, in as many digits as people write: 0.000316228, not 17 of them."""
    exact = low * (high / low) ** share if is_log else low + share * (high - low)
    return float(f"{exact:.6g}")
