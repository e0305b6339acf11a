"""Convert the results of a comparison to MLflow: metrics, tags, a description and a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from adaptkit.comparison.findings import Comparison, Comparisons
from adaptkit.comparison.records import ArmResult
from adaptkit.names import (
    BASE_FINGERPRINT_TAG,
    COMPARED_RUNS_TAG,
    COMPARISON_FILE,
    COMPARISON_HIGH,
    COMPARISON_LOW,
    COMPARISON_MEAN,
    DATA_FINGERPRINT_TAG,
    DESCRIPTION_TAG,
    METRIC_TAG,
)
from adaptkit.tracking.journal import Log, now

#: maximum length of a tag in characters; MLflow truncates longer tags
TAG_LENGTH = 8000


def findings_log(findings: Comparisons, experiment_id: str) -> Log:
    """Return the metrics and tags of a run that holds comparisons.

    The metrics are the mean and the interval of each strategy. If there are several comparisons, the step of a metric
    is the number of its comparison. The tags name the compared runs, and the description holds the sentences.
    """
    at = now()
    first, *others = findings.comparisons
    name = first.metric.key.rsplit("/", 1)[-1]
    metrics = tuple(
        # MLflow's page draws bars for metrics that have only the step 0, and curves for all others.
        (f"{prefix}{name}/{arm.slug}", value, at, comparison.number if others else 0)
        for comparison in findings.comparisons
        for arm in comparison.arms
        for prefix, value in (
            (COMPARISON_MEAN, arm.score.mean),
            (COMPARISON_LOW, arm.score.low),
            (COMPARISON_HIGH, arm.score.high),
        )
        if value is not None
    )
    runs = [run for comparison in findings.comparisons for arm in comparison.arms for run in arm.runs]
    tags = {
        BASE_FINGERPRINT_TAG: _joined(comparison.base_fingerprint for comparison in findings.comparisons),
        DATA_FINGERPRINT_TAG: _joined(comparison.data_fingerprint for comparison in findings.comparisons),
        METRIC_TAG: first.metric.key,
        COMPARED_RUNS_TAG: _joined(run.run_id for run in runs if run.run_id),
        DESCRIPTION_TAG: describe(findings, experiment_id),
    }
    return Log(metrics, tags=tags)


def write_arms(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write a table of the compared strategies: `slug` is the part of a metric's name that stands for a strategy."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = [{"comparison": comparison.number} | _row(arm) for comparison in comparisons for arm in comparison.arms]
        writer = csv.DictWriter(stream, max(rows, key=len))
        writer.writeheader()
        writer.writerows(rows)


def _row(arm: ArmResult) -> dict[str, object]:
    score, changes = arm.score, {"gain": arm.gain, "retention": arm.retention}
    row = {"slug": arm.slug, "arm": arm.name, "seeds": score.n, "mean": score.mean, "low": score.low}
    means = {name: change.mean for name, change in changes.items() if change is not None}
    return {**row, "high": score.high, **means, "trainable": arm.trainable}


def describe(findings: Comparisons, experiment_id: str) -> str:
    """Return the sentences of comparisons as Markdown, with a link to each compared run in the store."""
    lines = [f"- {_escaped(sentence)}" for trend in findings.trends for sentence in trend.sentences]
    for comparison in findings.comparisons:
        if len(findings.comparisons) > 1:
            lines += ["", f"**Comparison {comparison.number}** {_escaped(comparison.reason or '')}".rstrip(), ""]
        lines += [f"- {_escaped(sentence)}" for sentence in (*comparison.sentences, *comparison.notes)]
        lines += ["", "Compared runs:", ""]
        for arm in comparison.arms:
            links = [
                f"[seed {run.seed}](#/experiments/{experiment_id}/runs/{run.run_id})" for run in arm.runs if run.run_id
            ]
            lines.append(f"- {_escaped(arm.name)}: {', '.join(links) or 'not tracked'}")
    text = "\n".join(lines)
    while len(text) > TAG_LENGTH:
        lines = lines[:-1]
        text = "\n".join([*lines, f"- and more: see `{COMPARISON_FILE}`"])
    return text


def _escaped(text: str) -> str:
    """Return a text in which Markdown's special characters are escaped."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text


def _joined(names: Iterable[str]) -> str:
    """Join different names with commas, as many as a tag can hold. The complete list is in `comparison.json`."""
    text = ",".join(dict.fromkeys(names))
    return text if len(text) <= TAG_LENGTH else text[:TAG_LENGTH].rsplit(",", 1)[0]
