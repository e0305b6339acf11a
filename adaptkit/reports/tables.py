"""Build the tables of a report as text, for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adaptkit.comparison.classes import select_differing_classes
from adaptkit.comparison.findings import Comparison, LeftOut
from adaptkit.comparison.numbers import (
    NOTHING,
    counted,
    difference_unit,
    heading,
    interval,
    listed,
    margin,
    mean,
    number,
    p_value,
    size,
    with_unit,
)
from adaptkit.comparison.records import COSTS, ArmResult, PairResult
from adaptkit.comparison.severity import Robustness, SeverityArm
from adaptkit.names import (
    FINAL_GAIN,
    FINAL_RETENTION,
    FINAL_SHIFTED_ACCURACY,
    FINAL_SHIFTED_MACRO_F1,
    FINAL_TEST_ACCURACY,
    TIME_TRAIN_SECONDS,
)
from adaptkit.settings.severities import written


@dataclass(frozen=True)
class Column:
    """A column's heading, and whether its cells are numbers."""

    heading: str
    numbers: bool = True


@dataclass(frozen=True)
class TableCell:
    """A cell with its text. `tone` is the style on the HTML page, `colour` the colour of the arm in the figures."""

    text: str
    tone: str = ""
    colour: str | None = None


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is its name; `note` explains how to read the table."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableCell, ...], ...]


#: strategy -> its colour in the figures
Colours = Mapping[str, str]

#: maximum number of classes in a table; number of classes to select if there are more, the most different ones
MOST_CLASSES, MOST_SELECTED = 100, 50
#: metrics with a column of their own in the table of accuracies
SHOWN = (FINAL_SHIFTED_ACCURACY, FINAL_GAIN, FINAL_TEST_ACCURACY, FINAL_RETENTION, FINAL_SHIFTED_MACRO_F1)


def _name(arm: ArmResult, colours: Colours) -> TableCell:
    return TableCell(arm.name, colour=colours[arm.strategy])


def accuracies(comparison: Comparison, colours: Colours) -> Table:
    """Return the table of accuracies: one row for each arm, the best first, and one for the zero-shot base."""
    metric, has_source = comparison.metric, comparison.zero_shot is not None
    extra = metric.key not in SHOWN
    columns = [Column("Strategy", False)]
    if extra:
        columns.append(Column(heading(comparison.metric)))
    titles = ("Target (%)", "Gain (points)", "Source (%)", "Retention (points)") if has_source else ("Target (%)",)
    more = [other for other in comparison.others if other.key not in SHOWN]
    columns += [Column(title) for title in (*titles, "Macro F1 (%)", *map(heading, more), "Runs")]
    rows = []
    for arm in comparison.arms:
        score = [mean(arm.score, metric.digits, scale=metric.scale)] if extra else []
        texts = [mean(arm.shifted, scale=100)]
        if arm.gain is not None and arm.clean is not None and arm.retention is not None:
            gain, retention = (mean(change, scale=100, signed=True) for change in (arm.gain, arm.retention))
            texts += [gain, mean(arm.clean, scale=100), retention]
        texts += [mean(arm.macro_f1, scale=100)]
        texts += [
            mean(arm.others[other.key], other.digits, scale=other.scale) if other.key in arm.others else NOTHING
            for other in more
        ]
        texts.append(str(arm.score.n))
        rows.append((_name(arm, colours), *map(TableCell, score + texts)))
    note = "Mean ± half-width of the 95 % interval for new images, as far as the scope of the verdicts reaches."
    if has_source:
        zero_shot, source = number(comparison.zero_shot, scale=100), number(comparison.base_accuracy, scale=100)
        reached = [
            number(comparison.zero_shot_scores.get(other.key), other.digits, scale=other.scale)
            for other in ([metric] if extra else []) + more
        ]
        macro_f1 = number(comparison.zero_shot_scores.get(FINAL_SHIFTED_MACRO_F1), scale=100)
        texts = [*reached[: int(extra)], zero_shot, NOTHING, source, NOTHING, macro_f1, *reached[int(extra) :], NOTHING]
        rows.append(tuple(TableCell(text, "control") for text in ("zero-shot", *texts)))
        note += " Zero-shot is the base without adaptation."
    if lower := [heading(other) for other in (metric, *more) if not other.higher_is_better]:
        note += f" Lower is better: {listed(lower)}."
    if comparison.constant is not None:
        scores = {
            heading(other): number(comparison.constant_scores.get(other.key), other.digits, scale=other.scale)
            for other in ([metric] if extra else []) + more
        }
        for title, key in (("Target (%)", FINAL_SHIFTED_ACCURACY), ("Macro F1 (%)", FINAL_SHIFTED_MACRO_F1)):
            scores[title] = number(comparison.constant_scores.get(key), scale=100)
        texts = [scores.get(column.heading, NOTHING) for column in columns[1:]]
        rows.append(tuple(TableCell(text, "control") for text in ("constant answer", *texts)))
        note += " Constant answer: the best one without looking at images, by each metric."
    return Table(title="Accuracy", note=note, columns=tuple(columns), rows=tuple(rows))


def costs(comparison: Comparison, colours: Colours) -> Table:
    """Return the table of costs: one row for each arm, in the order of the scores."""
    titles = (
        *("Trainable parameters", "Share (%)", "Adapter size", "Training (s)", "Per epoch (s)", "Peak memory"),
        "Inference vs base",
    )
    rows = [
        (
            _name(arm, colours),
            TableCell(f"{arm.trainable:,}"),
            TableCell(number(arm.trainable_fraction, 2, scale=100)),
            TableCell(size(arm.adapter_bytes)),
            TableCell(mean(arm.train_seconds)),
            TableCell(mean(arm.epoch_seconds, 2)),
            TableCell(size(arm.peak_bytes)),
            TableCell(mean(arm.inference_ratio, 2)),
        )
        for arm in comparison.arms
    ]
    return Table(
        title="Costs",
        note="Costs of one run.",
        columns=(Column("Strategy", False), *map(Column, titles)),
        rows=tuple(rows),
    )


def fronts(comparison: Comparison, colours: Colours) -> Table:
    """Return the table of Pareto fronts: for each arm and cost, `on the front` or the arms that dominate it."""
    rows = [
        (_name(arm, colours), *(_place(arm, cost, comparison.timings_comparable) for cost in COSTS))
        for arm in comparison.arms
    ]
    note = (
        "A strategy is dominated by one that is better and costs no more, or that is tied and costs less. An undecided "
        "pair dominates nothing."
    )
    if not comparison.timings_comparable:
        note += " Training times are not ranked: the runs were not timed one at a time on one machine."
    columns = (Column("Strategy", False), *(Column(name.capitalize(), False) for name in COSTS.values()))
    return Table(title="Pareto fronts: the metric against each cost", note=note, columns=columns, rows=tuple(rows))


def _place(arm: ArmResult, cost: str, timings_comparable: bool) -> TableCell:
    if cost == TIME_TRAIN_SECONDS and not timings_comparable:
        return TableCell("not ranked", "undecided")
    dominating = arm.dominated_by.get(cost, ())
    if not dominating and arm.beats_constant is False:
        return TableCell("not better than a constant answer", "undecided")
    return (
        TableCell(f"dominated by {listed(dominating)}", "dominated")
        if dominating
        else TableCell("on the front", "front")
    )


def pairs(comparison: Comparison) -> Table:
    """Return the table of pairs, with verdicts, differences and p-values."""
    metric, has_source = comparison.metric, comparison.zero_shot is not None
    columns = [
        *(Column("Pair", False), Column("Verdict", False)),
        Column(f"{with_unit('Difference', difference_unit(comparison.metric))} [95 % interval]"),
        *(Column("p (Holm)"), Column("p (unadjusted)"), Column("Shared runs"), Column("Disagreement (%)")),
        *([Column("Retention difference (points)")] if has_source else []),
    ]
    rows: list[tuple[TableCell, ...]] = [
        (
            TableCell(f"{pair.a} vs {pair.b}"),
            TableCell(_word(pair), pair.verdict),
            TableCell(_difference(pair, metric.digits, metric.scale)),
            TableCell(p_value(pair.p)),
            TableCell(p_value(pair.p_unadjusted)),
            TableCell(str(pair.n)),
            TableCell(number(pair.disagreement, scale=100)),
            *([TableCell(number(pair.retention_difference, scale=100, signed=True))] if has_source else []),
        )
        for pair in comparison.pairs
    ]
    is_useful = any(arm.beats_constant is not False for arm in comparison.arms)
    if is_useful and any(_needed(pair) != NOTHING for pair in comparison.pairs):
        columns.append(Column("Would decide", False))
        rows = [(*row, TableCell(_needed(pair))) for row, pair in zip(rows, comparison.pairs, strict=True)]
    note = "Differences are the first minus the second. The verdict is about the first."
    if any(pair.only_models for pair in comparison.pairs):
        note += " With one shared run, the interval and p are only about the two trained models, which get no verdict."
    return Table(title="Pairs", note=note, columns=tuple(columns), rows=tuple(rows))


def _word(pair: PairResult) -> str:
    if pair.p is None:
        return NOTHING
    return pair.verdict + (" (1 run)" if pair.only_models else "")


def _difference(pair: PairResult, digits: int, scale: float) -> str:
    difference = number(pair.difference, digits, scale=scale, signed=True)
    bounds = interval(pair.low, pair.high, digits=digits, scale=scale)
    return difference if bounds == NOTHING else f"{difference} {bounds}"


def _needed(pair: PairResult) -> str:
    wanted = (
        (pair.labels_needed, "labelled images"),
        (pair.seeds_needed, "seeds"),
        (pair.test_images_needed, "test images"),
    )
    return ", ".join(f"about {count:,} {unit}" for count, unit in wanted if count is not None) or NOTHING


def class_scores(comparison: Comparison) -> Table:
    """Return the table of F1 for each class on the target test set, or for the most different of very many classes."""
    arms, count = comparison.arms, len(comparison.classes)
    title, note = "F1 of each class (%)", "On the target test set, mean over seeds."
    chosen: Iterable[int] = range(count)
    if count > MOST_CLASSES:
        chosen = select_differing_classes(arms, MOST_SELECTED)
        which = "on which the strategies differ most" if len(arms) > 1 else "of lowest F1"
        title, note = "F1 of classes (%)", f"{note} The {MOST_SELECTED} of {count:,} classes {which}."
    rows = [
        (
            TableCell(comparison.classes[index]),
            *(TableCell(number(arm.class_f1[index], scale=100) if arm.class_f1 else NOTHING) for arm in arms),
        )
        for index in chosen
    ]
    columns = (Column("Class", False), *(Column(arm.name) for arm in arms))
    return Table(title=title, note=note, columns=columns, rows=tuple(rows))


def runs(comparison: Comparison, colours: Colours) -> Table:
    """Return the table of compared runs, with their values of the metric."""
    metric = comparison.metric
    columns = (
        *(Column("Strategy", False), Column("Seed"), Column(heading(comparison.metric))),
        *(Column("Run", False), Column("Run id", False)),
    )
    rows = [
        (
            _name(arm, colours),
            TableCell(str(run.seed)),
            TableCell(number(run.metrics.get(metric.key), metric.digits, scale=metric.scale)),
            TableCell(run.name),
            TableCell(run.run_id or NOTHING, "code"),
        )
        for arm in comparison.arms
        for run in arm.runs
    ]
    return Table(title=f"Runs compared ({len(rows)})", note="", columns=columns, rows=tuple(rows))


def left_out(records: Iterable[LeftOut]) -> Table:
    """Return the table of runs that were left out, with the reasons."""
    rows = [
        (TableCell(run.name), TableCell(run.status), TableCell(run.reason), TableCell(run.run_id or NOTHING, "code"))
        for run in records
    ]
    columns = tuple(Column(text, False) for text in ("Run", "State", "Reason", "Run id"))
    return Table(title=f"Runs left out ({len(rows)})", note="", columns=columns, rows=tuple(rows))


def subject(comparison: Comparison) -> str:
    """Return one line about the data, the backbone and the numbers of runs and test images."""
    setup, count = comparison.setup, sum(len(arm.runs) for arm in comparison.arms)
    target, shift = setup.get("target", "none"), setup.get("shift", "none")
    data = " to ".join(name for name in (setup.get("dataset", ""), target) if name not in ("", "none"))
    if shift != "none":
        data = f"{data} under {shift}".strip()
    parts = (data, setup.get("backbone", ""), counted(count, "run"), f"{comparison.test_images:,} target test images")
    return " · ".join(part for part in parts if part)


def facts(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Return the settings of a comparison as names and values."""
    metric = comparison.metric
    return (
        ("metric", metric.key if metric.label == metric.key else f"{metric.label} ({metric.key})"),
        ("margin of a tie", margin(comparison.metric, comparison.margin)),
        ("target test images", f"{comparison.test_images:,}"),
        *((key, str(value)) for key, value in comparison.setup.items()),
        ("base fingerprint", comparison.base_fingerprint or NOTHING),
        ("data fingerprint", comparison.data_fingerprint or NOTHING),
    )


#: maximum number of severities in a table; if there are more, evenly spaced ones are shown
MOST_SEVERITIES = 12


def severity_table(robustness: Robustness, colours: Mapping[str, str]) -> Table:
    """Return the table of accuracies and areas over severities, the largest area first."""
    shown = shown_severities(robustness)
    columns = [Column("Strategy", False), *(Column(f"{written(robustness.severities[index])} (%)") for index in shown)]
    rows = [
        (TableCell(arm.name, colour=colours.get(arm.strategy)), *map(TableCell, severity_cells(arm, shown)))
        for arm in robustness.arms
    ]
    if robustness.zero_shot is not None:
        texts = zero_shot_cells(robustness, shown)
        rows.append(tuple(TableCell(text, "control") for text in ("zero-shot", *texts)))
    if len(robustness.severities) > 1:
        columns.append(Column("Area (%)"))
    return Table(
        title="Accuracy over severity", note=severity_note(robustness), columns=tuple(columns), rows=tuple(rows)
    )


def severity_cells(arm: SeverityArm, shown: list[int]) -> list[str]:
    """Return the accuracies of an arm at these positions of the severities, and its area."""
    texts = [mean(arm.accuracies[index], scale=100) for index in shown]
    return texts if arm.area is None else [*texts, number(arm.area, scale=100)]


def zero_shot_cells(robustness: Robustness, shown: list[int]) -> list[str]:
    """Return the cells of `severity_cells` for the zero-shot base."""
    assert robustness.zero_shot is not None
    texts = [number(robustness.zero_shot[index], scale=100) for index in shown]
    return texts if len(robustness.severities) < 2 else [*texts, number(robustness.zero_shot_area, scale=100)]


def severity_note(robustness: Robustness) -> str:
    """Return the note on how to read a table over severities."""
    note = "Accuracy (%) at multiples of the shift's amounts, mean ± half-width of the 95 % interval"
    if len(robustness.severities) > 1:
        note += "; area: area under the curve of accuracy over severity, divided by the range of severities"
    return f"{note}."


def shown_severities(robustness: Robustness) -> list[int]:
    """Return the positions of the severities to show: all, or evenly spaced ones with the first and the last."""
    count = len(robustness.severities)
    if count <= MOST_SEVERITIES:
        return list(range(count))
    return [round(index * (count - 1) / (MOST_SEVERITIES - 1)) for index in range(MOST_SEVERITIES)]
