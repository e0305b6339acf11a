"""Figure of the differences between pairs of arms, with intervals and verdicts."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.records import Metric, PairResult
from adaptkit.reports.figures.style import (
    INK,
    QUIET,
    Drawing,
    difference_label,
    listed,
    new_figure,
    settle,
    shown,
    write_note,
)

MOST_PAIRS = 20
#: colour of decided pairs, and of ties and undecided pairs
DECIDED, OPEN = "#222222", "#767676"
INTERVAL: dict[str, Any] = {"linewidth": 6.0, "alpha": 0.35, "solid_capstyle": "butt", "zorder": 2}


def draw_differences(comparison: Comparison) -> Drawing | None:
    """Draw the difference of each pair with its intervals and verdict; return None for a single arm."""
    metric, pairs = comparison.metric, chosen_pairs(comparison)
    if not pairs:
        return None
    title = "Differences between strategies"
    names = [_pair_name(pair) for pair in pairs]
    lines = sum(1 + name.count("\n") for name in names)
    figure = new_figure(8.4, 1.75 + 0.27 * lines, title)
    axes = figure.subplots()
    margin = metric.scale * comparison.margin
    axes.axvspan(-margin, margin, color="#e8e8e8", linewidth=0, zorder=0)
    axes.axvline(0, color="#8a8a8a", linewidth=1, zorder=1)
    for row, pair in enumerate(pairs):
        _draw_pair(axes, pair, row=row, metric=metric)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_yticks(range(len(pairs)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{difference_label(metric)}, the first minus the second")
    write_note(figure, _note(comparison, pairs))
    settle(figure)
    differences = listed(
        [f"{shown(pair.a)} against {shown(pair.b)} {_value(pair, metric)} {pair.verdict}" for pair in pairs]
    )
    return Drawing(stem="differences", title=title, alt=f"Differences with intervals: {differences}.", figure=figure)


def chosen_pairs(comparison: Comparison) -> tuple[PairResult, ...]:
    """Return all pairs. If there are more than 20, return the first 20 pairs with the best arm."""
    if len(comparison.pairs) <= MOST_PAIRS:
        return comparison.pairs
    best = comparison.arms[0].name
    return tuple(pair for pair in comparison.pairs if best in (pair.a, pair.b))[:MOST_PAIRS]


def _draw_pair(axes: Axes, pair: PairResult, *, row: int, metric: Metric) -> None:
    beside = axes.get_yaxis_transform()
    decided = pair.verdict in ("better", "worse")
    colour = DECIDED if decided else OPEN
    if pair.difference is not None:
        if pair.low is not None and pair.high is not None:
            axes.plot([metric.scale * pair.low, metric.scale * pair.high], [row, row], color=colour, **INTERVAL)
        fill = "white" if pair.verdict == "undecided" else colour
        point = [metric.scale * pair.difference]
        axes.plot(point, [row], "o", color=colour, markerfacecolor=fill, markersize=6.5, markeredgewidth=1.4, zorder=3)
    value = axes.text(1.085, row, _value(pair, metric), transform=beside, ha="right", va="center", color=INK)
    word = axes.text(1.1, row, pair.verdict, transform=beside, va="center", color=INK if decided else QUIET)
    word.set_fontweight("bold" if decided else "normal")
    value.set_fontsize(8.5)


def _value(pair: PairResult, metric: Metric) -> str:
    return "no shared run" if pair.difference is None else f"{metric.scale * pair.difference:+.{metric.digits}f}"


def _pair_name(pair: PairResult) -> str:
    a, b = shown(pair.a, 40), shown(pair.b, 40)
    return f"{a} vs {b}" if len(a) + len(b) <= 36 else f"{a}\nvs {b}"


def _margin(metric: Metric, margin: float) -> str:
    size = f"±{metric.scale * margin:g}"
    unit = metric.unit.removesuffix("s") if size == "±1" else metric.unit
    return f"{size} {unit}".rstrip()


def _note(comparison: Comparison, pairs: tuple[PairResult, ...]) -> str:
    metric = comparison.metric
    parts = []
    if any(pair.low is not None for pair in pairs):
        parts.append("bars: 95 % interval of the pair")
    if comparison.margin:
        parts.append(f"shaded: within the margin, {_margin(metric, comparison.margin)}")
    if any(pair.verdict == "undecided" for pair in pairs):
        parts.append("hollow: undecided")
    if len(pairs) < len(comparison.pairs):
        with_best = len(comparison.arms) - 1
        which = f"those with {shown(comparison.arms[0].name)}" + (
            f", the first {len(pairs)}" if len(pairs) < with_best else ""
        )
        parts.append(f"{len(pairs)} of {len(comparison.pairs)} pairs: {which}")
    return "; ".join(parts)
