"""Read records from MLflow, for tests."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

import adaptkit
from adaptkit.events import Epoch, RunStart

EPOCH_METRICS = {"train/loss", "train/accuracy", "test/accuracy", "time/epoch_seconds", "time/cumulative_seconds"}


ARTIFACTS = [
    "adapter/adapter.json",
    "adapter/adapter.safetensors",
    "classification_report_clean.json",
    "classification_report_clean.txt",
    "classification_report_shifted.json",
    "classification_report_shifted.txt",
    "config.yaml",
    "confusion_clean.png",
    "confusion_shifted.png",
    "curves.png",
    "environment.txt",
    "predictions.csv",
    "predictions.parquet",
    "samples.png",
    "split.json",
]


def client(uri: str | None = None) -> MlflowClient:
    # An absolute address: MLflow caches stores by their address.
    return MlflowClient(tracking_uri=uri or f"sqlite:///{Path.cwd() / 'mlflow.db'}")


def runs(uri: str | None = None, experiment: str = "adaptkit") -> dict[str, MlflowRun]:
    """Return the runs of an experiment by name."""
    found = client(uri).get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_name: run for run in client(uri).search_runs([found.experiment_id])}


def artifact(uri: str | None, run: MlflowRun, name: str, folder: Path) -> Path:
    return Path(client(uri).download_artifacts(run.info.run_id, name, str(folder)))


def listed(uri: str | None, run: MlflowRun) -> list[str]:
    files = []
    for entry in client(uri).list_artifacts(run.info.run_id):
        inner = client(uri).list_artifacts(run.info.run_id, entry.path) if entry.is_dir else [entry]
        files += [file.path for file in inner]
    return sorted(files)


class Raising:
    """Raise an error in the second epoch of an adaptation run."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    @adaptkit.hookimpl
    def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
        if run.kind == "adaptation" and epoch.number == 2:
            raise self.error
