"""Run a sweep on a Ray cluster of two nodes, which are processes on this machine, and kill one of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from mlflow import MlflowClient
from mlflow.entities import Run

TWELVE = ("-s", "lora", "-s", "head", "--grid", "lora.rank=2,4", "--grid", "lr=0.001,0.01", "--seeds", "0-1", *TINY)
#: Bytes of memory for objects: Ray's default would take most of a small machine.
MEMORY = str(200 << 20)


def ray(*arguments: str) -> subprocess.Popen[str]:
    """Start a node of a cluster, in the foreground, as the leader of a session."""
    command = [str(Path(sys.executable).parent / "ray"), "start", *arguments, "--block", "--disable-usage-stats"]
    command += ["--object-store-memory", MEMORY]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a node of a cluster with all processes of its session."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,sid="], capture_output=True, text=True).stdout
    for pid, session in (map(int, line.split()) for line in listed.splitlines()):
        if session == process.pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.wait()


ASK = """
import sys
import ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="critical")
print(sum(node["Alive"] for node in ray.nodes()))
"""


def wait_for_machines(address: str, count: int) -> None:
    """Wait until a cluster has this number of machines; the first start of Ray takes a minute."""
    until = time.monotonic() + 240
    while True:
        asked = subprocess.run([sys.executable, "-c", ASK, address], capture_output=True, text=True)
        if asked.stdout.split()[-1:] == [str(count)]:
            return
        assert time.monotonic() < until, asked.stderr
        time.sleep(0.5)


@pytest.fixture
def cluster(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a head and a second node, with one core each; return the address and the second node."""
    # The developer may have a token, which `ray start` would require.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = ray("--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false", "--node-ip-address=127.0.0.1")
    second = None
    try:
        wait_for_machines(address, 1)
        second = ray(f"--address={address}", "--num-cpus=1", "--node-ip-address=127.0.0.1")
        wait_for_machines(address, 2)
        yield address, second
    finally:
        for process in filter(None, (second, head)):
            kill(process)


def sweep(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "adaptkit", "sweep", *TWELVE, *arguments]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished() -> list[Run]:
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    experiment = client.get_experiment_by_name("adaptkit")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`adaptkit.kind` = 'adaptation'", max_results=1000)
    return [run for run in runs if run.info.status == "FINISHED"]


def numbers(runs: list[Run]) -> dict[str, dict[str, float]]:
    return {
        run.data.tags["adaptkit.trial_key"]: {
            key: value for key, value in run.data.metrics.items() if not key.startswith(("time/", "memory/"))
        }
        for run in runs
    }


@pytest.mark.slow
def test_lost_machine(cluster: tuple[str, subprocess.Popen[str]]) -> None:
    address, second = cluster
    process = sweep("--engine", "ray", "--engine-option", f"address={address}", "--json")
    assert process.stderr is not None
    for line in process.stderr:
        if re.match(r"\[2/12\]", line):
            break
    kill(second)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    outcome: dict[str, Any] = json.loads(output)
    assert [trial["status"] for trial in outcome["trials"]] == ["finished"] * 12
    runs = finished()
    assert len(runs) == 12 and len(numbers(runs)) == 12
    # The same trials, run without Ray in another experiment, have the same metrics.
    again = sweep("--experiment", "local", "--json", "-q")
    output, errors = again.communicate(timeout=400)
    assert (again.returncode, errors) == (0, "")
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    local = [client.get_run(trial["run_id"]) for trial in json.loads(output)["trials"]]
    assert numbers(local) == numbers(runs)
