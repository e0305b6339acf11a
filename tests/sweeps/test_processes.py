"""Sweeps as processes: several jobs, Ctrl-C, kills at random times, dying workers, and concurrent starts."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run
from support.experiments import TINY
from support.processes import Process, start
from support.reliability import FOLDER, note

from adaptkit.cli import main

pytestmark = pytest.mark.slow

#: ten for docs/reliability.md
KILLS = 10 if FOLDER in os.environ else 3
SIX = ("-s", "lora", "-s", "head", "--grid", "lora.rank=2,4", "--grid", "lr=0.001,0.01", *TINY)
#: kills its process for one value, as the kernel does when memory runs out
DEADLY = '''
import os
import signal
from dataclasses import dataclass
from typing import ClassVar

from adaptkit import hookimpl


@dataclass
class Deadly:
    """Train the head, or die."""

    name: ClassVar[str] = "deadly"
    value: int = 0

    def adapt(self, model):
        return model.head.parameters()

    def step_ended(self, model, step):
        if self.value == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@hookimpl
def adaptkit_strategies():
    return [Deadly]
'''


def finish(*arguments: str) -> dict[str, Any]:
    """Run a sweep from this process, which need not import everything first; its workers are processes."""
    result = CliRunner().invoke(main, ["sweep", *arguments, "--json", "-q"])
    assert (result.exit_code, result.stderr) == (0, ""), result.exception
    outcome: dict[str, Any] = json.loads(result.stdout)
    return outcome


def tracked(kind: str = "adaptation") -> list[Run]:
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    experiment = client.get_experiment_by_name("adaptkit")
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], f"tags.`adaptkit.kind` = '{kind}'", max_results=1000))


def results(outcome: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the metrics of the run of each trial, except times and memory."""
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    metrics = {}
    for trial in outcome["trials"]:
        run = client.get_run(trial["run_id"])
        assert run.info.status == "FINISHED"
        name = f"{trial['label']} seed={trial['seed']}"
        metrics[name] = {k: v for k, v in run.data.metrics.items() if not k.startswith(("time/", "memory/"))}
    return metrics


def children_of(process: Process) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def require_gone(processes: list[int]) -> None:
    until = time.monotonic() + 10
    while (left := [pid for pid in processes if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def wait_for(process: Process, pattern: str) -> Iterator[str]:
    assert process.stderr is not None
    for line in process.stderr:
        yield line
        if re.search(pattern, line):
            return
    raise AssertionError(f"the process ended without {pattern!r}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Return the metrics of an undisturbed sweep with one job in a separate folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ADAPTKIT_CACHE", str(folder / "cache"))
        return results(finish(*SIX))


def test_two_jobs_give_the_results_of_one(store: Path, undisturbed: dict[str, dict[str, float]]) -> None:
    outcome = finish(*SIX, "--jobs", "2")
    assert {trial["status"] for trial in outcome["trials"]} == {"finished"}
    assert results(outcome) == undisturbed
    runs = tracked()
    assert len(runs) == 6 and {run.data.tags["adaptkit.timing"] for run in runs} == {"shared"}
    assert len({run.data.tags["adaptkit.pid"] for run in runs}) == 2


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_then_continue(store: Path, undisturbed: dict[str, dict[str, float]], jobs: str) -> None:
    process = start("sweep", *SIX, "--jobs", jobs)
    lines = list(wait_for(process, r"^\[2/6\]"))
    workers = children_of(process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "Interrupted.")
    assert time.monotonic() - began < 30 and not [line for line in (*lines, errors) if "Traceback" in line]
    require_gone(workers)
    (parent,) = tracked("sweep")
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in tracked()} <= {"FINISHED", "KILLED"}
    outcome = finish(*SIX)  # whatever the number of jobs before
    assert [trial["status"] for trial in outcome["trials"]].count("found") >= 2
    assert results(outcome) == undisturbed
    (parent,) = tracked("sweep")
    assert parent.info.status == "FINISHED"


def test_continue_after_kills(store: Path, undisturbed: dict[str, dict[str, float]]) -> None:
    chance = random.Random(7)
    killed = 0
    for _ in range(KILLS):
        process = start("sweep", *SIX, "--jobs", "2")
        # At any time from the start of the command to the last trials.
        try:
            process.wait(chance.uniform(0.5, 8))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.communicate()
    outcome = finish(*SIX)
    assert results(outcome) == undisturbed
    finished = [run.data.tags["adaptkit.trial_key"] for run in tracked() if run.info.status == "FINISHED"]
    assert (len(finished), len(set(finished))) == (6, 6)
    assert {run.info.status for run in tracked()} <= {"FINISHED", "KILLED"}
    assert killed >= KILLS // 2
    note("kill-sweep", killed)


def test_workers_die_with_the_main_process(store: Path) -> None:
    process = start("sweep", *SIX, "--jobs", "2")
    list(wait_for(process, r"^\[1/6\]"))
    workers = children_of(process)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    require_gone(workers)


def test_dead_worker_fails_one_trial(store: Path, own_folder: Path) -> None:
    (own_folder / "deadly.py").write_text(DEADLY)
    command = ("-s", "deadly", "--plugin", "deadly.py", "--grid", "value=0,1,2,3", *TINY, "--jobs", "2")
    outcome = finish(*command)
    states = {trial["label"]: (trial["status"], trial["error"]) for trial in outcome["trials"]}
    reason = "its process died: SIGKILL; memory may be too small; try a smaller --batch-size or fewer --jobs"
    assert states == {f"deadly value={n}": ("finished", None) for n in (0, 2, 3)} | {
        "deadly value=1": ("failed", reason)
    }
    dead = [run for run in tracked() if run.info.status != "FINISHED"]
    assert [(run.info.status, run.data.tags["adaptkit.error"]) for run in dead] == [("FAILED", reason)]
    again = {trial["label"]: trial for trial in finish(*command)["trials"]}["deadly value=1"]
    assert (again["status"], again["error"], again["run_id"]) == ("failed", reason, dead[0].info.run_id)
    assert len(tracked()) == 4
    note("worker-killed")


def test_concurrent_start_of_the_same_sweep(store: Path) -> None:
    process = start("sweep", *SIX)
    list(wait_for(process, r"^\[1/6\]"))
    second = start("sweep", *SIX)
    output, errors = second.communicate(timeout=60)
    assert (second.returncode, output) == (2, "")
    assert errors == "Error: the same sweep is running in another process; wait for it, or stop it\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
