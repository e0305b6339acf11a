"""The tables of a report as text, for every form that a report takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adaptkit.comparison import COSTS, ArmResult, Comparison, LeftOut, PairResult
from adaptkit.reports.classes import telling_classes
from adaptkit.reports.formats import (
    NOTHING,
    difference_unit,
    heading,
    interval,
    margin,
    mean,
    number,
    p_value,
    size,
    with_unit,
)
from adaptkit.reports.table import Cell, Column, Table
from adaptkit.reports.wording import listed

#: strategy -> its colour in the figures
Colours = Mapping[str, str]

#: of more classes than this, so many are in the table
MOST_CLASSES, MOST_TELLING = 100, 50
#: metrics that have a column of their own among the accuracies
SHOWN = ("final/shifted_accuracy", "final/gain", "final/test_accuracy", "final/retention", "final/shifted_macro_f1")


def _name(arm: ArmResult, colours: Colours) -> Cell:
    return Cell(arm.name, colour=colours[arm.strategy])


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
        rows.append((_name(arm, colours), *map(Cell, score + texts)))
    note = "Mean ± half-width of the 95 % interval over seeds."
    if has_source:
        zero_shot, clean = number(comparison.zero_shot, scale=100), number(comparison.base_accuracy, scale=100)
        texts = [NOTHING] * extra + [zero_shot, NOTHING, clean, NOTHING, NOTHING, NOTHING]
        rows.append(tuple(Cell(text, "control") for text in ("zero-shot", *texts)))
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
            Cell(f"{arm.trainable:,}"),
            Cell(number(arm.trainable_fraction, 2, scale=100)),
            Cell(size(arm.adapter_bytes)),
            Cell(mean(arm.train_seconds)),
            Cell(mean(arm.epoch_seconds, 2)),
            Cell(size(arm.peak_bytes)),
            Cell(mean(arm.inference_ratio, 2)),
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


def _place(arm: ArmResult, cost: str, timings_comparable: bool) -> Cell:
    if cost == "time/train_seconds" and not timings_comparable:
        return Cell("not ranked", "unclear")
    dominating = arm.dominated_by.get(cost, ())
    return Cell(f"dominated by {listed(dominating)}", "dominated") if dominating else Cell("on the front", "front")


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
    rows: list[tuple[Cell, ...]] = [
        (
            Cell(f"{pair.a} vs {pair.b}"),
            Cell(_word(pair), pair.verdict),
            Cell(_difference(pair, metric.digits, metric.scale)),
            Cell(interval(pair.image_low, pair.image_high, metric.digits, metric.scale)),
            Cell(p_value(pair.p)),
            Cell(p_value(pair.p_unadjusted)),
            Cell(str(pair.n)),
            Cell(number(pair.disagreement, scale=100)),
            *([Cell(number(pair.retention_difference, scale=100, signed=True))] if has_source else []),
        )
        for pair in comparison.pairs
    ]
    if any(pair.seeds_needed or pair.images_needed for pair in comparison.pairs):
        columns.append(Column("Would decide", False))
        rows = [(*row, Cell(_needed(pair))) for row, pair in zip(rows, comparison.pairs, strict=True)]
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
            Cell(comparison.classes[index]),
            *(Cell(number(arm.class_f1[index], scale=100) if arm.class_f1 else NOTHING) for arm in arms),
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
            Cell(str(run.seed)),
            Cell(number(run.metrics.get(metric.key), metric.digits, scale=metric.scale)),
            Cell(run.name),
            Cell(run.run_id or NOTHING, "code"),
        )
        for arm in comparison.arms
        for run in arm.runs
    ]
    return Table(f"Runs compared ({len(rows)})", "", columns, tuple(rows))


def left_out(found: Iterable[LeftOut]) -> Table:
    """Return the runs that are not in the figures, and why."""
    rows = [(Cell(run.name), Cell(run.status), Cell(run.reason), Cell(run.run_id or NOTHING, "code")) for run in found]
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
