"""Figure of the reliability of probabilities: accuracy against confidence, before and after calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.records import ArmResult
from adaptkit.comparison.temperature import CrossFitted, Floats, Integers, confidence_bins, cross_fit
from adaptkit.errors import BadInput
from adaptkit.metrics.classification import CalibrationError
from adaptkit.reports.figures.style import (
    CROWD,
    DASHED,
    QUIET,
    Drawing,
    Mark,
    line_handle,
    listed,
    new_figure,
    set_legend,
    settle,
    shown,
    write_note,
)

#: maximum number of probabilities of all drawn runs, because a temperature is fitted to them several times
MOST_NUMBERS = 10_000_000


def draw_reliability(comparison: Comparison, marks: Mapping[str, Mark]) -> Drawing | None:
    """Draw the accuracy of target predictions against their confidence, as trained and with one temperature.

    Returns None without the probabilities of all classes, and if there are too many of them.
    """
    fitted = _fitted(comparison.arms[:CROWD])
    if not fitted:
        return None
    title = "Reliability of the probabilities on the target"
    figure = new_figure(9.4, 4.9, title)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    errors: dict[str, list[float]] = {name: [] for name in fitted}
    for axes, name in zip(panels, ("as trained", "with one temperature, cross-fitted"), strict=True):
        axes.plot([0, 100], [0, 100], color=QUIET, linestyle=DASHED, linewidth=1.1)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="confidence (%)", aspect="equal")
        for arm, runs in fitted.items():
            shares = [run.before if axes is panels[0] else run.after for run in runs]
            errors[arm].append(_draw_arm(axes, shares, [run.truth for run in runs], marks[arm]))
    panels[0].set_ylabel("accuracy (%)")
    handles = [
        Line2D([], [], color=QUIET, linestyle=DASHED, linewidth=1.1),
        *(line_handle(marks[arm]) for arm in fitted),
    ]
    set_legend(figure, handles, ["calibrated", *fitted], loc="outside right center")
    count = len(comparison.arms)
    note = "below the dashed line: too confident; above it: not confident enough; vertical lines: 95 % intervals"
    write_note(figure, note if len(fitted) == count else f"{note}; {len(fitted)} of {count} strategies")
    settle(figure)
    changes = [f"{shown(arm)} {before:.1f}, then {after:.1f}" for arm, (before, after) in errors.items()]
    alt = (
        "Accuracy of predictions of similar confidence, by models that had not seen the images. Calibration error in "
        f"points, as trained and with the temperature of adaptkit refit --calibrate: {listed(changes)}."
    )
    return Drawing(stem="reliability", title=title, alt=alt, figure=figure)


def _fitted(arms: Sequence[ArmResult]) -> dict[str, list[CrossFitted]]:
    """Return the calibrated runs of each arm that has probabilities; none if there are too many numbers."""
    fitted: dict[str, list[CrossFitted]] = {}
    predictions = {arm.name: [run.predictions["shifted"] for run in arm.runs] for arm in arms}
    known = [one.probabilities for runs in predictions.values() for one in runs if one.probabilities is not None]
    if sum(numpy.size(shares) for shares in known) > MOST_NUMBERS:
        return {}
    for name, runs in predictions.items():
        try:
            fitted[name] = [cross_fit(one) for one in runs]
        except BadInput:  # without probabilities, or with a single fold or group
            continue
    return fitted


def _draw_arm(axes: Axes, shares: Sequence[Floats], truth: Sequence[Integers], mark: Mark) -> float:
    """Draw the points of all runs of an arm together; return the mean calibration error of a run, in points."""
    bins = confidence_bins(numpy.concatenate(shares), numpy.concatenate(truth), repeats=len(shares))
    axes.vlines(
        [100 * one.confidence for one in bins],
        [100 * one.low for one in bins],
        [100 * one.high for one in bins],
        color=mark.colour,
        alpha=0.35,
        linewidth=1.2,
    )
    axes.plot(
        [100 * one.confidence for one in bins],
        [100 * one.accuracy for one in bins],
        color=mark.colour,
        linestyle=mark.line,
        marker=mark.marker,
        markersize=4,
        linewidth=1.4,
        clip_on=False,
    )
    scores = [CalibrationError().score(one, classes) for one, classes in zip(shares, truth, strict=True)]
    return 100 * float(numpy.mean(scores))
