"""Run each test in an empty folder, with a separate cache and without adaptkit's and MLflow's environment variables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set this before torch is imported, because test processes run in parallel.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("ADAPTKIT_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ADAPTKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
