"""Print a comparison on the terminal: tables of accuracies, pairs, costs and severities, then the sentences."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adaptkit.comparison.findings import Comparison, Comparisons
from adaptkit.comparison.numbers import NOTHING, mean, number, p_value, size
from adaptkit.comparison.numbers import interval as bounds
from adaptkit.comparison.records import COSTS, ArmResult, Metric
from adaptkit.comparison.sentences import shown_pairs
from adaptkit.experiment.outcome import RunOutcome
from adaptkit.names import FINAL_GAIN, FINAL_RETENTION, FINAL_SHIFTED_ACCURACY, FINAL_TEST_ACCURACY, TIME_TRAIN_SECONDS
from adaptkit.reports.tables import severity_cells, severity_note, shown_severities, zero_shot_cells
from adaptkit.settings.severities import written

COLOURS = {"better": "green", "worse": "red", "tie": "cyan", "undecided": "yellow"}
#: metrics with a column of their own in the table of accuracies
SHOWN = (FINAL_SHIFTED_ACCURACY, FINAL_TEST_ACCURACY, FINAL_GAIN, FINAL_RETENTION, TIME_TRAIN_SECONDS)
#: number of rows of a table on the terminal
MOST_ARMS = 40
#: columns that are left out of a table which is wider than the terminal, the first one first
EXPENDABLE = ("share", "seconds", "retention", "trainable")
#: spaces between two columns, and around the table: usually, and in a table that would not fit otherwise
WIDE_GAP, GAP = 3, 2


def print_outcome(console: Console, outcome: RunOutcome) -> None:
    """Print the results of an experiment: accuracies and, with several strategies, the verdicts."""
    if outcome.comparison is None:
        return
    comparison = outcome.comparison
    print_arms(console, comparison, len(outcome.plan.seeds))
    print_severities(console, comparison)
    print_sentences(console, comparison)


def print_findings(console: Console, findings: Comparisons) -> None:
    """Print every comparison in full, then the trends and notes."""
    for comparison in findings:
        if comparison.reason is not None:
            console.rule(f"Comparison {comparison.number} of {len(findings)}", align="left")
            console.print(comparison.reason, markup=False, soft_wrap=True)
        print_arms(console, comparison, len({seed for arm in comparison.arms for seed in arm.seeds}))
        if len(comparison.arms) > 1:
            print_pairs(console, comparison)
            print_costs(console, comparison)
        print_severities(console, comparison)
        print_sentences(console, comparison)
    if any(trend.sentences for trend in findings.trends):
        console.rule("Results by setting", align="left")
    for sentence in (sentence for trend in findings.trends for sentence in trend.sentences):
        console.print(sentence, markup=False, soft_wrap=not console.is_terminal)
    for note in findings.notes:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)


def print_arms(console: Console, comparison: Comparison, seeds: int) -> None:
    """Print the table of accuracies: one row for each arm, the best first, and one for the zero-shot base."""
    metric, zero_shot, base_source = comparison.metric, comparison.zero_shot, comparison.base_accuracy
    note = f"{f'mean of {seeds} runs' if seeds > 1 else 'one run'} ± 95 % interval"
    has_source = zero_shot is not None and base_source is not None
    about = "accuracies in %, gain and retention in points" if has_source else "target accuracy in %"
    extra = metric.key not in SHOWN
    more = [other for other in comparison.others if other.key not in SHOWN]
    headings = [
        "strategy",
        *([metric.label.removeprefix("target ")] if extra else []),
        *(["target", "gain", "source", "retention"] if has_source else ["target"]),
        *("trainable", "share", "seconds"),
        *(other.label.removeprefix("target ") for other in more),
    ]
    rows = []
    if zero_shot is not None and base_source is not None:
        base = [f"{100 * zero_shot:.1f}", "", f"{100 * base_source:.1f}", "", "0", "0.00 %", ""]
        reached = [_score(comparison.zero_shot_scores, other) for other in ([metric] if extra else []) + more]
        rows.append(["zero-shot", *reached[: int(extra)], *base, *reached[int(extra) :]])
    for arm in comparison.arms[:MOST_ARMS]:
        fewer = f" ({len(arm.seeds)} of {seeds} seeds)" if len(arm.seeds) < seeds else ""
        score = [mean(arm.score, metric.digits, scale=metric.scale)] if extra else []
        estimates = [(arm.shifted, False), (arm.gain, True), (arm.clean, False), (arm.retention, True)]
        rows.append(
            [
                escape(arm.name) + fewer,
                *score,
                *(mean(value, scale=100, signed=signed) for value, signed in estimates if value is not None),
                f"{arm.trainable:,}",
                f"{100 * arm.trainable_fraction:.2f} %",
                mean(arm.train_seconds),
                *(
                    mean(arm.others[other.key], other.digits, scale=other.scale) if other.key in arm.others else NOTHING
                    for other in more
                ),
            ]
        )
    if comparison.constant is not None:
        accuracy = number(comparison.constant_scores.get(FINAL_SHIFTED_ACCURACY), scale=100)
        reached = [_score(comparison.constant_scores, other) for other in ([metric] if extra else []) + more]
        empty = [""] * (len(headings) - 2 - len(reached))
        rows.append(["constant", *reached[: int(extra)], accuracy, *empty, *reached[int(extra) :]])
    shown, hidden, is_narrow = _fitting(headings, rows, console.width)
    lower = [other.label.removeprefix("target ") for other in (metric, *more) if not other.higher_is_better]
    parts = (about, note, *([f"lower is better: {', '.join(lower)}"] if lower else []))
    caption = "; ".join((*parts, *([f"not shown: {', '.join(hidden)}"] if hidden else [])))
    table = _table(headings[0], caption, is_narrow)
    for index in shown[1:]:
        table.add_column(headings[index], justify="right")
    for row in rows:
        table.add_row(*(row[index] for index in shown), style="dim" if row[0] in ("zero-shot", "constant") else None)
    console.print(table)
    if (left := len(comparison.arms) - MOST_ARMS) > 0:
        console.print(f"and {left} more: see --json or --output")


def _score(scores: Mapping[str, float], metric: Metric) -> str:
    score = scores.get(metric.key)
    return "" if score is None else number(score, metric.digits, scale=metric.scale)


def print_pairs(console: Console, comparison: Comparison) -> None:
    """Print the table of pairs. If there are many pairs, print only those of the best arm."""
    metric, digits, scale = comparison.metric, comparison.metric.digits, comparison.metric.scale
    unit = f" in {metric.unit}" if metric.unit else ""
    shown = shown_pairs(comparison)
    hidden = "" if len(shown) == len(comparison.pairs) else f"; {len(comparison.pairs) - len(shown)} more in --json"
    caption = f"{metric.label}, differences{unit} [95 % interval]; Holm-corrected p{hidden}"
    table = _table("pair", caption)
    for heading in ("difference", "p", "runs", "disagree"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for pair in shown:
        difference = number(pair.difference, digits, scale=scale, signed=True)
        table.add_row(
            f"{escape(pair.a)} vs {escape(pair.b)}",
            escape(f"{difference} {bounds(pair.low, pair.high, digits=digits, scale=scale)}"),
            p_value(pair.p),
            str(pair.n),
            number(pair.disagreement, scale=100, unit=" %"),
            NOTHING
            if pair.p is None
            else f"[{COLOURS[pair.verdict]}]{pair.verdict}[/]" + (" (1 run)" if pair.only_models else ""),
        )
    console.print(table)


def print_costs(console: Console, comparison: Comparison) -> None:
    """Print the table of costs, with the arms that dominate each arm and by which costs."""
    caption = (
        "inference: time relative to the base; dominated by: strategies that are better and cost no more, or are tied "
        "and cost less (in parentheses)"
    )
    table = _table("strategy", caption)
    for heading in ("adapter", "s/epoch", "memory", "inference"):
        table.add_column(heading, justify="right")
    table.add_column("dominated by")
    for arm in comparison.arms[:MOST_ARMS]:
        table.add_row(
            escape(arm.name),
            size(arm.adapter_bytes),
            mean(arm.epoch_seconds, 2),
            size(arm.peak_bytes),
            mean(arm.inference_ratio, 2),
            escape(dominators(arm)),
        )
    console.print(table)


def print_severities(console: Console, comparison: Comparison) -> None:
    """Print the accuracies over severities of the shift, if the runs were tested over them."""
    robustness = comparison.robustness
    if robustness is None:
        return
    positions = shown_severities(robustness)
    table = _table("severity", severity_note(robustness))
    for index in positions:
        table.add_column(written(robustness.severities[index]), justify="right")
    if len(robustness.severities) > 1:
        table.add_column("area", justify="right")
    if robustness.zero_shot is not None:
        table.add_row("zero-shot", *zero_shot_cells(robustness, positions), style="dim")
    for arm in robustness.arms[:MOST_ARMS]:
        table.add_row(escape(arm.name), *severity_cells(arm, positions))
    console.print(table)


def print_sentences(console: Console, comparison: Comparison) -> None:
    """Print the sentences of a comparison, one per line, and the notes on its runs."""
    for sentence in comparison.sentences:
        console.print(sentence, markup=False, soft_wrap=not console.is_terminal)
    for note in comparison.notes:
        console.print(f"Note: {note}", markup=False, soft_wrap=not console.is_terminal, style="dim")


def dominators(arm: ArmResult) -> str:
    """Return the arms that dominate this one, each with the costs; a dash if no arm dominates it."""
    names = dict.fromkeys(name for others in arm.dominated_by.values() for name in others)
    parts = []
    for name in names:
        costs = [label for cost, label in COSTS.items() if name in arm.dominated_by[cost]]
        parts.append(f"{name} ({'every cost' if len(costs) == len(COSTS) else ', '.join(costs)})")
    return "; ".join(parts) or NOTHING


def _fitting(headings: list[str], rows: list[list[str]], width: int) -> tuple[list[int], list[str], bool]:
    """Return the positions of the columns that fit into the width, the headings of the others, if gaps are small."""
    widths = [max(cell_len(row[index]) for row in (headings, *rows)) for index in range(len(headings))]
    shown = list(range(len(headings)))
    is_narrow = sum(widths) + WIDE_GAP * len(shown) > width
    left_out = [index for name in EXPENDABLE for index, heading in enumerate(headings) if heading == name]
    while left_out and sum(widths[index] + GAP for index in shown) > width:
        shown.remove(left_out.pop(0))
    return shown, [heading for index, heading in enumerate(headings) if index not in shown], is_narrow


def _table(first: str, caption: str, is_narrow: bool = False) -> Table:
    padding = (0, 1, 0, 0) if is_narrow else (0, 1)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding, caption=caption, caption_justify="left")
    table.add_column(first)
    return table
