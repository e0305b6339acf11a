"""Conclude an experiment: what its runs say together, and what the store has of them."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.findings import Findings
from adaptkit.outcome import Outcome
from adaptkit.reports.collector import Collector

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker


def with_ids(outcome: Outcome, tracker: Tracker) -> Outcome:
    """Return the outcome with the ids of runs that a slow store has taken only meanwhile."""
    tracker.flush()
    runs = [
        dataclasses.replace(run, run_id=run.run_id or tracker.run_id(f"{run.label} seed={run.seed}"))
        for run in outcome.runs
    ]
    return dataclasses.replace(outcome, runs=tuple(runs))


def judge_outcome(outcome: Outcome, collector: Collector) -> Findings | None:
    """Return what the runs of an experiment say of its strategies; None when none has finished."""
    from adaptkit.reports.judgement import judge_runs

    runs = collector.runs({f"{run.label} seed={run.seed}": run.run_id for run in outcome.runs})
    return judge_runs(runs) if any(run.status == "finished" for run in runs) else None


def close_group(outcome: Outcome, findings: Findings | None, tracker: Tracker, report: Path | None) -> Outcome:
    """End the run that groups a tracked experiment's runs, if there is one, with what they say; return all of it.

    The tracker is closed: only then it is known what the store has.
    """
    store = tracker.store
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
        tracker.end_group(findings, files_of(findings, report, Path(temporary)))
    tracker.close()
    return dataclasses.replace(
        outcome,
        experiment=store.experiment_name,
        tracking_uri=store.without_secrets(store.uri),
        ui_command=store.ui_command,
        ui_url=store.runs_url(),
        notices=store.notices,
        tracking_error=tracker.fault,
        parent_run_id=tracker.parent_id,
        comparison=findings,
    )


def files_of(findings: Findings | None, report: Path | None, temporary: Path) -> list[Path]:
    """Return the files that belong to the run that groups the others: the report if one is wanted, else its JSON."""
    if findings is None:
        return []
    if report is not None:
        from adaptkit.reports.report import write_report

        return write_report(report, findings)
    path = temporary / "comparison.json"
    path.write_text(f"{findings.to_json()}\n", encoding="utf-8")
    return [path]
