"""Each test in an empty folder, with a cache of its own and nothing of adaptkit's or MLflow's from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("ADAPTKIT_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ADAPTKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
