"""Figures with one point an arm: the compared metric against parameters, gain against retention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import offset_copy

from adaptkit.comparison import ArmResult, Comparison, Estimate
from adaptkit.reports.drawing import (
    CROWD,
    Drawing,
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
from adaptkit.reports.labels import Label, place_labels
from adaptkit.reports.palette import DASHED, ZERO_SHOT, Mark, darker

PARAMETERS = "params/trainable"
MOST_STRATEGIES, MOST_LABELS = 14, 14

Line = Sequence[tuple[float, float]]
Points = Mapping[str, tuple[Estimate, Estimate]]


def draw_accuracy_parameters(comparison: Comparison, marks: Mapping[str, Mark]) -> Drawing:
    """Draw the compared metric against trainable parameters with the Pareto front; dominated arms are hollow."""
    metric, arms, front = comparison.metric, comparison.arms, comparison.front(PARAMETERS)
    on_front = {arm.name for arm in front}
    title = shown(f"{metric.label[:1].upper()}{metric.label[1:]} against trainable parameters", 80)
    figure = _wide_enough(arms, title)
    axes = figure.subplots()
    points = {arm.name: (scaled(arm.cost(PARAMETERS), 1), scaled(arm.score, metric.scale)) for arm in arms}
    draw_points(
        axes, list(points.values()), [marks[name] for name in points], [name not in on_front for name in points]
    )
    line = [(points[name][0].mean, points[name][1].mean) for name in _rising(comparison)]
    axes.plot(*zip(*line, strict=True), color="#9a9a9a", linewidth=1.2, zorder=1)
    axes.set_ylabel(level_label(metric))
    axes.margins(y=0.12)
    has_level = metric.key == "final/shifted_accuracy" and comparison.zero_shot is not None
    texts = _draw_zero_shot(axes, 100 * (comparison.zero_shot or 0.0)) if has_level else []
    use_parameter_axis(axes, [arm.trainable for arm in arms])
    note = seeds_note([len(arm.seeds) for arm in arms])
    if len(arms) > 1:
        note += "; filled: the Pareto front, with a line through its best means"
    if len(front) < len(arms):
        note += "; hollow: dominated, as a cheaper arm is better or tied"
    order = sorted(arms, key=lambda arm: arm.name not in on_front)
    _name_points(figure, axes, order, points, marks, note, [line], texts)
    values = listed(
        [f"{shown(arm.name)} {points[arm.name][1].mean:.{metric.digits}f} with {arm.trainable:,}" for arm in arms]
    )
    names = listed([shown(arm.name) for arm in front])
    alt = f"Points on a logarithmic axis of trainable parameters: {values}. On the Pareto front: {names}."
    return Drawing("accuracy_parameters", title, alt, figure)


def draw_gain_retention(comparison: Comparison, marks: Mapping[str, Mark]) -> Drawing | None:
    """Draw what each arm gains on the shifted domain against what it keeps of the clean one; None without a source."""
    arms = comparison.arms
    points = {
        arm.name: (scaled(arm.retention, 100), scaled(arm.gain, 100))
        for arm in arms
        if arm.retention is not None and arm.gain is not None
    }
    if not points:
        return None
    title = "Gain on the shifted domain against retention of the clean one"
    figure = _wide_enough(arms, title)
    axes = figure.subplots()
    draw_points(axes, list(points.values()), [marks[name] for name in points], [False] * len(points))
    axes.axhline(0, color="#8a8a8a", linewidth=1, zorder=1)
    axes.axvline(0, color="#8a8a8a", linewidth=1, zorder=1)
    axes.margins(0.14)
    axes.set_xlabel("retention: clean accuracy minus the base's (points)")
    axes.set_ylabel("gain: shifted accuracy minus zero-shot (points)")
    note = seeds_note([len(arm.seeds) for arm in arms])
    _name_points(figure, axes, arms, points, marks, note, [], _name_quadrants(axes))
    values = [f"{shown(name)} {gain.mean:+.1f} and {kept.mean:+.1f}" for name, (kept, gain) in points.items()]
    return Drawing("gain_retention", title, f"Points, gain and retention in points: {listed(values)}.", figure)


def _wide_enough(arms: Sequence[ArmResult], title: str) -> Figure:
    return new_figure(9.8, 5.6, title) if len(arms) > CROWD else new_figure(7.6, 4.8, title)


def _rising(comparison: Comparison) -> list[str]:
    """Return the arms of the Pareto front, cheapest first, without those whose mean a cheaper or equal one reaches.

    These are not dominated, for the data leave the pair unclear, but a line through them would go up and down.
    """
    sign = 1 if comparison.metric.higher_is_better else -1
    best = -math.inf
    names = []
    for arm in sorted(comparison.front(PARAMETERS), key=lambda arm: (arm.trainable, -sign * arm.score.mean)):
        if sign * arm.score.mean > best:
            best = sign * arm.score.mean
            names.append(arm.name)
    return names


def _draw_zero_shot(axes: Axes, level: float) -> list[Text]:
    axes.axhline(level, color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3, zorder=1)
    above = offset_copy(axes.get_yaxis_transform(), axes.get_figure(root=True), y=3, units="points")
    return [axes.text(0.99, level, "zero-shot", transform=above, ha="right", fontsize=8, color=ZERO_SHOT)]


def _name_quadrants(axes: Axes) -> list[Text]:
    """Say in each corner what it means to lie there; a quadrant that is a sliver goes without."""
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
    figure: Figure,
    axes: Axes,
    arms: Sequence[ArmResult],
    points: Points,
    marks: Mapping[str, Mark],
    note: str,
    lines: Sequence[Line],
    texts: Sequence[Text],
) -> None:
    """Label the points, of many those that find room, then told apart by a legend of strategies as well."""
    many = len(arms) > CROWD
    if many:
        strategies = {arm.strategy: marks[arm.name].colour for arm in sorted(arms, key=lambda arm: arm.strategy)}
        chosen = list(strategies)[:MOST_STRATEGIES]
        handles = [Line2D([], [], color=strategies[name], marker="o", linestyle="none") for name in chosen]
        set_legend(figure, handles, chosen, loc="outside right center")
        note += f"; {len(arms)} arms, at most {MOST_LABELS} labelled"
    write_note(figure, note)
    settle(figure)
    labels = [
        Label(points[a.name][0].mean, points[a.name][1].mean, shown(a.name), darker(marks[a.name].colour)) for a in arms
    ]
    bars = [bar for x, y in points.values() for bar in intervals(x, y)]
    place_labels(axes, labels, [*lines, *bars], texts, most=MOST_LABELS if many else None)
