"""The figure of arms over severities of the shift."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from adaptkit.comparison.records import Comparison, Robustness, SeverityArm
from adaptkit.reports.figures.style import (
    CROWD,
    DASHED,
    ZERO_SHOT,
    Drawing,
    Mark,
    listed,
    new_figure,
    scaled,
    set_legend,
    settle,
    shown,
    write_note,
)
from adaptkit.settings.severities import written

#: ticks stand at the severities themselves, so many at most
MOST_TICKS = 12


def draw_accuracy_over_severity(comparison: Comparison, marks: Mapping[str, Mark]) -> Drawing | None:
    """Draw each arm's accuracy against the severity of the shift; None for fewer than two severities."""
    found = comparison.robustness
    if found is None or len(found.severities) < 2:
        return None
    arms = found.arms[:CROWD]
    title = "Accuracy over severity of the shift"
    figure = new_figure(7.6, 4.2, title)
    axes = figure.subplots()
    shade = 0.16 if len(arms) <= 6 else 0.07
    for arm in arms:
        _draw_arm(axes, found.severities, arm, marks[arm.name], shade)
    handles = [_handle(marks[arm.name]) for arm in arms]
    words = [_named(arm) for arm in arms]
    if found.zero_shot is not None:
        levels = [100 * accuracy for accuracy in found.zero_shot]
        axes.plot(found.severities, levels, color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3)
        handles.append(Line2D([], [], color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3))
        words.append(f"zero-shot  {100 * (found.zero_shot_area or 0.0):.1f}")
    if found.severities[0] <= 1 <= found.severities[-1]:
        axes.axvline(1, color="#8a8a8a", linewidth=1, zorder=1)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 101))
    _use_severity_axis(axes, found.severities)
    axes.set_ylabel(f"accuracy on the {comparison.test_name} (%)")
    set_legend(figure, handles, words, loc="outside right center", title="area (%)", alignment="left")
    write_note(figure, _note(comparison, found, arms))
    settle(figure)
    areas = listed([f"{shown(arm.name)} {100 * arm.area.mean:.1f} %" for arm in found.arms if arm.area is not None])
    ends = f"{written(found.severities[0])} to {written(found.severities[-1])}"
    alt = f"Lines against the severity of the shift, {ends}. Area under each: {areas}."
    return Drawing("accuracy_over_severity", title, alt, figure)


def _draw_arm(axes: Axes, severities: tuple[float, ...], arm: SeverityArm, mark: Mark, shade: float) -> None:
    estimates = [scaled(accuracy, 100) for accuracy in arm.accuracies]
    axes.plot(
        severities,
        [found.mean for found in estimates],
        color=mark.colour,
        linestyle=mark.line,
        marker=mark.marker,
        markersize=4,
        markevery=max(1, len(severities) // 10),
        linewidth=1.6,
    )
    bounds = [(found.low, found.high) for found in estimates if found.low is not None and found.high is not None]
    if bounds:
        lows, highs = zip(*bounds, strict=True)
        axes.fill_between(severities, lows, highs, color=mark.colour, alpha=shade, linewidth=0)


def _handle(mark: Mark) -> Line2D:
    return Line2D([], [], color=mark.colour, linestyle=mark.line, marker=mark.marker, markersize=4, linewidth=1.6)


def _named(arm: SeverityArm) -> str:
    return shown(arm.name, 26) + (f"  {100 * arm.area.mean:.1f}" if arm.area is not None else "")


def _use_severity_axis(axes: Axes, severities: tuple[float, ...]) -> None:
    """Let ticks stand at the severities, where these are neither many nor crowded, and mark the experiment's own."""
    span = severities[-1] - severities[0]
    closest = min(right - left for left, right in pairwise(severities))
    if len(severities) <= MOST_TICKS and closest >= 0.05 * span:
        axes.set_xticks(severities, [written(severity) for severity in severities])
    axes.margins(x=0.03)
    axes.set_xlabel("severity: multiple of the shift's amounts")


def _note(comparison: Comparison, found: Robustness, arms: tuple[SeverityArm, ...]) -> str:
    counts = [arm.accuracies[0].n for arm in arms]
    low, high = min(counts), max(counts)
    parts = [
        "one seed"
        if high == 1
        else f"mean over {low if low == high else f'{low} to {high}'} seeds; band: 95 % t-interval"
    ]
    if len(arms) < len(found.arms):
        parts.append(f"the best {len(arms)} of {len(found.arms)} arms")
    if (shift := comparison.setup.get("shift", "none")) != "none":
        parts.append(f"severity 1, to which was adapted: {shown(shift, 60)}")
    return "; ".join(parts)
