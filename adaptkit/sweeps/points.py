"""Points that are tried without asking anybody: a grid's, the first ones of a search, those in what a range grew by."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from adaptkit.errors import BadInput
from adaptkit.ranges import Choice, Dimension, Range
from adaptkit.resolve import LR
from adaptkit.sweeps.spaces import Space

#: what a grid gives the range that it fills at least, and every other range at most
FEWEST, MOST = 3, 3


def grid_points(space: Space, trials: int) -> list[dict[str, Any]]:
    """Return exactly so many points of a grid over the space: the last range takes what the others leave.

    Raises BadInput for a space of lists that has fewer points.
    """
    ranges = [key for key, dimension in space.dimensions.items() if isinstance(dimension, Range)]
    filled = LR if LR in ranges else ranges[-1] if ranges else None
    lists_first = sorted(space.dimensions.items(), key=lambda item: isinstance(item[1], Range))
    others = {key: dimension for key, dimension in lists_first if key != filled}
    points: list[dict[str, Any]] = [{}]
    room = trials // FEWEST if filled else trials
    for key, dimension in others.items():
        most = max(1, room // len(points))
        if isinstance(dimension, Choice):
            values: Sequence[Any] = dimension.values
            if len(values) > most:
                raise BadInput(
                    f"{space.strategy}: a grid over {space.text} needs more than {trials} trials; give a shorter list "
                    "or more --trials"
                )
        else:
            values = spread(dimension, min(most, MOST))
        points = [{**point, key: value} for point in points for value in values]
    last = space.dimensions[filled] if filled else None
    if filled and isinstance(last, Range):
        share, more = divmod(trials, len(points))
        points = [
            {**point, filled: value}
            for number, point in enumerate(points)
            for value in spread(last, share + (number < more))
        ]
    if len(points) < trials:
        raise BadInput(
            f"{space.strategy}: a grid over {space.text} has {len(points)} points; give --trials {len(points)}"
        )
    return points[:trials]


def spread(dimension: Range, count: int) -> list[float]:
    """Return so many values of a range, evenly spaced on its scale from end to end; a single one lies in the middle."""
    shares = [0.5] if count == 1 else [index / (count - 1) for index in range(count)]
    return list(dict.fromkeys(dimension.at(share) for share in shares))


def new_part(before: Dimension, after: Dimension, count: int) -> list[float]:
    """Return so many values, evenly spaced, of what a range has grown by; its end is the last of them."""
    if not isinstance(before, Range) or not isinstance(after, Range) or before == after:
        return []
    start, end = (before.high, after.high) if after.high > before.high else (before.low, after.low)
    ends = [after.position(start), after.position(end)]
    return [after.at(ends[0] + (ends[1] - ends[0]) * (index + 1) / count) for index in range(count)]


def first_points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Return so many points that cover each dimension evenly, in an order and combination that the seed decides."""
    order = random.Random(seed)
    columns: dict[str, list[Any]] = {}
    for key, dimension in space.dimensions.items():
        shares = [(index + 0.5) / count for index in range(count)]
        order.shuffle(shares)
        columns[key] = [_at(dimension, share) for share in shares]
    return [{key: column[index] for key, column in columns.items()} for index in range(count)]


def _at(dimension: Dimension, share: float) -> Any:
    if isinstance(dimension, Range):
        return dimension.at(share)
    return dimension.values[int(share * len(dimension.values))]
