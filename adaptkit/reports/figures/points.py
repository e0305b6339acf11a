"""Figures with one point per arm: the compared metric against parameters, gain against retention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray

from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.records import ArmResult, Estimate
from adaptkit.names import FINAL_SHIFTED_ACCURACY, PARAMS_TRAINABLE
from adaptkit.reports.figures.style import (
    CROWD,
    DASHED,
    DPI,
    QUIET,
    ZERO_SHOT,
    Drawing,
    Mark,
    darker,
    draw_points,
    intervals,
    level_label,
    listed,
    new_figure,
    scaled,
    seeds_note,
    set_legend,
    settle,
    shown,
    use_parameter_axis,
    write_note,
)

Boxes = NDArray[numpy.float64]

#: positions of labels: distances from the point in typographic points, and angles, the preferred ones first
NEAR, FAR = (7, 13, 20, 30), (45, 60, 80, 105, 130)
DIRECTIONS = [
    math.radians(angle) for angle in (0, 45, -45, 180, 135, -135, 90, -90, 20, -20, 160, -160, 65, -65, 115, -115)
]
MARKER_RADIUS = 5.5
#: optional labels may cover at most this length of lines, in line widths
MOST_CROSSED = 2


@dataclass(frozen=True)
class Label:
    """A label of a point; `x` and `y` are the data coordinates of the point."""

    x: float
    y: float
    text: str
    colour: str


def place_labels(
    axes: Axes,
    labels: Sequence[Label],
    *,
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    texts: Sequence[Text] = (),
    most: int | None = None,
) -> None:
    """Place labels next to their points, in order; with `most`, omit labels for which there is no room.

    Labels never cover points or `texts`, and avoid `lines` (error bars and curves in data coordinates) where possible.
    Call `settle` for the figure first.
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
            point,
            width=size.width,
            height=size.height,
            scale=scale,
            distances=(*NEAR, *FAR) if most is None else NEAR,
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
    point: Boxes, *, width: float, height: float, scale: float, distances: Sequence[float]
) -> tuple[Boxes, NDArray[numpy.float64]]:
    """Return candidate boxes for a text around a point, with their distances in typographic points."""
    boxes, lengths = [], []
    for distance, angle in itertools.product(distances, DIRECTIONS):
        across, up = math.cos(angle), math.sin(angle)
        x = point[0] + distance * scale * across - width * (1 - across) / 2
        y = point[1] + distance * scale * up - height * (1 - up) / 2
        boxes.append((x, y, x + width, y + height))
        lengths.append(distance)
    return numpy.array(boxes), numpy.array(lengths, dtype=float)


def _overlaps(boxes: Boxes, others: Boxes) -> NDArray[numpy.int64]:
    """Return, for each box, the number of other boxes that it overlaps."""
    one, two = boxes[:, None], others[None]
    overlapping = ((one[..., :2] < two[..., 2:]) & (one[..., 2:] > two[..., :2])).all(-1)
    return numpy.asarray(overlapping.sum(-1), dtype=numpy.int64)


def _around(point: Boxes, radius: float) -> Boxes:
    return numpy.array([point[0] - radius, point[1] - radius, point[0] + radius, point[1] + radius])


def _along(corners: Boxes, scale: float) -> list[Boxes]:
    """Return small boxes along a line, in pixels."""
    boxes: list[Boxes] = []
    for start, end in itertools.pairwise(corners):
        steps = max(2, math.ceil(math.dist(start, end) / (4 * scale)))
        boxes.extend(_around(start + (end - start) * part, 1.5 * scale) for part in numpy.linspace(0, 1, steps))
    return boxes


PARAMETERS = PARAMS_TRAINABLE
MOST_STRATEGIES, MOST_LABELS = 14, 14

Line = Sequence[tuple[float, float]]
Points = Mapping[str, tuple[Estimate, Estimate]]


def draw_accuracy_parameters(comparison: Comparison, marks: Mapping[str, Mark]) -> Drawing:
    """Draw the compared metric against trainable parameters, with the Pareto front; dominated arms are hollow."""
    metric, arms, front = comparison.metric, comparison.arms, comparison.front(PARAMETERS)
    on_front = {arm.name for arm in front}
    title = shown(f"{metric.label[:1].upper()}{metric.label[1:]} against trainable parameters", 80)
    figure = _wide_enough(arms, title)
    axes = figure.subplots()
    points = {arm.name: (scaled(arm.cost(PARAMETERS), 1), scaled(arm.score, metric.scale)) for arm in arms}
    draw_points(
        axes,
        list(points.values()),
        marks=[marks[name] for name in points],
        hollow=[name not in on_front for name in points],
    )
    line = [(points[name][0].mean, points[name][1].mean) for name in _rising(comparison)]
    axes.plot(*zip(*line, strict=True), color="#9a9a9a", linewidth=1.2, zorder=1)
    axes.set_ylabel(level_label(metric))
    axes.margins(y=0.12)
    has_level = metric.key == FINAL_SHIFTED_ACCURACY and comparison.zero_shot is not None
    texts = _draw_level(axes, 100 * (comparison.zero_shot or 0.0), "zero-shot") if has_level else []
    if (constant := comparison.constant_scores.get(metric.key)) is not None:
        texts += _draw_level(axes, metric.scale * constant, "constant answer")
    use_parameter_axis(axes, [arm.trainable for arm in arms])
    note = seeds_note([len(arm.seeds) for arm in arms])
    if len(arms) > 1:
        note += "; filled: on the Pareto front; line: through its best means"
    if len(front) < len(arms):
        note += "; hollow: dominated by a strategy with fewer parameters that is better or tied"
    order = sorted(arms, key=lambda arm: arm.name not in on_front)
    _name_points(axes, order, points=points, marks=marks, note=note, lines=[line], texts=texts)
    values = listed(
        [f"{shown(arm.name)} {points[arm.name][1].mean:.{metric.digits}f} with {arm.trainable:,}" for arm in arms]
    )
    names = listed([shown(arm.name) for arm in front])
    alt = f"Points on a logarithmic axis of trainable parameters: {values}. On the Pareto front: {names}."
    return Drawing(stem="accuracy_parameters", title=title, alt=alt, figure=figure)


def draw_gain_retention(comparison: Comparison, marks: Mapping[str, Mark]) -> Drawing | None:
    """Draw the gain in target accuracy against the retention of source accuracy; return None without a source."""
    arms = comparison.arms
    points = {
        arm.name: (scaled(arm.retention, 100), scaled(arm.gain, 100))
        for arm in arms
        if arm.retention is not None and arm.gain is not None
    }
    if not points:
        return None
    title = "Gain in target accuracy against retention of source accuracy"
    figure = _wide_enough(arms, title)
    axes = figure.subplots()
    draw_points(axes, list(points.values()), marks=[marks[name] for name in points], hollow=[False] * len(points))
    axes.axhline(0, color="#8a8a8a", linewidth=1, zorder=1)
    axes.axvline(0, color="#8a8a8a", linewidth=1, zorder=1)
    axes.margins(0.14)
    axes.set_xlabel("retention: source accuracy minus the base's (points)")
    axes.set_ylabel("gain: target accuracy minus zero-shot (points)")
    note = seeds_note([len(arm.seeds) for arm in arms])
    _name_points(axes, arms, points=points, marks=marks, note=note, lines=[], texts=_name_quadrants(axes))
    values = [f"{shown(name)} {gain.mean:+.1f} and {kept.mean:+.1f}" for name, (kept, gain) in points.items()]
    return Drawing(
        stem="gain_retention",
        title=title,
        alt=f"Points, gain and retention in points: {listed(values)}.",
        figure=figure,
    )


def _wide_enough(arms: Sequence[ArmResult], title: str) -> Figure:
    return new_figure(9.8, 5.6, title) if len(arms) > CROWD else new_figure(7.6, 4.8, title)


def _rising(comparison: Comparison) -> list[str]:
    """Return the arms of the Pareto front whose mean exceeds that of all cheaper arms, the cheapest first.

    The other arms of the front are not dominated, because their pairs are undecided. A line through them would fall.
    """
    sign = 1 if comparison.metric.higher_is_better else -1
    best = -math.inf
    names = []
    for arm in sorted(comparison.front(PARAMETERS), key=lambda arm: (arm.trainable, -sign * arm.score.mean)):
        if sign * arm.score.mean > best:
            best = sign * arm.score.mean
            names.append(arm.name)
    return names


def _draw_level(axes: Axes, level: float, name: str) -> list[Text]:
    axes.axhline(level, color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3, zorder=1)
    above = offset_copy(axes.get_yaxis_transform(), axes.get_figure(root=True), y=3, units="points")
    return [axes.text(0.99, level, name, transform=above, ha="right", fontsize=8, color=ZERO_SHOT)]


def _name_quadrants(axes: Axes) -> list[Text]:
    """Label each quadrant in its corner; narrow quadrants have no label."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    texts = []
    for kept, x, wide, side in (("forgets", 0.015, -left, "left"), ("keeps", 0.985, right, "right")):
        for change, y, high, edge in (("gains", 0.98, top, "top"), ("loses", 0.02, -bottom, "bottom")):
            if wide > 0.22 * (right - left) and high > 0.1 * (top - bottom):
                text = axes.text(x, y, f"{change}, {kept}", transform=axes.transAxes, ha=side, va=edge)
                text.set(fontsize=9, fontstyle="italic", color="#8a8a8a")
                texts.append(text)
    return texts


def _name_points(
    axes: Axes,
    arms: Sequence[ArmResult],
    *,
    points: Points,
    marks: Mapping[str, Mark],
    note: str,
    lines: Sequence[Line],
    texts: Sequence[Text],
) -> None:
    """Label the points; with many points, label those with enough room and add a legend of strategies."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    many = len(arms) > CROWD
    if many:
        strategies = {arm.strategy: marks[arm.name].colour for arm in sorted(arms, key=lambda arm: arm.strategy)}
        chosen = list(strategies)[:MOST_STRATEGIES]
        handles = [Line2D([], [], color=strategies[name], marker="o", linestyle="none") for name in chosen]
        set_legend(figure, handles, chosen, loc="outside right center")
        note += f"; {len(arms)} settings, at most {MOST_LABELS} of them labelled"
    write_note(figure, note)
    settle(figure)
    labels = [
        Label(
            x=points[a.name][0].mean, y=points[a.name][1].mean, text=shown(a.name), colour=darker(marks[a.name].colour)
        )
        for a in arms
    ]
    bars = [bar for x, y in points.values() for bar in intervals(x, y)]
    place_labels(axes, labels, lines=[*lines, *bars], texts=texts, most=MOST_LABELS if many else None)
