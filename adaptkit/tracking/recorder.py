"""Write comparisons to MLflow: each is a run of kind `comparison` that links the runs it compares."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adaptkit.comparison.records import ArmResult, Comparison, Comparisons
from adaptkit.errors import TrackingLost, first_line
from adaptkit.names import (
    ARMS_FILE,
    BASE_FINGERPRINT_TAG,
    COMPARED_RUNS_TAG,
    DATA_FINGERPRINT_TAG,
    KIND_TAG,
    METRIC_TAG,
    VERSION_TAG,
)
from adaptkit.tracking.delivery import send_logs
from adaptkit.tracking.environment import source_tags
from adaptkit.tracking.journal import Create, Log, now
from adaptkit.tracking.store import Store, errors_as_lines, open_existing, open_store
from adaptkit.version import __version__

#: MLflow cuts a tag at 8,000 characters
TAG_LENGTH = 8000
NAMED_ARMS = 4


def record_findings(findings: Comparisons, files: Sequence[Path], tracking_uri: str | None) -> tuple[str, ...]:
    """Make a run for each comparison, beside the runs that it compares, with these files; return their pages.

    Raises BadInput for a store that cannot be written, TrackingLost when it fails: that run ends as FAILED.
    """
    address, client = open_existing(tracking_uri)
    run_id = findings.comparisons[0].arms[0].runs[0].run_id
    assert run_id is not None  # what was read from a store has an id there
    with errors_as_lines(address):
        experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    store = open_store(tracking_uri, experiment.name)
    run_ids = []
    for comparison in findings.comparisons:
        names = [arm.name for arm in comparison.arms]
        shown = [*names[:NAMED_ARMS], f"{len(names) - NAMED_ARMS} more"] if len(names) > NAMED_ARMS else names
        with errors_as_lines(address):
            run_ids.append(_create_comparison(store, f"compare {', '.join(shown)}", comparison.setup))
        status = "FAILED"
        try:
            log_findings(store, run_ids[-1], Comparisons((comparison,)), files)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except Exception as error:
            reason = store.without_secrets(first_line(error))
            raise TrackingLost(f"the comparison could not be recorded: {reason}") from None
        finally:
            store.client.set_terminated(run_ids[-1], status)
    return tuple(address.report_url(store.experiment_id, run_id) for run_id in run_ids)


def begin_comparison(store: Store, name: str, params: Mapping[str, object]) -> tuple[Create, Log]:
    """Return the beginning of a run of kind comparison with the params that its runs share."""
    tags = source_tags(store.without_secrets) | {VERSION_TAG: __version__, KIND_TAG: "comparison"}
    return Create(name, now(), tags), Log(params={key: str(value) for key, value in params.items()})


def _create_comparison(store: Store, name: str, params: Mapping[str, object]) -> str:
    create, log = begin_comparison(store, name, params)
    run_id = str(store.client.create_run(store.experiment_id, create.at, dict(create.tags), create.name).info.run_id)
    send_logs(store.client, run_id, [log])
    return run_id


def log_findings(store: Store, run_id: str, findings: Comparisons, files: Sequence[Path]) -> None:
    """Log what comparisons found to a run that the store has, and files."""
    send_logs(store.client, run_id, [findings_log(findings, store.experiment_id)])
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
        write_arms(Path(folder) / ARMS_FILE, findings.comparisons)
        # At the root, since MLflow's compare page shows only those.
        for path in (Path(folder) / ARMS_FILE, *files):
            store.client.log_artifact(run_id, str(path))


def findings_log(findings: Comparisons, experiment_id: str) -> Log:
    """Return each arm's mean and interval as metrics, the sentences as description, and the compared runs.

    Where there are several comparisons, the metrics' step is the comparison's number.
    """
    at = now()
    first, *others = findings.comparisons
    name = first.metric.key.rsplit("/", 1)[-1]
    metrics = tuple(
        # MLflow's page draws bars of what has no step but 0, else curves.
        (f"{kind}/{name}/{arm.slug}", value, at, comparison.number if others else 0)
        for comparison in findings.comparisons
        for arm in comparison.arms
        for kind, value in (("mean", arm.score.mean), ("low", arm.score.low), ("high", arm.score.high))
        if value is not None
    )
    compared = [run.run_id for one in findings.comparisons for arm in one.arms for run in arm.runs if run.run_id]
    tags = {
        BASE_FINGERPRINT_TAG: _joined(one.base_fingerprint for one in findings.comparisons),
        DATA_FINGERPRINT_TAG: _joined(one.data_fingerprint for one in findings.comparisons),
        METRIC_TAG: first.metric.key,
        COMPARED_RUNS_TAG: _joined(compared),
        "mlflow.note.content": describe(findings, experiment_id),
    }
    return Log(metrics, tags=tags)


def write_arms(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write the table that maps the part of a metric's name to the arm, with the arm's figures."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = [{"comparison": comparison.number} | _row(arm) for comparison in comparisons for arm in comparison.arms]
        writer = csv.DictWriter(stream, max(rows, key=len))
        writer.writeheader()
        writer.writerows(rows)


def _row(arm: ArmResult) -> dict[str, object]:
    score, changes = arm.score, {"gain": arm.gain, "retention": arm.retention}
    found = {"slug": arm.slug, "arm": arm.name, "seeds": score.n, "mean": score.mean, "low": score.low}
    means = {name: change.mean for name, change in changes.items() if change is not None}
    return {**found, "high": score.high, **means, "trainable": arm.trainable}


def describe(findings: Comparisons, experiment_id: str) -> str:
    """Return the sentences as Markdown, with a link to each compared run that is in the store."""
    told = [sentence for trend in findings.trends for sentence in trend.sentences]
    lines = [f"- {_escaped(sentence)}" for sentence in told]
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
        text = "\n".join([*lines, "- and more: see `comparison.json`"])
    return text


def _escaped(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text


def _joined(names: Iterable[str]) -> str:
    """Return names with commas between, each once, as many as a tag holds; `comparison.json` has all."""
    text = ",".join(dict.fromkeys(names))
    return text if len(text) <= TAG_LENGTH else text[:TAG_LENGTH].rsplit(",", 1)[0]
