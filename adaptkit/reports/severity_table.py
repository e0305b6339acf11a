"""The table of arms over severities of the shift."""

from __future__ import annotations

from collections.abc import Mapping

from adaptkit.reports.formats import mean, number
from adaptkit.reports.table import Cell, Column, Table
from adaptkit.severity import Robustness, SeverityArm, written

#: of more severities than this, so many evenly chosen ones are shown
MOST_SEVERITIES = 12


def severity_table(found: Robustness, colours: Mapping[str, str]) -> Table:
    """Return each arm's accuracy at each severity and the area below it, the largest first."""
    shown = shown_severities(found)
    columns = [Column("Strategy", False), *(Column(f"{written(found.severities[index])} (%)") for index in shown)]
    rows = [
        (Cell(arm.name, colour=colours.get(arm.strategy)), *map(Cell, severity_cells(arm, shown))) for arm in found.arms
    ]
    if found.zero_shot is not None:
        texts = zero_shot_cells(found, shown)
        rows.append(tuple(Cell(text, "control") for text in ("zero-shot", *texts)))
    if len(found.severities) > 1:
        columns.append(Column("Area (%)"))
    return Table("Accuracy over severity", severity_note(found), tuple(columns), tuple(rows))


def severity_cells(arm: SeverityArm, shown: list[int]) -> list[str]:
    """Return an arm's accuracies at these severities, and its area."""
    texts = [mean(arm.accuracies[index], scale=100) for index in shown]
    return texts if arm.area is None else [*texts, mean(arm.area, scale=100)]


def zero_shot_cells(found: Robustness, shown: list[int]) -> list[str]:
    """Return the same of the base as it is."""
    assert found.zero_shot is not None
    texts = [number(found.zero_shot[index], scale=100) for index in shown]
    return texts if len(found.severities) < 2 else [*texts, number(found.zero_shot_area, scale=100)]


def severity_note(found: Robustness) -> str:
    """Return what one must know to read the table."""
    seeds = any(accuracy.low is not None for arm in found.arms for accuracy in arm.accuracies)
    note = "Accuracy (%) at multiples of the shift's amounts" + (
        ", mean ± half-width of the 95 % interval over seeds" if seeds else ""
    )
    if len(found.severities) > 1:
        note += "; area: under accuracy against severity, divided by the range"
    return f"{note}."


def shown_severities(found: Robustness) -> list[int]:
    """Return the positions of the severities that a table has room for, the first and the last among them."""
    count = len(found.severities)
    if count <= MOST_SEVERITIES:
        return list(range(count))
    return [round(index * (count - 1) / (MOST_SEVERITIES - 1)) for index in range(MOST_SEVERITIES)]
