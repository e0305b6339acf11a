"""Labels beside points, placed so that they cover neither each other nor what is drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.text import Text
from numpy.typing import NDArray

from adaptkit.reports.drawing import DPI
from adaptkit.reports.palette import QUIET

Boxes = NDArray[numpy.float64]

#: distances from a point in typographic points, and directions in the order in which they look best
NEAR, FAR = (7, 13, 20, 30), (45, 60, 80, 105, 130)
DIRECTIONS = [
    math.radians(angle) for angle in (0, 45, -45, 180, 135, -135, 90, -90, 20, -20, 160, -160, 65, -65, 115, -115)
]
MARKER_RADIUS = 5.5
#: a label that may be left out covers no more of the lines than this, in dots of a line's width
MOST_CROSSED = 2


@dataclass(frozen=True)
class Label:
    """A text for a point in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def place_labels(
    axes: Axes,
    labels: Sequence[Label],
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    texts: Sequence[Text] = (),
    most: int | None = None,
) -> None:
    """Label points, the first ones first: all, or of `most` at most those that find room.

    Labels keep clear of all points and of `texts`, and where they can of `lines`: error bars and curves in data
    coordinates. The figure's layout must be settled.
    """
    scale = DPI / 72
    to_pixels = axes.transData.transform
    points = numpy.array([to_pixels((label.x, label.y)) for label in labels])
    hard = [
        *(_around(point, MARKER_RADIUS * scale) for point in points),
        *(t.get_window_extent().extents for t in texts),
    ]
    soft = [box for line in lines for box in _along(to_pixels(numpy.array(line)), scale)]
    frame = axes.get_window_extent().extents
    placed = 0
    for label, point in zip(labels, points, strict=True):
        if placed == most:
            break
        artist = axes.annotate(
            label.text, (label.x, label.y), (0, 0), textcoords="offset points", va="bottom", fontsize=8, zorder=5
        )
        artist.set_bbox({"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.6})
        artist.set_color(label.colour)
        size = artist.get_window_extent()
        candidates, distances = _candidates(
            point, size.width, size.height, scale, (*NEAR, *FAR) if most is None else NEAR
        )
        outside = (candidates[:, :2] < frame[:2]).any(1) | (candidates[:, 2:] > frame[2:]).any(1)
        covered = outside + _overlaps(candidates, numpy.array(hard))
        crossed = _overlaps(candidates, numpy.array(soft).reshape(-1, 4))
        best = int((1000 * covered + distances + 25 * numpy.minimum(crossed, 3)).argmin())
        if most is not None and (covered[best] or crossed[best] > MOST_CROSSED):
            artist.remove()
            continue
        placed += 1
        box = candidates[best]
        artist.set_position(tuple((box[:2] - point) / scale))
        hard.append(box)
        if distances[best] > NEAR[1]:
            end = numpy.clip(point, box[:2], box[2:])
            start = point + (end - point) * min(1.0, MARKER_RADIUS * scale / max(math.dist(end, point), 1e-9))
            ends = axes.transData.inverted().transform([start, end])
            axes.plot(*ends.T, color=QUIET, linewidth=0.6, zorder=2, scalex=False, scaley=False)
            soft.extend(_along(numpy.array([start, end]), scale))


def _candidates(
    point: Boxes, width: float, height: float, scale: float, distances: Sequence[float]
) -> tuple[Boxes, NDArray[numpy.float64]]:
    """Return boxes for a text of this size around a point, with their distances in typographic points."""
    boxes, lengths = [], []
    for distance, angle in itertools.product(distances, DIRECTIONS):
        across, up = math.cos(angle), math.sin(angle)
        x = point[0] + distance * scale * across - width * (1 - across) / 2
        y = point[1] + distance * scale * up - height * (1 - up) / 2
        boxes.append((x, y, x + width, y + height))
        lengths.append(distance)
    return numpy.array(boxes), numpy.array(lengths, dtype=float)


def _overlaps(boxes: Boxes, others: Boxes) -> NDArray[numpy.int64]:
    """Count for each box how many of the others it overlaps."""
    one, two = boxes[:, None], others[None]
    overlapping = ((one[..., :2] < two[..., 2:]) & (one[..., 2:] > two[..., :2])).all(-1)
    return numpy.asarray(overlapping.sum(-1), dtype=numpy.int64)


def _around(point: Boxes, radius: float) -> Boxes:
    return numpy.array([point[0] - radius, point[1] - radius, point[0] + radius, point[1] + radius])


def _along(corners: Boxes, scale: float) -> list[Boxes]:
    """Return small boxes that cover a line, corners in pixels."""
    boxes: list[Boxes] = []
    for start, end in itertools.pairwise(corners):
        steps = max(2, math.ceil(math.dist(start, end) / (4 * scale)))
        boxes.extend(_around(start + (end - start) * part, 1.5 * scale) for part in numpy.linspace(0, 1, steps))
    return boxes
