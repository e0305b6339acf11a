"""Write comparisons to MLflow: each is a run of kind `comparison` that links the runs it compares."""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptkit import __version__
from adaptkit.comparison import Comparison
from adaptkit.errors import TrackingLost
from adaptkit.findings import Findings
from adaptkit.tracking.source import source_tags
from adaptkit.tracking.store import Store, errors_as_lines, open_existing, open_store

#: MLflow cuts a tag at 8,000 characters
TAG_LENGTH = 8000
NAMED_ARMS = 4


def record_findings(findings: Findings, files: Sequence[Path], tracking_uri: str | None) -> tuple[str, ...]:
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
            run_ids.append(create_comparison(store, f"compare {', '.join(shown)}", comparison.setup))
        status = "FAILED"
        try:
            log_comparison(store, run_ids[-1], comparison, files)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except Exception as error:
            reason = store.without_secrets(str(error).strip().split("\n")[0] or type(error).__name__)
            raise TrackingLost(f"the comparison could not be recorded: {reason}") from None
        finally:
            store.client.set_terminated(run_ids[-1], status)
    return tuple(address.report_url(store.experiment_id, run_id) for run_id in run_ids)


def create_comparison(store: Store, name: str, params: Mapping[str, object]) -> str:
    """Create a run of kind comparison with the params that its runs share; return its id."""
    from mlflow.entities import Param

    tags = source_tags(store.without_secrets) | {"adaptkit.version": __version__, "adaptkit.kind": "comparison"}
    run_id = str(store.client.create_run(store.experiment_id, run_name=name, tags=tags).info.run_id)
    store.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    return run_id


def log_comparison(store: Store, run_id: str, comparison: Comparison, files: Sequence[Path]) -> None:
    """Log each arm's mean and interval as metrics, the sentences as description, the compared runs, and files."""
    from mlflow.entities import Metric, RunTag

    client, experiment_id = store.client, store.experiment_id
    now = int(time.time() * 1000)
    name = comparison.metric.key.rsplit("/", 1)[-1]
    points = [
        Metric(f"{kind}/{name}/{arm.slug}", value, now, 0)
        for arm in comparison.arms
        for kind, value in (("mean", arm.score.mean), ("low", arm.score.low), ("high", arm.score.high))
        if value is not None
    ]
    compared = [run.run_id for arm in comparison.arms for run in arm.runs if run.run_id]
    tags = {
        "adaptkit.base_fingerprint": comparison.base_fingerprint,
        "adaptkit.data_fingerprint": comparison.data_fingerprint,
        "adaptkit.metric": comparison.metric.key,
        "adaptkit.compared_runs": _fitting(compared),
        "mlflow.note.content": describe(comparison, experiment_id),
    }
    client.log_batch(run_id, metrics=points, tags=[RunTag(key, value) for key, value in tags.items()])
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
        write_arms(Path(folder) / "arms.csv", comparison)
        # At the root, since MLflow's compare page shows only those.
        for path in (Path(folder) / "arms.csv", *files):
            client.log_artifact(run_id, str(path))


def write_arms(path: Path, comparison: Comparison) -> None:
    """Write the table that maps the part of a metric's name to the arm, with the arm's figures."""
    of_source = ["gain", "retention"] if comparison.zero_shot is not None else []
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["slug", "arm", "seeds", "mean", "low", "high", *of_source, "trainable"])
        for arm in comparison.arms:
            score, changes = arm.score, [change.mean for change in (arm.gain, arm.retention) if change is not None]
            figures = (score.n, score.mean, score.low, score.high, *changes)
            writer.writerow([arm.slug, arm.name, *figures, arm.trainable])


def describe(comparison: Comparison, experiment_id: str) -> str:
    """Return the sentences as Markdown, with a link to each compared run that is in the store."""
    lines = [f"- {_escaped(sentence)}" for sentence in (*comparison.sentences, *comparison.notes)]
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


def _fitting(run_ids: list[str]) -> str:
    """Return ids with commas between, as many as a tag holds; `comparison.json` has all."""
    text = ",".join(run_ids)
    return text if len(text) <= TAG_LENGTH else text[:TAG_LENGTH].rsplit(",", 1)[0]
