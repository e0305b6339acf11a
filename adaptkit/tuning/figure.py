"""Draw the figure of a tuning: validation score of each trial over the learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from adaptkit.comparison.numbers import value_unit, with_unit, with_value_unit
from adaptkit.comparison.records import Metric
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


def draw_tuning(tuned: Sequence[TunedStrategy], metric: Metric) -> Drawing:
    """Draw the score by a metric over the learning rate, one panel for each strategy, and mark the chosen trial."""
    title = f"Tuning: validation {metric.label} of every trial"
    colours = assign_colours([result.strategy for result in tuned])
    columns = min(COLUMNS, len(tuned))
    rows = -(-len(tuned) // columns)
    with own_style():
        figure = new_figure(2.2 + 2.7 * columns, 1.0 + 2.7 * rows, title)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, result in zip(panels.flat, tuned, strict=False):
            _draw_panel(axes, result, metric, colours[result.strategy])
        for axes in panels.flat[len(tuned) :]:
            axes.set_visible(False)
        for row in panels:
            row[0].set_ylabel(with_unit(f"validation {metric.label}", value_unit(metric)))
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
    alt = "; ".join(_description(result, metric) for result in tuned)
    about = f"Validation {metric.label} over the searched values"
    return Drawing("tuning", title, alt=f"{about}. {alt}.", figure=figure)


def _draw_panel(axes: Axes, result: TunedStrategy, metric: Metric, colour: str) -> None:
    key = "lr" if "lr" in result.space else next(iter(result.space))
    axes.set_title(shown(result.strategy), loc="left", fontsize=9, color=darker(colour), fontweight="bold", pad=17)
    axes.set_xlabel("learning rate" if key == "lr" else shown(key))
    axes.margins(y=0.1)
    _draw_space(axes, result, key)
    scores = {trial.number: metric.scale * trial.score for trial in result.trials if trial.score is not None}
    good = [trial for trial in result.trials if trial.number in scores and _is_number(trial.values[key])]
    failed = [trial for trial in result.trials if trial.error is not None and _is_number(trial.values[key])]
    axes.plot(
        [trial.values[key] for trial in good],
        [scores[trial.number] for trial in good],
        "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0, zorder=3,
    )  # fmt: skip
    worst = (min if metric.higher_is_better else max)((scores[trial.number] for trial in good), default=0.0)
    axes.plot([trial.values[key] for trial in failed], [worst] * len(failed), "x", color=QUIET, markersize=6, zorder=3)
    value = result.chosen[key]
    if _is_number(value):
        chosen_score = metric.scale * result.score
        axes.plot([value], [chosen_score], "o", color=INK, markersize=11, markerfacecolor="none", zorder=4)
    chosen = ", ".join(f"{name} {_written(value)}" for name, value in result.chosen.items())
    text = shown(f"{chosen}: {with_value_unit(metric, result.score)}", 44)
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


def _description(result: TunedStrategy, metric: Metric) -> str:
    chosen = ", ".join(f"{key} {_written(value)}" for key, value in result.chosen.items())
    score = with_value_unit(metric, result.score)
    return f"{result.strategy}: {chosen} with {score}, the best of {len(result.trials)} trials"


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
