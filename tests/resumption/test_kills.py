"""Kill runs at random and at critical moments: after resuming, they equal an undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from support.experiments import TINY
from support.processes import Process, start
from support.reliability import FOLDER, note
from support.resumption import Recorded, ids, recorded, require_as_undisturbed

from adaptkit.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="SIGKILL")]

#: ten for docs/reliability.md
KILLS = 10 if FOLDER in os.environ else 5
#: time limit of a process, in seconds
PATIENCE = 300

PLUGIN = """
import os
import signal

from adaptkit import hookimpl

HOW = os.environ.get("HOW", "")


def die(*given, **named):
    os.kill(os.getpid(), signal.SIGKILL)


def dying_in(owner, name, count, before=lambda *given, **named: None, counted=lambda *given: True):
    plain, calls = getattr(owner, name), []

    def call(*given, **named):
        if not counted(*given):
            return plain(*given, **named)
        calls.append(1)
        if len(calls) == count:
            before(*given, **named)
            die()
        return plain(*given, **named)

    setattr(owner, name, call)


def half(tensors, path, metadata):
    from safetensors.torch import save

    content = save(tensors, metadata)
    with open(path, "wb") as stream:
        stream.write(content[: len(content) // 2])


def one_file(client, run_id, folder, *rest):
    client.log_artifact(run_id, os.path.join(folder, sorted(os.listdir(folder))[0]), *rest)


def is_checkpoint(part, path):
    return str(path).endswith("checkpoint.safetensors")


@hookimpl(tryfirst=True)
def adaptkit_run_started(run, model):
    kind, _, what = HOW.partition(": ")
    if run.kind != kind:
        return
    import mlflow
    import safetensors.torch

    if what == "the record is begun":
        dying_in(mlflow.MlflowClient, "log_batch", 1)
    elif what == "a checkpoint is half written":
        dying_in(safetensors.torch, "save_file", 2, half)
    elif what == "a checkpoint gets its name":
        dying_in(os, "replace", 2, counted=is_checkpoint)
    elif what == "the adapter is stored":
        dying_in(mlflow.MlflowClient, "log_artifacts", 1, one_file)
    elif what == "artifacts are written":
        dying_in(mlflow.MlflowClient, "log_artifacts", 1 if kind == "base" else 2, one_file)
    elif what == "the run is ended":
        dying_in(mlflow.MlflowClient, "set_terminated", 1)


@hookimpl
def adaptkit_epoch_ended(run, epoch):
    if HOW == f"{run.kind}: epoch {epoch.number} is kept, not logged":
        die()


@hookimpl
def adaptkit_run_ended(run, result, model):
    if HOW == f"{run.kind}: it is judged":
        die()
"""

WORST = [
    "base: epoch 2 is kept, not logged",
    "base: the record is begun",
    "base: artifacts are written",
    "base: the run is ended",
    "adaptation: the record is begun",
    "adaptation: epoch 2 is kept, not logged",
    "adaptation: a checkpoint is half written",
    "adaptation: a checkpoint gets its name",
    "adaptation: it is judged",
    "adaptation: the adapter is stored",
    "adaptation: artifacts are written",
    "adaptation: the run is ended",
]


@dataclass(frozen=True)
class Place:
    """A folder with its own store, cache and state, in which a command runs."""

    folder: Path
    plugin: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def runs(self) -> list[Path]:
        return list((self.folder / "state" / "runs").glob("*/record.json"))

    def start(self, *arguments: str, how: str = "") -> Process:
        environment = {
            **os.environ, "HOW": how, "ADAPTKIT_CACHE": str(self.folder / "cache"),
            "ADAPTKIT_STATE": str(self.folder / "state"),
        }  # fmt: skip
        return start(*arguments, folder=self.folder, environment=environment)

    def command(self, strategies: list[str]) -> list[str]:
        named = [word for strategy in strategies for word in ("-s", strategy)]
        return ["run", *named, *TINY, "--epochs", "3", "--plugin", str(self.plugin), "-q"]

    def run(self, strategies: list[str], how: str = "") -> Process:
        return self.start(*self.command(strategies), how=how)

    def finish(self, strategies: list[str]) -> None:
        """Resume all interrupted runs, then run the command again if it had not created its runs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("ADAPTKIT_CACHE", str(self.folder / "cache"))
            patch.setenv("ADAPTKIT_STATE", str(self.folder / "state"))
            result = CliRunner().invoke(main, ["resume", "--all", "-q"])
            assert result.exit_code == 0, result.output
            if len(ids(self.uri, kind="adaptation")) < len(strategies):
                result = CliRunner().invoke(main, self.command(strategies))
                assert result.exit_code == 0, result.output
        assert self.runs == []

    def recorded(self) -> dict[str, Recorded]:
        found = {**ids(self.uri, kind="base"), **ids(self.uri, kind="adaptation")}
        return {name: recorded(self.uri, run_id) for name, run_id in found.items()}


@dataclass(frozen=True)
class Undisturbed:
    """A place where a command ran without a kill, its records, and the duration since the first record."""

    place: Place
    strategies: list[str]
    records: dict[str, Recorded]
    seconds: float


def place(folder: Path, empty_store: Path, plugin: Path) -> Place:
    folder.mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    return Place(folder, plugin)


def wait_for(process: Process, there: Path) -> float:
    """Wait until a run has a recovery record; return the time."""
    while process.poll() is None:
        if any(there.glob("*/record.json")):
            return time.monotonic()
        time.sleep(0.005)
    raise AssertionError(process.communicate())


@pytest.fixture(scope="module", params=[["full", "head"]], ids=["full and head"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    plugin = folder / "dying.py"
    plugin.write_text(PLUGIN)
    made = place(folder / "run", empty_store, plugin)
    process = made.run(request.param)
    began = wait_for(process, made.folder / "state" / "runs")
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return Undisturbed(made, request.param, made.recorded(), time.monotonic() - began)


def require_same(found: dict[str, Recorded], expected: dict[str, Recorded]) -> None:
    assert found.keys() == expected.keys()
    for name, run in found.items():
        require_as_undisturbed(run, expected[name])


@pytest.mark.parametrize("how", WORST)
def test_kill_at_critical_moment(undisturbed: Undisturbed, tmp_path: Path, empty_store: Path, how: str) -> None:
    made = place(tmp_path / "run", empty_store, undisturbed.place.plugin)
    process = made.run(undisturbed.strategies, how)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL, errors
    # The run and its parent; after a kill while its events were sent, it may have ended.
    is_sent = how.endswith(("is stored", "are written", "is ended"))
    assert len(made.runs) in ((1, 2) if is_sent else (2,))
    made.finish(undisturbed.strategies)
    require_same(made.recorded(), undisturbed.records)
    require_group(made)
    kind = next((kind for kind in ("checkpoint", "artifacts", "adapter is") if kind in how), how.partition(":")[0])
    note(f"kill-{'artifacts' if kind == 'adapter is' else kind}")


def test_kill_at_random_moment(undisturbed: Undisturbed, tmp_path: Path, empty_store: Path) -> None:
    """Each kill happens between the first recovery record and shortly before the end of the command."""
    draws, injected = random.Random(0), 0
    for number in range(KILLS):
        share = draws.random()
        while True:
            made = place(tmp_path / f"{number} {share}", empty_store, undisturbed.place.plugin)
            process = made.run(undisturbed.strategies)
            wait_for(process, made.folder / "state" / "runs")
            time.sleep(share * undisturbed.seconds)
            process.kill()
            process.communicate(timeout=PATIENCE)
            if process.returncode == -signal.SIGKILL:
                break
            share *= 0.8  # the command had finished before the kill
        injected += 1
        made.finish(undisturbed.strategies)
        require_same(made.recorded(), undisturbed.records)
        require_group(made)
        shutil.rmtree(made.folder)
    note("kill-random", injected)


def test_repeated_kills(undisturbed: Undisturbed, tmp_path: Path, empty_store: Path) -> None:
    draws, injected = random.Random(1), 0
    made = place(tmp_path / "run", empty_store, undisturbed.place.plugin)
    process = made.run(undisturbed.strategies, WORST[0])
    process.communicate(timeout=PATIENCE)
    for _ in range(5):
        process = made.start("resume", "--all", "-q")
        time.sleep(draws.uniform(0.3, 1) * (undisturbed.seconds + 3))
        process.kill()
        process.communicate(timeout=PATIENCE)
        injected += process.returncode == -signal.SIGKILL
        if not made.runs:
            break
    assert injected >= 1
    made.finish(undisturbed.strategies)
    require_same(made.recorded(), undisturbed.records)
    note("kill-resume", injected)


def require_group(made: Place) -> None:
    """Check that the command has one parent run, which ended with a comparison."""
    client = MlflowClient(made.uri)
    found = [client.get_run(run_id) for run_id in ids(made.uri, kind="comparison").values()]
    finished = [run for run in found if run.info.status == "FINISHED"]
    assert len(finished) == 1
    children = {
        client.get_run(run_id).data.tags["mlflow.parentRunId"] for run_id in ids(made.uri, kind="adaptation").values()
    }
    assert children == {finished[0].info.run_id}
    assert {key.partition("/")[0] for key in finished[0].data.metrics} >= {"mean"}
