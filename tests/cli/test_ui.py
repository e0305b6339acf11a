"""`adaptkit ui`: the right store, the right link, and no process left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from click.testing import Result
from mlflow import MlflowClient
from support.commands import children, first_line, free_port, started
from support.experiments import Tracked
from support.servers import mlflow_ui

from adaptkit.tracking.address import CHARTS

Cli = Callable[..., Result]


def refusal(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


def test_missing_store(cli: Cli, own_folder: Path) -> None:
    line = f"Error: no tracking store at {own_folder}/mlflow.db: create one with `adaptkit run`"
    assert refusal(cli("ui")).startswith(line)
    assert list(own_folder.iterdir()) == []


def test_unknown_experiment(cli: Cli, tracked: Tracked) -> None:
    assert refusal(cli("ui", "--experiment", "adaptkid", "--tracking-uri", tracked.uri)) == (
        f"Error: --experiment: no experiment 'adaptkid' in {tracked.folder}/mlflow.db; did you mean 'adaptkit'?"
    )


def test_deleted_experiment(cli: Cli, store: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    old = client.create_experiment("old")
    client.delete_experiment(old)
    assert refusal(cli("ui", "--experiment", "old")) == (
        "Error: experiment 'old' was deleted in MLflow: restore it with "
        f"`mlflow experiments restore --experiment-id {old}`, or choose another name with --experiment"
    )


def test_port_in_use(cli: Cli, tracked: Tracked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(cli("ui", "--port", str(port), "--tracking-uri", tracked.uri))
    assert (
        line == f"Error: --port: {port} is in use; choose another port, or leave the option out for the next free one"
    )


def test_bad_port(cli: Cli) -> None:
    line = refusal(cli("ui", "--port", "70000"))
    assert line == "Error: Invalid value for '--port': 70000 is not in the range 1<=x<=65535."


@pytest.mark.slow
def test_server_that_does_not_start(cli: Cli, tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_STATIC_PREFIX", "no-slash")
    done = cli("ui", "--port", str(free_port()), "--tracking-uri", tracked.uri)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"Starting MLflow on {tracked.folder}/mlflow.db",
        "Error: `mlflow ui` did not start: Error: --static-prefix must begin with a '/'.",
    ]


@pytest.mark.slow
def test_link_of_a_tracking_server(cli: Cli, tracked: Tracked, own_folder: Path) -> None:
    with mlflow_ui(tracked.folder) as page:
        port = int(page.address.rsplit(":", 1)[1])
        for arguments, name in ([], "adaptkit"), (["--experiment", "template"], "template"):
            shown = cli("ui", "--tracking-uri", page.address, *arguments)
            assert (shown.exit_code, shown.stderr) == (0, "")
            experiment = experiment_id(port, name)
            assert shown.stdout == f"Look at the runs:  {page.address}/#/experiments/{experiment}/runs?{CHARTS}\n"
        assert refusal(cli("ui", "--tracking-uri", page.address, "--experiment", "templet")) == (
            f"Error: --experiment: no experiment 'templet' in {page.address}; did you mean 'template'?"
        )
    assert refusal(cli("ui", "--tracking-uri", page.address)) == (
        f"Error: cannot reach the MLflow server at {page.address}: Connection refused"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_server_stops_with_the_command(tracked: Tracked, number: signal.Signals, code: int) -> None:
    port = free_port()
    with started("--port", str(port), "--tracking-uri", tracked.uri) as process:
        link = first_line(process)
        experiment = experiment_id(port, "adaptkit")
        assert link == f"Look at the runs:  http://127.0.0.1:{port}/#/experiments/{experiment}/runs?{CHARTS}"
        (server,) = children(process.pid)
        assert "sqlite" not in command_line(server)  # other users could read the password of a database there
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "")
    assert [line for line in errors.splitlines() if line] == [
        f"Starting MLflow on {tracked.folder}/mlflow.db",
        "Press Ctrl-C to stop it.",
        "Interrupted.",
    ]
    with pytest.raises(ProcessLookupError):
        os.killpg(server, 0)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/health", timeout=5)


@pytest.mark.slow
def test_stop_before_the_server_started(tracked: Tracked) -> None:
    with started("--port", str(free_port()), "--tracking-uri", tracked.uri) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"Starting MLflow on {tracked.folder}/mlflow.db\n"
        until = time.monotonic() + 30
        while not (found := children(process.pid)) and time.monotonic() < until:
            time.sleep(0.01)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    with pytest.raises(ProcessLookupError):
        os.killpg(found[0], 0)


#: `adaptkit ui` that receives the signal while it starts its server, before it stores the process
ENDED_IN_BETWEEN = """
import os, signal, subprocess, sys

from adaptkit.cli import main

execute = subprocess.Popen._execute_child


def execute_child(self, *arguments, **named):
    execute(self, *arguments, **named)
    if "ui" in arguments[0]:
        print(self.pid, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


subprocess.Popen._execute_child = execute_child
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_stop_while_the_server_starts(tracked: Tracked) -> None:
    arguments = ["ui", "--port", str(free_port()), "--tracking-uri", tracked.uri]
    done = subprocess.run([sys.executable, "-c", ENDED_IN_BETWEEN, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (143, "Interrupted.")
    with pytest.raises(ProcessLookupError):
        os.killpg(int(done.stdout), 0)


@pytest.mark.slow
@pytest.mark.parametrize("is_up", [True, False], ids=["up", "starting"])
def test_kill_leaves_no_process(tracked: Tracked, is_up: bool) -> None:
    with started("--port", str(free_port()), "--tracking-uri", tracked.uri) as process:
        if is_up:
            first_line(process)
        until = time.monotonic() + 30
        while not (found := children(process.pid)) and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
        process.communicate(timeout=60)
    until = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(found[0], 0)
            time.sleep(0.1)


@pytest.mark.slow
def test_missing_default_experiment(store: Path) -> None:
    """Open the list of experiments, on the next free port. Exit with an error when the server stops."""
    with holding(5000), started() as process:
        words, link = first_line(process).rsplit(maxsplit=1)
        assert words == "Look at the experiments:"
        port = int(link.removeprefix("http://127.0.0.1:").partition("/")[0])
        assert link == f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
        assert port > 5000
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
        os.kill(children(process.pid)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "Error: `mlflow ui` stopped with exit code -9"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/health", timeout=5)


@contextmanager
def holding(port: int) -> Iterator[None]:
    """Listen on a port, unless it is in use."""
    try:
        taken = socket.create_server(("127.0.0.1", port))
    except OSError:
        yield
        return
    with taken:
        yield


def experiment_id(port: int, name: str) -> str:
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name"
    return str(requests.get(url, params={"experiment_name": name}, timeout=30).json()["experiment"]["experiment_id"])


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
