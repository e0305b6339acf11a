"""Draw arms along a setting in which comparisons differ: where do their lines cross?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from matplotlib.lines import Line2D

from adaptkit.comparison import ArmResult, Comparison, Estimate
from adaptkit.findings import Findings, Trend
from adaptkit.reports.drawing import (
    Drawing,
    draw_points,
    level_label,
    listed,
    new_figure,
    own_style,
    scaled,
    seeds_note,
    set_legend,
    settle,
    shown,
    write_note,
)
from adaptkit.reports.palette import DASHED, ZERO_SHOT, assign_colours, assign_marks
from adaptkit.reports.sweep_figures import use_option_axis

#: lines of a figure: the best on average
MOST_LINES = 8


def draw_trends(findings: Findings, strategies: Iterable[str] = ()) -> list[Drawing]:
    """Draw the compared metric of each arm along every trend; `strategies` are all that have a colour."""
    by_number = {comparison.number: comparison for comparison in findings.comparisons}
    with own_style():
        return [
            _draw(trend, [by_number[number] for number in trend.numbers], strategies, position)
            for position, trend in enumerate(findings.trends, start=1)
        ]


def _draw(trend: Trend, comparisons: Sequence[Comparison], strategies: Iterable[str], position: int) -> Drawing:
    metric, setting = comparisons[0].metric, shown(trend.setting, 24)
    title = f"{shown(metric.label[:1].upper() + metric.label[1:], 60)} along {setting}"
    names = trend.arms[:MOST_LINES]
    firsts: dict[str, ArmResult] = {}
    for comparison in comparisons:
        for arm in comparison.arms:
            firsts.setdefault(arm.name, arm)
    colours = assign_colours([*(arm.strategy for arm in firsts.values()), *strategies])
    marks = assign_marks([firsts[name] for name in names], colours)
    figure = new_figure(7.4, 4.2, title)
    axes = figure.subplots()
    counts = []
    for name in names:
        found = [
            (value, arm)
            for value, comparison in zip(trend.values, comparisons, strict=True)
            for arm in comparison.arms
            if arm.name == name
        ]
        counts += [len(arm.seeds) for _, arm in found]
        scores = [scaled(arm.score, metric.scale) for _, arm in found]
        xs = [value for value, _ in found]
        means = [score.mean for score in scores]
        axes.plot(xs, means, color=marks[name].colour, linestyle=marks[name].line, linewidth=1.5, zorder=2)
        points = [(Estimate(x, 1), score) for x, score in zip(xs, scores, strict=True)]
        draw_points(axes, points, [marks[name]] * len(points), [False] * len(points))
    handles = [
        Line2D([], [], color=marks[name].colour, marker=marks[name].marker, linestyle=marks[name].line)
        for name in names
    ]
    words = list(names)
    if metric.key == "final/shifted_accuracy" and all(c.zero_shot is not None for c in comparisons):
        levels = [metric.scale * (comparison.zero_shot or 0) for comparison in comparisons]
        axes.plot(trend.values, levels, color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3, zorder=1.5)
        handles.append(Line2D([], [], color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3))
        words.append("zero-shot")
    use_option_axis(axes, trend.values)
    axes.set_xlabel(setting)
    axes.set_ylabel(level_label(metric))
    axes.margins(y=0.1)
    set_legend(figure, handles, words, loc="outside right center")
    more = f"; the best {len(names)} of {len(trend.arms)} arms" if len(names) < len(trend.arms) else ""
    write_note(figure, f"{seeds_note(counts)}; at each value the arms are compared apart{more}")
    settle(figure)
    stem = f"trend_{re.sub(r'[^a-z0-9]+', '_', trend.setting.lower()).strip('_')}"
    values = listed([f"{value:g}" for value in trend.values])
    alt = " ".join([f"A line an arm over {setting}: {values}.", *trend.sentences])
    return Drawing(stem if position == 1 else f"{stem}_{position}", title, alt, figure)
