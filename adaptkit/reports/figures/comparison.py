"""The figures of a comparison, and the first of them: accuracy over training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from adaptkit.comparison.records import ArmResult, Comparison, Curve, Estimate
from adaptkit.comparison.statistics import estimate
from adaptkit.reports.figures.classes import draw_class_f1, draw_confusion_differences
from adaptkit.reports.figures.pairs import draw_differences
from adaptkit.reports.figures.points import draw_accuracy_parameters, draw_gain_retention
from adaptkit.reports.figures.severity import draw_accuracy_over_severity
from adaptkit.reports.figures.style import (
    CROWD,
    DASHED,
    ZERO_SHOT,
    Drawing,
    Mark,
    assign_colours,
    assign_marks,
    listed,
    new_figure,
    own_style,
    save_drawing,
    scaled,
    set_legend,
    settle,
    shown,
    write_note,
)
from adaptkit.reports.figures.sweeps import draw_option_sweeps

__all__ = ["Drawing", "draw_comparison", "save_drawing"]


def draw_comparison(comparison: Comparison, strategies: Iterable[str] = ()) -> list[Drawing]:
    """Draw every figure that the comparison's data allow, in the order in which they are read.

    `strategies` names those of other comparisons shown beside this one, so that each keeps one colour throughout.
    """
    colours = assign_colours([*(arm.strategy for arm in comparison.arms), *strategies])
    marks = assign_marks(comparison.arms, colours)
    with own_style():
        drawings = [
            draw_accuracy_over_training(comparison, marks),
            draw_accuracy_over_severity(comparison, marks),
            draw_accuracy_parameters(comparison, marks),
            draw_gain_retention(comparison, marks),
            draw_class_f1(comparison),
            draw_confusion_differences(comparison),
            draw_differences(comparison),
            *draw_option_sweeps(comparison, marks),
        ]
    return [drawing for drawing in drawings if drawing is not None]


def draw_accuracy_over_training(comparison: Comparison, marks: Mapping[str, Mark]) -> Drawing | None:
    """Draw the accuracy against epochs and seconds; None without histories.

    On the shifted test, or on the clean one when no run evaluated the shifted test after each epoch.
    """
    test, name_of_test, before, level = "shifted", comparison.test_name, "zero-shot", comparison.zero_shot
    curves = {arm.name: found for arm in comparison.arms if (found := _curves(arm, test))}
    if not curves:
        test, name_of_test, before, level = "clean", "clean test", "base", comparison.base_accuracy
        curves = {arm.name: found for arm in comparison.arms if (found := _curves(arm, test))}
    if not curves:
        return None
    names = list(curves)[:CROWD]
    title = f"Accuracy on the {name_of_test} over training"
    figure = new_figure(9.4, 4.2, title)
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    shade = 0.16 if len(names) <= 6 else 0.07
    ends = {}
    for name in names:
        runs = curves[name]
        values = zip(*(_accuracies(run, test) for run in runs), strict=True)
        estimates = [scaled(estimate(column), 100) for column in values]
        seconds = numpy.mean([run.seconds for run in runs], axis=0).tolist()
        _draw_curve(by_epoch, runs[0].epoch, estimates, marks[name], shade)
        _draw_curve(by_time, seconds, estimates, marks[name], shade)
        ends[name] = estimates[-1].mean
    for axes in (by_epoch, by_time):
        if level is not None:
            axes.axhline(100 * level, color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3)
        axes.set_xlim(left=0)
    low, high = by_epoch.get_ylim()
    by_epoch.set_ylim(max(low, 0), min(high, 101))
    by_epoch.xaxis.get_major_locator().set_params(integer=True)
    by_epoch.set_xlabel("epoch")
    by_time.set_xlabel("seconds of training and evaluation")
    by_epoch.set_ylabel(f"accuracy on the {name_of_test} (%)")
    # The line that ends highest comes first, as the eye meets it.
    names.sort(key=lambda name: -ends[name])
    handles, words = [_handle(marks[name]) for name in names], list(names)
    if level is not None:
        handles.append(Line2D([], [], color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3))
        words.append(before)
    set_legend(figure, handles, words, loc="outside right center")
    write_note(figure, _curves_note(comparison, curves, names))
    settle(figure)
    values_at_end = listed([f"{shown(name)} {ends[name]:.1f} %" for name in names])
    base = f"; {before} {100 * level:.1f} %" if level is not None else ""
    alt = f"Lines against epoch and seconds. After the last epoch: {values_at_end}{base}."
    return Drawing("accuracy_over_training", title, alt, figure)


def _curves(arm: ArmResult, test: str) -> list[Curve]:
    found = [run.curve for run in arm.runs if run.curve is not None and _accuracies(run.curve, test)]
    # A history with a gap has no place in a mean epoch by epoch.
    return [curve for curve in found if curve.epoch == max(found, key=lambda other: len(other.epoch)).epoch]


def _accuracies(curve: Curve, test: str) -> tuple[float, ...]:
    return (curve.clean if test == "clean" else curve.shifted) or ()


def _draw_curve(axes: Axes, xs: Sequence[float], estimates: Sequence[Estimate], mark: Mark, shade: float) -> None:
    axes.plot(
        xs,
        [found.mean for found in estimates],
        color=mark.colour,
        linestyle=mark.line,
        marker=mark.marker,
        markersize=4,
        markevery=max(1, len(xs) // 10),
        linewidth=1.6,
    )
    lows = [found.low for found in estimates if found.low is not None]
    highs = [found.high for found in estimates if found.high is not None]
    if lows:
        axes.fill_between(xs, lows, highs, color=mark.colour, alpha=shade, linewidth=0)


def _handle(mark: Mark) -> Line2D:
    return Line2D([], [], color=mark.colour, linestyle=mark.line, marker=mark.marker, markersize=4, linewidth=1.6)


def _curves_note(comparison: Comparison, curves: Mapping[str, Sequence[Curve]], names: Sequence[str]) -> str:
    counts = [len(curves[name]) for name in names]
    low, high = min(counts), max(counts)
    parts = [
        "one seed"
        if high == 1
        else f"mean over {low if low == high else f'{low} to {high}'} seeds; band: 95 % t-interval"
    ]
    if len(names) < len(curves):
        parts.append(f"the best {len(names)} of {len(curves)} arms")
    if len(curves) < len(comparison.arms):
        parts.append(f"without {len(comparison.arms) - len(curves)} not evaluated after each epoch")
    if not comparison.timings_comparable:
        parts.append("seconds were not measured under like conditions")
    return "; ".join(parts)
