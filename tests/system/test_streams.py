"""Closed output streams: progress is dropped, and lost results are an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support.experiments import TINY
from support.processes import start
from support.reliability import note

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "adaptkit", *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closed", "full"])
def test_closed_stderr_does_not_stop_run(store: Path, how: str) -> None:
    read, write = os.pipe() if how == "closed" else (None, os.open("/dev/full", os.O_WRONLY))
    process = start("run", "-s", "head", *TINY[:-1], "30", stderr=write)
    os.close(write)
    if read is not None:
        with os.fdopen(read) as lines:
            while "[head seed=0] epoch 1/" not in lines.readline():
                pass
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and " head " in output
    client = MlflowClient(f"sqlite:///{store}")
    found = client.search_runs([client.get_experiment_by_name("adaptkit").experiment_id])
    assert {run.info.run_name: run.info.status for run in found} == {
        "base small_cnn mnist5k": "FINISHED",
        "head seed=0": "FINISHED",
    }
    note("unread-progress")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("cache", "list"), ("--help",), ("cache", "list", "--json")])
def test_closed_stdout_exit_code(own_folder: Path, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    gone = subprocess.run(command(*arguments), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (gone.returncode, gone.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        lost = subprocess.run(command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True)
    assert (lost.returncode, lost.stderr) == (1, "Error: cannot print: No space left on device\n")
    note("unread-results", 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"), [(("cache", "list"), 0), (("--help",), 0), (("run", "-s", "head", "--epochs", "0"), 2)]
)
def test_streams_closed_at_start(own_folder: Path, arguments: tuple[str, ...], code: int) -> None:
    shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh"]
    assert subprocess.run([*shell, *command(*arguments)]).returncode == code


@pytest.mark.slow
def test_run_with_streams_closed_at_start(store: Path) -> None:
    shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh"]
    assert subprocess.run([*shell, *command("run", "-s", "head", *TINY)]).returncode == 0
    client = MlflowClient(f"sqlite:///{store}")
    found = client.search_runs([client.get_experiment_by_name("adaptkit").experiment_id])
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
