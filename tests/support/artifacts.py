"""Artifacts of tracked runs, for tests."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow import MlflowClient
from support.experiments import Tracked


def run_of(tracked: Tracked, strategy: str) -> str:
    """Return the id of the tracked run of this strategy."""
    return next(str(run["run_id"]) for run in tracked.outcome["runs"] if run["strategy"] == strategy)


def copied(tracked: Tracked, folder: Path, artifacts: Path | None = None) -> str:
    """Copy the tracked store to a folder, and set the addresses of its artifacts."""
    shutil.copytree(tracked.folder, folder, dirs_exist_ok=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)",
                (str(tracked.folder), str(artifacts or folder)),
            )
        database.commit()
    return f"sqlite:///{folder / 'mlflow.db'}"


def artifacts_of(uri: str, run_id: str) -> Path:
    return Path(MlflowClient(tracking_uri=uri).get_run(run_id).info.artifact_uri.removeprefix("file://"))
