"""Fixtures of the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.artifacts import copied
from support.experiments import Tracked
from support.interruption import Stop


@pytest.fixture
def copy(tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of a copy of the tracked store, which is the default store of this test."""
    uri = copied(tracked, tmp_path / "store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def stop() -> Iterator[Stop]:
    """Return an object that can interrupt this process."""
    stop = Stop()
    yield stop
    stop.undo()


@pytest.fixture
def uri(store: Path) -> str:
    """Return the address of the store of this test."""
    return f"sqlite:///{store}"
