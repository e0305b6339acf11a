"""Run each test offline, in an empty folder, with a separate cache."""

from __future__ import annotations

import os

# Set these before torch and the Hub's client are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(tmp_path / "cache"))
    # Tests pass the plugin as an object. Do not load it a second time if it is installed.
    monkeypatch.setenv("ADAPTKIT_ENTRY_POINTS", "0")
    monkeypatch.chdir(tmp_path)
    return tmp_path
