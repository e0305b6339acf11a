"""Processes: signals, concurrent starts, kills, and a server that disappears."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import TINY
from support.mlflow_records import EPOCH_METRICS, runs
from support.processes import Process, start
from support.reliability import note
from support.servers import mlflow_ui

pytestmark = pytest.mark.slow

#: long enough to be interrupted
LONG = ("--set", "split.source=200", "--set", "split.pool=100", "--set", "split.test=100", "--set", "base.epochs=2")


def read_until(process: Process, words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the process ended without {words!r}")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: str(value),
)
def test_signal_ends_run_as_killed(store: Path, number: signal.Signals, code: int) -> None:
    process = start("run", "-s", "head", *LONG, "--epochs", "100000")
    read_until(process, "[head seed=0] epoch 3/")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    found = runs()
    hint = f"To resume:  adaptkit resume {found['head seed=0'].info.run_id}"
    assert errors.splitlines()[-2:] == ["Interrupted.", hint] and "Traceback" not in errors
    assert (found["base small_cnn mnist5k"].info.status, found["head seed=0"].info.status) == ("FINISHED", "KILLED")
    steps = [p.step for p in client().get_metric_history(found["head seed=0"].info.run_id, "train/loss")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 2
    note("signal")


def test_signal_during_base_run(store: Path) -> None:
    process = start("run", "-s", "head", *LONG, "--set", "base.epochs=100000")
    read_until(process, "[base small_cnn mnist5k] epoch 2/")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert {name: run.info.status for name, run in runs().items()} == {"base small_cnn mnist5k": "KILLED"}


PLUGIN = """
import os
import signal

from adaptkit import hookimpl


@hookimpl
def adaptkit_epoch_ended(run, epoch):
    if run.kind == "adaptation" and os.environ["HOW"] == "translated":
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:  # as compiled modules do during their import
            raise ImportError("initialization failed") from None
    if run.kind == "adaptation" and os.environ["HOW"] == "lost" and epoch.number == 1:
        freed = Freed()
        del freed


@hookimpl
def adaptkit_run_failed(run, error):
    if os.environ["HOW"] == "closing":
        os.kill(os.getpid(), signal.SIGTERM)


class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(10):
            pass


class Failing:
    name = "failing"

    def adapt(self, model):
        return list(model.parameters())

    def step_ended(self, model, step):
        if os.environ["HOW"] == "closing":
            raise ValueError("no")


@hookimpl
def adaptkit_strategies():
    return [Failing]
"""


@pytest.mark.parametrize("how", ["translated", "lost", "closing"])
def test_signal_is_not_lost(store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("HOW", how)
    (own_folder / "plugin.py").write_text(PLUGIN)
    process = start("run", "-s", "failing", *TINY, "--plugin", "plugin.py")
    _, errors = process.communicate(timeout=60)
    (run,) = (run for name, run in runs().items() if name.startswith("failing"))
    hint = f"To resume:  adaptkit resume {run.info.run_id}"
    assert (process.returncode, errors.splitlines()[-2:]) == (143, ["Interrupted.", hint]), errors
    assert "Traceback" not in errors
    assert run.info.status == "KILLED"
    note("signal")


def test_eight_processes_in_empty_folder(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    processes = [start("run", "-s", "head", "--seeds", str(seed), *TINY, "-q") for seed in range(8)]
    errors = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    found = runs()
    assert sorted(found) == ["base small_cnn mnist5k", *(f"head seed={seed}" for seed in range(8))]
    for name, run in found.items():
        assert run.info.status == "FINISHED"
        metrics = EPOCH_METRICS | ({"shifted/accuracy"} if name.startswith("head") else set())
        for key in metrics:
            assert [p.step for p in client().get_metric_history(run.info.run_id, key)] == [1, 2], (name, key)
        assert len(run.data.metrics) == (33 if name.startswith("head") else 5)
    note("first-starts", 8)


@pytest.mark.parametrize("delay", [0.0, 0.4, 0.8, 1.2])
def test_kill_during_store_creation(cli: Callable[..., Result], own_folder: Path, delay: float) -> None:
    process = start("run", "-s", "head", *TINY, "-q")
    until = time.monotonic() + 60
    while not list(own_folder.glob(".mlflow.db*")) and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    process.communicate()
    again = cli("run", "-s", "head", *TINY, "-q")
    assert (again.exit_code, again.stderr) == (0, "")
    assert runs()["head seed=0"].info.status == "FINISHED"
    note("kill-store")


def test_server_dies_during_run(own_folder: Path) -> None:
    with mlflow_ui(own_folder) as page:
        plugin = own_folder / "killer.py"
        plugin.write_text(
            "import os, signal\nfrom adaptkit import hookimpl\n\n@hookimpl\ndef adaptkit_epoch_ended(run, epoch):\n"
            f"    if run.kind == 'adaptation' and epoch.number == 1:\n"
            f"        os.killpg(os.getpgid({page.process.pid}), signal.SIGKILL)\n"
        )
        began = time.monotonic()
        address = page.address.replace("http://", "http://user:secret@")
        process = start("run", "-s", "head", "-s", "lora", *TINY, "--tracking-uri", address, "--plugin", str(plugin))
        output, errors = process.communicate(timeout=200)
    assert time.monotonic() - began < 90  # with MLflow's defaults, each call takes four minutes
    assert process.returncode == 1
    assert "head" in output and "lora" in output
    (error,) = [line for line in errors.splitlines() if line.startswith("Error")]
    assert error.startswith("Error: MLflow does not have all results: ") and error == errors.splitlines()[-1]
    kept = f"the missing records are kept: `adaptkit sync --tracking-uri {page.address}` sends them"
    assert error.endswith(f"; {kept}; the results above are complete")
    note("server-away")
    assert "secret" not in output + errors
    assert not [run for run in runs().values() if "secret" in str(run.data.tags)]


def client() -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{Path.cwd() / 'mlflow.db'}")
