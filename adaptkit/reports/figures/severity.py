"""Figure of the target accuracy over severities of the shift."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.severity import Robustness, SeverityArm
from adaptkit.reports.figures.style import (
    CROWD,
    DASHED,
    ZERO_SHOT,
    Drawing,
    Mark,
    band_note,
    draw_line,
    line_handle,
    listed,
    new_figure,
    scaled,
    set_legend,
    settle,
    shown,
    write_note,
)
from adaptkit.settings.severities import written

#: maximum number of severities for which the ticks are at the severities
MOST_TICKS = 12


def draw_accuracy_over_severity(comparison: Comparison, marks: Mapping[str, Mark]) -> Drawing | None:
    """Draw the accuracy of each arm against the severity of the shift; return None for fewer than two severities."""
    robustness = comparison.robustness
    if robustness is None or len(robustness.severities) < 2:
        return None
    arms = robustness.arms[:CROWD]
    title = "Target accuracy over severity of the shift"
    figure = new_figure(7.6, 4.2, title)
    axes = figure.subplots()
    shade = 0.16 if len(arms) <= 6 else 0.07
    for arm in arms:
        estimates = [scaled(accuracy, 100) for accuracy in arm.accuracies]
        draw_line(axes, robustness.severities, estimates, mark=marks[arm.name], shade=shade)
    handles = [line_handle(marks[arm.name]) for arm in arms]
    words = [_named(arm) for arm in arms]
    if robustness.zero_shot is not None:
        levels = [100 * accuracy for accuracy in robustness.zero_shot]
        axes.plot(robustness.severities, levels, color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3)
        handles.append(Line2D([], [], color=ZERO_SHOT, linestyle=DASHED, linewidth=1.3))
        words.append(f"zero-shot  {100 * (robustness.zero_shot_area or 0.0):.1f}")
    if robustness.severities[0] <= 1 <= robustness.severities[-1]:
        axes.axvline(1, color="#8a8a8a", linewidth=1, zorder=1)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 101))
    _use_severity_axis(axes, robustness.severities)
    axes.set_ylabel("target accuracy (%)")
    set_legend(figure, handles, words, loc="outside right center", title="area (%)", alignment="left")
    write_note(figure, _note(comparison, robustness, arms))
    settle(figure)
    areas = listed([f"{shown(arm.name)} {100 * arm.area:.1f} %" for arm in robustness.arms if arm.area is not None])
    ends = f"{written(robustness.severities[0])} to {written(robustness.severities[-1])}"
    alt = f"Lines against the severity of the shift, {ends}. Area under each: {areas}."
    return Drawing(stem="accuracy_over_severity", title=title, alt=alt, figure=figure)


def _named(arm: SeverityArm) -> str:
    return shown(arm.name, 26) + (f"  {100 * arm.area:.1f}" if arm.area is not None else "")


def _use_severity_axis(axes: Axes, severities: tuple[float, ...]) -> None:
    """Label the axis, with ticks at the severities if there is enough room."""
    span = severities[-1] - severities[0]
    closest = min(right - left for left, right in pairwise(severities))
    if len(severities) <= MOST_TICKS and closest >= 0.05 * span:
        axes.set_xticks(severities, [written(severity) for severity in severities])
    axes.margins(x=0.03)
    axes.set_xlabel("severity: multiple of the shift's amounts")


def _note(comparison: Comparison, robustness: Robustness, arms: tuple[SeverityArm, ...]) -> str:
    parts = [band_note([arm.accuracies[0].n for arm in arms])]
    if len(arms) < len(robustness.arms):
        parts.append(f"the best {len(arms)} of {len(robustness.arms)} strategies")
    if (shift := comparison.setup.get("shift", "none")) != "none":
        parts.append(f"vertical line: severity 1, the shift that was adapted to ({shown(shift, 60)})")
    return "; ".join(parts)
