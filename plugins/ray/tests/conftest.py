"""Run each test in an empty folder, with a separate cache and without settings of the developer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set this before torch and MLflow are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

#: options of the smallest experiment
TINY = (
    *("--set", "split.source=200", "--set", "split.pool=100", "--set", "split.test=100"),
    *("--set", "shots=5", "--set", "base.epochs=2", "--epochs", "2"),
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("ADAPTKIT_", "MLFLOW_TRACKING", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ADAPTKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
