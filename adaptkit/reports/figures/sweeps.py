"""Figures over a numeric option or setting.

Option sweeps show arms of one strategy within a comparison; trends show arms across several comparisons.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from adaptkit.comparison.findings import Comparison, Comparisons, Trend
from adaptkit.comparison.records import ArmResult, Estimate, Metric
from adaptkit.names import FINAL_SHIFTED_ACCURACY
from adaptkit.reports.figures.points import Label, place_labels
from adaptkit.reports.figures.style import (
    DASHED,
    LINES,
    MARKERS,
    ZERO_SHOT,
    Drawing,
    Mark,
    assign_colours,
    assign_marks,
    darker,
    draw_points,
    intervals,
    level_label,
    listed,
    new_figure,
    own_style,
    scaled,
    seeds_note,
    set_legend,
    settle,
    shown,
    use_parameter_axis,
    write_note,
)

FEWEST_VALUES, MOST_LINES, MOST_TICKS = 3, 6, 10


@dataclass(frozen=True)
class Sweep:
    """Lines of arms of one strategy, sorted by the values of `option`; the other options are the name of a line."""

    strategy: str
    option: str
    lines: Mapping[str, Sequence[tuple[float, ArmResult]]]


def find_sweeps(arms: Sequence[ArmResult]) -> list[Sweep]:
    """Return, for each strategy, the numeric option with the most values among arms that are otherwise equal."""
    sweeps = []
    for strategy in sorted({arm.strategy for arm in arms}):
        options_of = {arm.name: {**arm.settings, **arm.options} for arm in arms if arm.strategy == strategy}
        by_name = {arm.name: arm for arm in arms}
        candidates: list[tuple[int, str, Sweep]] = []
        for option in sorted({key for options in options_of.values() for key in options}):
            lines: dict[tuple[tuple[str, str], ...], list[tuple[float, ArmResult]]] = defaultdict(list)
            for name, options in options_of.items():
                value = _number(options.get(option))
                if value is not None:
                    rest = tuple(sorted(item for item in options.items() if item[0] != option))
                    lines[rest].append((value, by_name[name]))
            long = {rest: sorted(line, key=lambda point: point[0]) for rest, line in lines.items() if _is_long(line)}
            if long:
                most = max(len(line) for line in long.values())
                candidates.append((-most, option, Sweep(strategy, option, _named(long))))
        if candidates:
            sweeps.append(min(candidates, key=lambda candidate: candidate[:2])[2])
    return sweeps


def draw_option_sweeps(comparison: Comparison, marks: Mapping[str, Mark]) -> list[Drawing]:
    """Draw the compared metric of each swept strategy against the option and against trainable parameters."""
    drawings = []
    stems: set[str] = set()
    for sweep in find_sweeps(comparison.arms):
        slug = re.sub(r"[^a-z0-9]+", "_", sweep.strategy.lower()).strip("_")[:40] or "strategy"
        stem = next(s for n in itertools.count(1) if (s := f"option_sweep_{slug}" + f"_{n}" * (n > 1)) not in stems)
        stems.add(stem)
        drawings.append(_draw_sweep(sweep, comparison.metric, marks=marks, stem=stem))
    return drawings


def _draw_sweep(sweep: Sweep, metric: Metric, *, marks: Mapping[str, Mark], stem: str) -> Drawing:
    option = shown(sweep.option, 24)
    title = f"{shown(sweep.strategy)}: {shown(metric.label, 60)} against {option}"
    lines = dict(list(sweep.lines.items())[:MOST_LINES])
    arms = {arm.name: arm for line in lines.values() for _, arm in line}
    costs_differ = len({arm.trainable for arm in arms.values()}) > 1
    figure = new_figure(9.4 if costs_differ else 6.4, 4.2, title)
    panels = figure.subplots(1, 2 if costs_differ else 1, sharey=True, squeeze=False)[0]
    colour = marks[next(iter(arms))].colour
    styles = [Mark(colour, marker, line) for marker, line in zip(MARKERS, itertools.cycle(LINES), strict=False)]
    labels: list[Label] = []
    drawn: list[Sequence[tuple[float, float]]] = []
    for line, mark in zip(lines.values(), styles, strict=False):
        xs = [[value for value, _ in line], [float(arm.trainable) for _, arm in line]]
        means = [metric.scale * arm.score.mean for _, arm in line]
        for axes, positions in zip(panels, xs, strict=False):
            axes.plot(positions, means, color=colour, linestyle=mark.line, linewidth=1.4, zorder=2)
            points = [
                (Estimate(x, 1), scaled(arm.score, metric.scale)) for x, (_, arm) in zip(positions, line, strict=True)
            ]
            draw_points(axes, points, marks=[mark] * len(line), hollow=[False] * len(line))
            drawn = [
                *drawn,
                list(zip(positions, means, strict=True)),
                *(bar for point in points for bar in intervals(*point)),
            ]
        labels += [
            Label(x=x, y=y, text=f"{value:g}", colour=darker(colour))
            for (value, _), x, y in zip(line, xs[1], means, strict=True)
        ]
    use_option_axis(panels[0], sorted({value for line in lines.values() for value, _ in line}))
    panels[0].set_xlabel(option)
    panels[0].set_ylabel(level_label(metric))
    panels[0].margins(y=0.1)
    note = seeds_note([len(arm.seeds) for arm in arms.values()])
    if costs_differ:
        use_parameter_axis(panels[1], [arm.trainable for arm in arms.values()])
        note += f"; on the right, points are labelled with {option}"
    if len(lines) < len(sweep.lines):
        note += f"; the first {len(lines)} of {len(sweep.lines)} lines"
    if len(lines) > 1:
        handles = [
            Line2D([], [], color=colour, marker=mark.marker, linestyle=mark.line) for mark in styles[: len(lines)]
        ]
        set_legend(figure, handles, list(lines), loc="outside right upper")
    write_note(figure, note)
    settle(figure)
    if costs_differ:
        place_labels(panels[1], labels, lines=drawn)
    values = listed(
        [f"{v:g} {metric.scale * a.score.mean:.{metric.digits}f}" for line in lines.values() for v, a in line]
    )
    return Drawing(stem=stem, title=title, alt=f"Lines over {option}: {values}.", figure=figure)


def _number(text: str | None) -> float | None:
    """Return the value of an option as a finite number; None for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _is_long(line: Sequence[tuple[float, ArmResult]]) -> bool:
    return len({value for value, _ in line}) >= FEWEST_VALUES


def _named(
    lines: Mapping[tuple[tuple[str, str], ...], Sequence[tuple[float, ArmResult]]],
) -> dict[str, Sequence[tuple[float, ArmResult]]]:
    """Name each line by the options that are not the same in all lines."""
    shared = set.intersection(*(set(rest) for rest in lines))
    return {
        " ".join(f"{key}={value}" for key, value in rest if (key, value) not in shared): line
        for rest, line in lines.items()
    }


def use_option_axis(axes: Axes, values: Sequence[float]) -> None:
    """Put ticks at these ascending values; the scale is logarithmic with base 2 if all values are positive."""
    if values[0] > 0:
        axes.set_xscale("log", base=2)
        padding = (values[-1] / values[0]) ** 0.08
        axes.set_xlim(values[0] / padding, values[-1] * padding)
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = values if len(values) <= MOST_TICKS else values[:: -(-len(values) // MOST_TICKS)]
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])


#: maximum number of lines in a figure of a trend; the best on average are shown
MOST_TREND_LINES = 8


def draw_trends(findings: Comparisons, strategies: Iterable[str] = ()) -> list[Drawing]:
    """Draw the compared metric of the arms for every trend; `strategies` are all strategies of the report."""
    by_number = {comparison.number: comparison for comparison in findings.comparisons}
    with own_style():
        return [
            _draw_trend(
                trend,
                [by_number[number] for number in trend.numbers],
                strategies=strategies,
                position=position,
            )
            for position, trend in enumerate(findings.trends, start=1)
        ]


def _draw_trend(
    trend: Trend, comparisons: Sequence[Comparison], *, strategies: Iterable[str], position: int
) -> Drawing:
    metric, setting = comparisons[0].metric, shown(trend.setting, 24)
    title = f"{shown(metric.label[:1].upper() + metric.label[1:], 60)} against {setting}"
    names = trend.arms[:MOST_TREND_LINES]
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
        members = [
            (value, arm)
            for value, comparison in zip(trend.values, comparisons, strict=True)
            for arm in comparison.arms
            if arm.name == name
        ]
        counts += [len(arm.seeds) for _, arm in members]
        scores = [scaled(arm.score, metric.scale) for _, arm in members]
        xs = [value for value, _ in members]
        means = [score.mean for score in scores]
        axes.plot(xs, means, color=marks[name].colour, linestyle=marks[name].line, linewidth=1.5, zorder=2)
        points = [(Estimate(x, 1), score) for x, score in zip(xs, scores, strict=True)]
        draw_points(axes, points, marks=[marks[name]] * len(points), hollow=[False] * len(points))
    handles = [
        Line2D([], [], color=marks[name].colour, marker=marks[name].marker, linestyle=marks[name].line)
        for name in names
    ]
    words = list(names)
    if metric.key == FINAL_SHIFTED_ACCURACY and all(c.zero_shot is not None for c in comparisons):
        levels = [metric.scale * (comparison.zero_shot or 0) for comparison in comparisons]
        axes.plot(trend.values, levels, color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3, zorder=1.5)
        handles.append(Line2D([], [], color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3))
        words.append("zero-shot")
    use_option_axis(axes, trend.values)
    axes.set_xlabel(setting)
    axes.set_ylabel(level_label(metric))
    axes.margins(y=0.1)
    set_legend(figure, handles, words, loc="outside right center")
    more = f"; the best {len(names)} of {len(trend.arms)} strategies" if len(names) < len(trend.arms) else ""
    write_note(figure, f"{seeds_note(counts)}; each value is a separate comparison{more}")
    settle(figure)
    stem = f"trend_{re.sub(r'[^a-z0-9]+', '_', trend.setting.lower()).strip('_')}"
    values = listed([f"{value:g}" for value in trend.values])
    alt = " ".join([f"One line per strategy over {setting}: {values}.", *trend.sentences])
    return Drawing(stem=stem if position == 1 else f"{stem}_{position}", title=title, alt=alt, figure=figure)
