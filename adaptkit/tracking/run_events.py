"""What is told of runs: their beginning, their epochs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from adaptkit.contracts import Epoch, Run, RunInput
from adaptkit.tracking.events import Create, Event, Input, Log, now, points


@dataclass(frozen=True)
class Resumed:
    """A run that goes on in its own record: how many epochs the store has of it, and which metrics without a step."""

    run_id: str
    local_id: str
    epochs: int
    metrics: frozenset[str]


def begin_run(run: Run, tags: Mapping[str, str], runs: Mapping[str, str]) -> list[Event]:
    """Return the beginning of a run with its params, tags and inputs; `runs` are tags that name others by local ids."""
    told = {"mlflow.note.content": run.description} if run.description else {}
    params = {key: str(value) for key, value in run.params.items()}
    return [Create(run.name, now(), {**tags, **told}, runs), Log(params=params), *map(_input, run.inputs)]


def epoch_log(epoch: Epoch) -> Log:
    """Return an epoch's metrics by their MLflow names."""
    metrics = {
        "train/loss": epoch.loss,
        "train/accuracy": epoch.train_accuracy,
        "time/epoch_seconds": epoch.seconds,
        "time/cumulative_seconds": epoch.cumulative_seconds,
        "test/accuracy": epoch.test_accuracy,
        "shifted/accuracy": epoch.shifted_accuracy,
        "validation/accuracy": epoch.validation_accuracy,
        "validation/loss": epoch.validation_loss,
    }
    return Log(points({key: value for key, value in metrics.items() if value is not None}, epoch.number))


def status_after(error: BaseException) -> str:
    """Return what a run ends as that an error stops."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    return "FINISHED" if isinstance(error, SystemExit) and error.code in (None, 0) else "FAILED"


def _input(given: RunInput) -> Input:
    source = json.dumps({"tags": {"mlflow.source.name": given.source}})
    return Input(given.name, given.digest, source, given.context)
