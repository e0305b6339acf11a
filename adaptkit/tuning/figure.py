"""The figure of a tuning: what every trial of each strategy reached, over what was searched."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from adaptkit.plugins.ranges import Range, parse_dimension
from adaptkit.reports.figures.style import (
    INK,
    QUIET,
    Drawing,
    assign_colours,
    darker,
    new_figure,
    own_style,
    set_legend,
    settle,
    shown,
    write_note,
)
from adaptkit.tuning.outcome import TunedStrategy

#: panels of a row
COLUMNS = 4
SEARCHED, GROWN = "#f1f1f1", "#fbf0dc"


def draw_tuning(tuned: Sequence[TunedStrategy]) -> Drawing:
    """Draw validation accuracy over the learning rate, a panel a strategy, the chosen trial marked."""
    title = "Tuning: validation accuracy of every trial"
    colours = assign_colours([one.strategy for one in tuned])
    columns = min(COLUMNS, len(tuned))
    rows = -(-len(tuned) // columns)
    with own_style():
        figure = new_figure(2.2 + 2.7 * columns, 1.0 + 2.7 * rows, title)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, one in zip(panels.flat, tuned, strict=False):
            _draw_panel(axes, one, colours[one.strategy])
        for axes in panels.flat[len(tuned) :]:
            axes.set_visible(False)
        for row in panels:
            row[0].set_ylabel("validation accuracy (%)")
        has_grown = any(one.first != one.space for one in tuned)
        has_failed = any(trial.error for one in tuned for trial in one.trials)
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=QUIET, marker="o", linestyle="", markersize=5),
            Line2D([], [], color=INK, marker="o", linestyle="", markersize=11, markerfacecolor="none"),
            Patch(facecolor=SEARCHED, edgecolor="#d8d8d8"),
        ]
        names = ["a trial", "chosen", "searched first"]
        if has_grown:
            handles.append(Patch(facecolor=GROWN, edgecolor="#e5cf9f"))
            names.append("grown: the best lay at the edge")
        if has_failed:
            handles.append(Line2D([], [], color=QUIET, marker="x", linestyle="", markersize=6))
            names.append("failed")
        set_legend(figure, handles, names, loc="outside right upper", fontsize=8)
        count = len(tuned[0].trials)
        write_note(
            figure,
            f"{count} trials of each strategy, judged by target training images that were held back. No test image has "
            "a part in this.",
        )
        settle(figure)
    alt = "; ".join(_words(one) for one in tuned)
    return Drawing("tuning", title, f"Validation accuracy over what was searched. {alt}.", figure)


def _draw_panel(axes: Axes, one: TunedStrategy, colour: str) -> None:
    key = "lr" if "lr" in one.space else next(iter(one.space))
    axes.set_title(shown(one.strategy), loc="left", fontsize=9, color=darker(colour), fontweight="bold", pad=17)
    axes.set_xlabel("learning rate" if key == "lr" else shown(key))
    axes.margins(y=0.1)
    _draw_space(axes, one, key)
    good = [trial for trial in one.trials if trial.error is None and _is_number(trial.values[key])]
    failed = [trial for trial in one.trials if trial.error is not None and _is_number(trial.values[key])]
    axes.plot(
        [trial.values[key] for trial in good],
        [100 * trial.accuracy for trial in good],
        "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0, zorder=3,
    )  # fmt: skip
    lowest = min((100 * trial.accuracy for trial in good), default=0.0)
    axes.plot([trial.values[key] for trial in failed], [lowest] * len(failed), "x", color=QUIET, markersize=6, zorder=3)
    value = one.chosen[key]
    if _is_number(value):
        axes.plot([value], [100 * one.accuracy], "o", color=INK, markersize=11, markerfacecolor="none", zorder=4)
    chosen = ", ".join(f"{name} {_written(found)}" for name, found in one.chosen.items())
    text = shown(f"{chosen}: {100 * one.accuracy:.1f} %", 44)
    axes.text(0, 1.03, text, transform=axes.transAxes, fontsize=8, color=QUIET)


def _draw_space(axes: Axes, one: TunedStrategy, key: str) -> None:
    first, last = (parse_dimension(key, space[key]) for space in (one.first, one.space))
    if key == "lr" or (isinstance(last, Range) and last.log):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    if not isinstance(first, Range) or not isinstance(last, Range):
        return
    if last != first:
        axes.axvspan(last.low, last.high, facecolor=GROWN, edgecolor="#e5cf9f", linewidth=0.8, zorder=0.4)
    axes.axvspan(first.low, first.high, facecolor=SEARCHED, edgecolor="#d8d8d8", linewidth=0.8, zorder=0.5)
    axes.grid(visible=False, axis="x")


def _words(one: TunedStrategy) -> str:
    chosen = ", ".join(f"{key} {_written(value)}" for key, value in one.chosen.items())
    return f"{one.strategy}: {chosen} with {100 * one.accuracy:.1f} %, the best of {len(one.trials)} trials"


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
