"""Draw all figures of a comparison. This module draws accuracy over training; other modules draw the other figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy
from matplotlib.lines import Line2D

from adaptkit.comparison.evidence import estimate_accuracy, find_design
from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.metrics import DOMAINS
from adaptkit.comparison.records import ArmResult, Curve
from adaptkit.reports.figures.classes import draw_class_f1, draw_confusion_differences
from adaptkit.reports.figures.pairs import draw_differences
from adaptkit.reports.figures.points import draw_accuracy_parameters, draw_gain_retention
from adaptkit.reports.figures.reliability import draw_reliability
from adaptkit.reports.figures.severity import draw_accuracy_over_severity
from adaptkit.reports.figures.style import (
    CROWD,
    DASHED,
    ZERO_SHOT,
    Drawing,
    Mark,
    assign_colours,
    assign_marks,
    band_note,
    draw_line,
    line_handle,
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
    """Draw all figures for which the comparison has data, in reading order.

    `strategies` are the strategies of all comparisons in the report, so that each strategy has one colour.
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
            draw_reliability(comparison, marks),
            *draw_option_sweeps(comparison, marks),
        ]
    return [drawing for drawing in drawings if drawing is not None]


def draw_accuracy_over_training(comparison: Comparison, marks: Mapping[str, Mark]) -> Drawing | None:
    """Draw the target accuracy against epochs and seconds; return None without histories.

    If no run has the target accuracy after each epoch, draw the source accuracy.
    """
    test, before, level = "shifted", "zero-shot", comparison.zero_shot
    curves = _curves_by_arm(comparison, test)
    if not curves:
        test, before, level = "clean", "base", comparison.base_accuracy
        curves = _curves_by_arm(comparison, test)
    if not curves:
        return None
    names = list(curves)[:CROWD]
    first = comparison.arms[0].runs[0]
    design, images = find_design(first), len(set(first.predictions[test].image.tolist()))
    accuracy = f"{DOMAINS[test]} accuracy"
    title = f"{accuracy.capitalize()} over training"
    figure = new_figure(9.4, 4.2, title)
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    shade = 0.16 if len(names) <= 6 else 0.07
    ends = {}
    for name in names:
        runs = curves[name]
        values = zip(*(_accuracies(run, test) for run in runs), strict=True)
        estimates = [scaled(estimate_accuracy(column, images, design), 100) for column in values]
        seconds = numpy.mean([run.seconds for run in runs], axis=0).tolist()
        draw_line(by_epoch, runs[0].epoch, estimates, mark=marks[name], shade=shade)
        draw_line(by_time, seconds, estimates, mark=marks[name], shade=shade)
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
    by_epoch.set_ylabel(f"{accuracy} (%)")
    # Sort the legend by the final accuracy, the highest first.
    names.sort(key=lambda name: -ends[name])
    handles, words = [line_handle(marks[name]) for name in names], list(names)
    if level is not None:
        handles.append(Line2D([], [], color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3))
        words.append(before)
    set_legend(figure, handles, words, loc="outside right center")
    write_note(figure, _curves_note(comparison, curves, names))
    settle(figure)
    values_at_end = listed([f"{shown(name)} {ends[name]:.1f} %" for name in names])
    base = f"; {before} {100 * level:.1f} %" if level is not None else ""
    alt = f"Lines against epoch and seconds. After the last epoch: {values_at_end}{base}."
    return Drawing(stem="accuracy_over_training", title=title, alt=alt, figure=figure)


def _curves_by_arm(comparison: Comparison, test: str) -> dict[str, list[Curve]]:
    return {arm.name: curves for arm in comparison.arms if (curves := _curves(arm, test))}


def _curves(arm: ArmResult, test: str) -> list[Curve]:
    curves = [run.curve for run in arm.runs if run.curve is not None and _accuracies(run.curve, test)]
    # A mean over seeds needs the same epochs: skip histories with a gap.
    return [curve for curve in curves if curve.epoch == max(curves, key=lambda other: len(other.epoch)).epoch]


def _accuracies(curve: Curve, test: str) -> tuple[float, ...]:
    return (curve.clean if test == "clean" else curve.shifted) or ()


def _curves_note(comparison: Comparison, curves: Mapping[str, Sequence[Curve]], names: Sequence[str]) -> str:
    parts = [band_note([len(curves[name]) for name in names])]
    if len(names) < len(curves):
        parts.append(f"the best {len(names)} of {len(curves)} strategies")
    if len(curves) < len(comparison.arms):
        parts.append(f"not shown: {len(comparison.arms) - len(curves)} without an accuracy after each epoch")
    if not comparison.timings_comparable:
        parts.append("times are not comparable between runs")
    return "; ".join(parts)
