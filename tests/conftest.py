"""Fixtures that the tests share: the command line, an empty folder, a small experiment, one tracked experiment."""

from __future__ import annotations

import os

# Before torch is imported: test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import atexit
import importlib.metadata
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock
from support.experiments import FOREIGN, KEPT, TINY, Tracked, own_cache

from adaptkit.cli import main

# What fixtures of the whole session leave unsent or half done: nothing of it goes to the developer's own folder.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="adaptkit-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all test processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run each test in an empty folder, with its process's cache and nothing else of adaptkit's or MLflow's."""
    for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_cache(shared)))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    # Tests load BitFit from its file; installed as well, its name would be offered twice.
    installed = importlib.metadata.entry_points

    def without_bitfit(**chosen: str) -> Any:
        found = installed(**chosen)
        return [point for point in found if point.name != "bitfit"] if chosen.get("group") == "adaptkit" else found

    monkeypatch.setattr(importlib.metadata, "entry_points", without_bitfit)
    yield tmp_path
    if "mlflow" in sys.modules:
        # MLflow keeps an address that a test has set, "" too, for the whole process.
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Return a function that calls the command line in this process."""

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(main, list(arguments), prog_name="adaptkit")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture(scope="session")
def empty_store(shared: Path) -> Path:
    """Return a fresh MLflow database, made once: making one takes seconds."""
    from adaptkit.tracking.store import open_store

    path = shared / "template" / "mlflow.db"
    with FileLock(shared / "template.lock"):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            open_store(f"sqlite:///{path}", "template")
    return path


@pytest.fixture
def store(empty_store: Path, own_folder: Path) -> Path:
    """Put a fresh MLflow database into the test's folder, which makes it the default store there."""
    return Path(shutil.copy(empty_store, own_folder / "mlflow.db"))


@pytest.fixture(scope="session")
def tracked(shared: Path, empty_store: Path) -> Iterator[Tracked]:
    """Run one experiment, tracked, for all tests that only look at its record."""
    folder = shared / "tracked"
    with FileLock(shared / "tracked.lock"):
        if not (folder / "outcome.json").exists():
            folder.mkdir(exist_ok=True)
            shutil.copy(empty_store, folder / "mlflow.db")
            with pytest.MonkeyPatch.context() as patch:
                for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
                    patch.delenv(name)
                patch.setenv("ADAPTKIT_CACHE", str(own_cache(shared)))
                patch.chdir(folder)
                arguments = ["run", "-s", "lora", "-s", "head", "-o", "lora.rank=4", *TINY, "--json"]
                result = CliRunner().invoke(main, arguments, catch_exceptions=False)
            assert result.exit_code == 0, result.stderr
            (folder / "outcome.json").write_text(result.stdout)
    yield Tracked(folder, json.loads((folder / "outcome.json").read_text()))
