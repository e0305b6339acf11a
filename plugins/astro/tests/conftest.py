"""Run each test in an empty folder, with a separate cache, and without a network."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

# Set this before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("ADAPTKIT_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ADAPTKIT_CACHE", str(tmp_path / "cache"))
    # Tests name the plugin by its file. Do not load it a second time if it is installed.
    monkeypatch.setenv("ADAPTKIT_ENTRY_POINTS", "0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"a host name is looked up: {arguments[0]}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Return a function that calls the command line with the plugin, in this process."""
    import adaptkit_astro

    from adaptkit.cli import main

    def call(command: str, *arguments: str) -> Result:
        words = [command, *arguments, "--plugin", adaptkit_astro.__file__]
        result = CliRunner().invoke(main, words, prog_name="adaptkit")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call
