"""The tables of a report as text, for every form that a report takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adaptkit.comparison.classes import telling_classes
from adaptkit.comparison.numbers import (
    NOTHING,
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
from adaptkit.comparison.records import COSTS, ArmResult, Comparison, LeftOut, PairResult, Robustness, SeverityArm
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
    """A heading, and whether numbers stand below it."""

    heading: str
    numbers: bool = True


@dataclass(frozen=True)
class TableCell:
    """A text; `tone` is what a page says of it in colour too, `colour` an arm's, as in the figures."""

    text: str
    tone: str = ""
    colour: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of which names the row; `note` says what one must know to read them."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableCell, ...], ...]


#: strategy -> its colour in the figures
Colours = Mapping[str, str]

#: of more classes than this, so many are in the table
MOST_CLASSES, MOST_TELLING = 100, 50
#: metrics that have a column of their own among the accuracies
SHOWN = (FINAL_SHIFTED_ACCURACY, FINAL_GAIN, FINAL_TEST_ACCURACY, FINAL_RETENTION, FINAL_SHIFTED_MACRO_F1)


def _name(arm: ArmResult, colours: Colours) -> TableCell:
    return TableCell(arm.name, colour=colours[arm.strategy])


def accuracies(comparison: Comparison, colours: Colours) -> Table:
    """Return what each arm reaches, the best first, and, with a source, the base as it is."""
    metric, has_source = comparison.metric, comparison.zero_shot is not None
    extra = metric.key not in SHOWN
    columns = [Column("Strategy", False)]
    if extra:
        columns.append(Column(heading(comparison.metric)))
    titles = ("Shifted (%)", "Gain (points)", "Clean (%)", "Retention (points)") if has_source else ("Target (%)",)
    columns += [Column(title) for title in (*titles, "Macro F1 (%)", "Seeds")]
    rows = []
    for arm in comparison.arms:
        score = [mean(arm.score, metric.digits, scale=metric.scale)] if extra else []
        texts = [mean(arm.shifted, scale=100)]
        if arm.gain is not None and arm.clean is not None and arm.retention is not None:
            gain, retention = (mean(change, scale=100, signed=True) for change in (arm.gain, arm.retention))
            texts += [gain, mean(arm.clean, scale=100), retention]
        texts += [mean(arm.macro_f1, scale=100), str(arm.score.n)]
        rows.append((_name(arm, colours), *map(TableCell, score + texts)))
    note = "Mean ± half-width of the 95 % interval over seeds."
    if has_source:
        zero_shot, clean = number(comparison.zero_shot, scale=100), number(comparison.base_accuracy, scale=100)
        texts = [NOTHING] * extra + [zero_shot, NOTHING, clean, NOTHING, NOTHING, NOTHING]
        rows.append(tuple(TableCell(text, "control") for text in ("zero-shot", *texts)))
        note += " Zero-shot is the base as it is, without adaptation."
    else:
        note += " Target is the accuracy on the target's test set."
    return Table("Accuracy", note, tuple(columns), tuple(rows))


def costs(comparison: Comparison, colours: Colours) -> Table:
    """Return what each arm costs, in the order of their accuracies."""
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
    return Table("Costs", "Costs of one run.", (Column("Strategy", False), *map(Column, titles)), tuple(rows))


def fronts(comparison: Comparison, colours: Colours) -> Table:
    """Return for each cost whether an arm stands on the Pareto front, or what dominates it."""
    rows = [
        (_name(arm, colours), *(_place(arm, cost, comparison.timings_comparable) for cost in COSTS))
        for arm in comparison.arms
    ]
    note = (
        "A strategy is dominated only by one that costs less and is better or tied; an unclear pair dominates nothing."
    )
    if not comparison.timings_comparable:
        note += " Seconds are not ranked: the runs were not timed one at a time on one machine."
    columns = (Column("Strategy", False), *(Column(name.capitalize(), False) for name in COSTS.values()))
    return Table("Pareto fronts: the metric against each cost", note, columns, tuple(rows))


def _place(arm: ArmResult, cost: str, timings_comparable: bool) -> TableCell:
    if cost == TIME_TRAIN_SECONDS and not timings_comparable:
        return TableCell("not ranked", "unclear")
    dominating = arm.dominated_by.get(cost, ())
    return (
        TableCell(f"dominated by {listed(dominating)}", "dominated")
        if dominating
        else TableCell("on the front", "front")
    )


def pairs(comparison: Comparison) -> Table:
    """Return what is found between each two arms."""
    metric, has_source = comparison.metric, comparison.zero_shot is not None
    columns = [
        *(Column("Pair", False), Column("Verdict", False)),
        Column(f"{with_unit('Difference', difference_unit(comparison.metric))} [95 % interval]"),
        Column("Resampled images"),
        *(Column("p (Holm)"), Column("p (unadjusted)"), Column("Shared seeds"), Column("Disagreement (%)")),
        *([Column("Retention difference (points)")] if has_source else []),
    ]
    rows: list[tuple[TableCell, ...]] = [
        (
            TableCell(f"{pair.a} vs {pair.b}"),
            TableCell(_word(pair), pair.verdict),
            TableCell(_difference(pair, metric.digits, metric.scale)),
            TableCell(interval(pair.image_low, pair.image_high, metric.digits, metric.scale)),
            TableCell(p_value(pair.p)),
            TableCell(p_value(pair.p_unadjusted)),
            TableCell(str(pair.n)),
            TableCell(number(pair.disagreement, scale=100)),
            *([TableCell(number(pair.retention_difference, scale=100, signed=True))] if has_source else []),
        )
        for pair in comparison.pairs
    ]
    if any(pair.seeds_needed or pair.images_needed for pair in comparison.pairs):
        columns.append(Column("Would decide", False))
        rows = [(*row, TableCell(_needed(pair))) for row, pair in zip(rows, comparison.pairs, strict=True)]
    note = "The first minus the second; the word is about the first."
    if any(pair.test == "mcnemar" for pair in comparison.pairs):
        note += (
            " Where one seed is shared, p is McNemar's exact test and the interval that of the resampled images: both "
            "cover the chance of the test images alone."
        )
    return Table("Pairs", note, tuple(columns), tuple(rows))


def _word(pair: PairResult) -> str:
    """Return the verdict, and what the seeds alone would say where the test images do not bear it out."""
    if pair.seeds_verdict == pair.verdict:
        return pair.verdict + (" (1 seed)" if pair.test == "mcnemar" else "")
    return f"{pair.verdict} (by seeds alone: {pair.seeds_verdict})"


def _difference(pair: PairResult, digits: int, scale: float) -> str:
    difference = number(pair.difference, digits, scale=scale, signed=True)
    bounds = interval(pair.low, pair.high, digits, scale)
    return difference if bounds == NOTHING else f"{difference} {bounds}"


def _needed(pair: PairResult) -> str:
    wanted = ((pair.seeds_needed, "seeds"), (pair.images_needed, "test images"))
    return ", ".join(f"about {count:,} {what}" for count, what in wanted if count is not None) or NOTHING


def class_scores(comparison: Comparison) -> Table:
    """Return the F1 of each class on the shifted test, an arm a column; of very many classes, the most telling."""
    arms, count = comparison.arms, len(comparison.classes)
    title, note = "F1 of each class (%)", f"On the {comparison.test_name}, mean over seeds."
    chosen: Iterable[int] = range(count)
    if count > MOST_CLASSES:
        chosen = telling_classes(arms, MOST_TELLING)
        which = "on which the arms differ most" if len(arms) > 1 else "of lowest F1"
        title, note = "F1 of classes (%)", f"{note} The {MOST_TELLING} of {count:,} classes {which}."
    rows = [
        (
            TableCell(comparison.classes[index]),
            *(TableCell(number(arm.class_f1[index], scale=100) if arm.class_f1 else NOTHING) for arm in arms),
        )
        for index in chosen
    ]
    columns = (Column("Class", False), *(Column(arm.name) for arm in arms))
    return Table(title, note, columns, tuple(rows))


def runs(comparison: Comparison, colours: Colours) -> Table:
    """Return the runs in the figures, with their value of the metric."""
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
    return Table(f"Runs compared ({len(rows)})", "", columns, tuple(rows))


def left_out(found: Iterable[LeftOut]) -> Table:
    """Return the runs that are not in the figures, and why."""
    rows = [
        (TableCell(run.name), TableCell(run.status), TableCell(run.reason), TableCell(run.run_id or NOTHING, "code"))
        for run in found
    ]
    columns = tuple(Column(text, False) for text in ("Run", "State", "Reason", "Run id"))
    return Table(f"Runs left out ({len(rows)})", "", columns, tuple(rows))


def subject(comparison: Comparison) -> str:
    """Return in a line what was compared, on what."""
    setup, count = comparison.setup, sum(len(arm.runs) for arm in comparison.arms)
    target, shift = setup.get("target", "none"), setup.get("shift", "none")
    data = " to ".join(name for name in (setup.get("dataset", ""), target) if name not in ("", "none"))
    if shift != "none":
        data = f"{data} under {shift}".strip()
    images = f"{comparison.test_images:,} {_test_images(comparison)}"
    parts = (data, setup.get("backbone", ""), f"{count} runs", images)
    return " · ".join(part for part in parts if part)


def _test_images(comparison: Comparison) -> str:
    return "test images" if comparison.zero_shot is None else "shifted test images"


def facts(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Return what was compared: names and values."""
    metric = comparison.metric
    return (
        ("metric", metric.key if metric.label == metric.key else f"{metric.label} ({metric.key})"),
        ("margin of a tie", margin(comparison.metric, comparison.margin)),
        (_test_images(comparison), f"{comparison.test_images:,}"),
        *((key, str(value)) for key, value in comparison.setup.items()),
        ("base fingerprint", comparison.base_fingerprint or NOTHING),
        ("data fingerprint", comparison.data_fingerprint or NOTHING),
    )


#: of more severities than this, so many evenly chosen ones are shown
MOST_SEVERITIES = 12


def severity_table(found: Robustness, colours: Mapping[str, str]) -> Table:
    """Return each arm's accuracy at each severity and the area below it, the largest first."""
    shown = shown_severities(found)
    columns = [Column("Strategy", False), *(Column(f"{written(found.severities[index])} (%)") for index in shown)]
    rows = [
        (TableCell(arm.name, colour=colours.get(arm.strategy)), *map(TableCell, severity_cells(arm, shown)))
        for arm in found.arms
    ]
    if found.zero_shot is not None:
        texts = zero_shot_cells(found, shown)
        rows.append(tuple(TableCell(text, "control") for text in ("zero-shot", *texts)))
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
