"""Draw the figure of a tuning: validation accuracy of each trial over the learning rate."""

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

#: maximum number of panels in one row
COLUMNS = 4
#: colours of the first range and of its extension
SEARCHED, EXTENDED = "#f1f1f1", "#fbf0dc"


def draw_tuning(tuned: Sequence[TunedStrategy]) -> Drawing:
    """Draw validation accuracy over the learning rate, one panel for each strategy, and mark the chosen trial."""
    title = "Tuning: validation accuracy of every trial"
    colours = assign_colours([result.strategy for result in tuned])
    columns = min(COLUMNS, len(tuned))
    rows = -(-len(tuned) // columns)
    with own_style():
        figure = new_figure(2.2 + 2.7 * columns, 1.0 + 2.7 * rows, title)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, result in zip(panels.flat, tuned, strict=False):
            _draw_panel(axes, result, colours[result.strategy])
        for axes in panels.flat[len(tuned) :]:
            axes.set_visible(False)
        for row in panels:
            row[0].set_ylabel("validation accuracy (%)")
        is_extended = any(result.first != result.space for result in tuned)
        has_failed = any(trial.error for result in tuned for trial in result.trials)
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=QUIET, marker="o", linestyle="", markersize=5),
            Line2D([], [], color=INK, marker="o", linestyle="", markersize=11, markerfacecolor="none"),
            Patch(facecolor=SEARCHED, edgecolor="#d8d8d8"),
        ]
        names = ["trial", "chosen", "first range"]
        if is_extended:
            handles.append(Patch(facecolor=EXTENDED, edgecolor="#e5cf9f"))
            names.append("extended: best trial at the edge")
        if has_failed:
            handles.append(Line2D([], [], color=QUIET, marker="x", linestyle="", markersize=6))
            names.append("failed")
        set_legend(figure, handles, names, loc="outside right upper", fontsize=8)
        count = len(tuned[0].trials)
        write_note(
            figure,
            f"{count} trials of each strategy, evaluated on target training images that were held out. "
            "Test images were not used.",
        )
        settle(figure)
    alt = "; ".join(_description(result) for result in tuned)
    return Drawing("tuning", title, alt=f"Validation accuracy over the searched values. {alt}.", figure=figure)


def _draw_panel(axes: Axes, result: TunedStrategy, colour: str) -> None:
    key = "lr" if "lr" in result.space else next(iter(result.space))
    axes.set_title(shown(result.strategy), loc="left", fontsize=9, color=darker(colour), fontweight="bold", pad=17)
    axes.set_xlabel("learning rate" if key == "lr" else shown(key))
    axes.margins(y=0.1)
    _draw_space(axes, result, key)
    good = [trial for trial in result.trials if trial.error is None and _is_number(trial.values[key])]
    failed = [trial for trial in result.trials if trial.error is not None and _is_number(trial.values[key])]
    axes.plot(
        [trial.values[key] for trial in good],
        [100 * trial.accuracy for trial in good],
        "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0, zorder=3,
    )  # fmt: skip
    lowest = min((100 * trial.accuracy for trial in good), default=0.0)
    axes.plot([trial.values[key] for trial in failed], [lowest] * len(failed), "x", color=QUIET, markersize=6, zorder=3)
    value = result.chosen[key]
    if _is_number(value):
        axes.plot([value], [100 * result.accuracy], "o", color=INK, markersize=11, markerfacecolor="none", zorder=4)
    chosen = ", ".join(f"{name} {_written(value)}" for name, value in result.chosen.items())
    text = shown(f"{chosen}: {100 * result.accuracy:.1f} %", 44)
    axes.text(0, 1.03, text, transform=axes.transAxes, fontsize=8, color=QUIET)


def _draw_space(axes: Axes, result: TunedStrategy, key: str) -> None:
    first, last = (parse_dimension(key, space[key]) for space in (result.first, result.space))
    if key == "lr" or (isinstance(last, Range) and last.log):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    if not isinstance(first, Range) or not isinstance(last, Range):
        return
    if last != first:
        axes.axvspan(last.low, last.high, facecolor=EXTENDED, edgecolor="#e5cf9f", linewidth=0.8, zorder=0.4)
    axes.axvspan(first.low, first.high, facecolor=SEARCHED, edgecolor="#d8d8d8", linewidth=0.8, zorder=0.5)
    axes.grid(visible=False, axis="x")


def _description(result: TunedStrategy) -> str:
    chosen = ", ".join(f"{key} {_written(value)}" for key, value in result.chosen.items())
    return f"{result.strategy}: {chosen} with {100 * result.accuracy:.1f} %, the best of {len(result.trials)} trials"


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
