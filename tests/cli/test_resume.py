"""`adaptkit resume`: what goes on is what nobody disturbed, in its own record; what cannot go on says why."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import BITFIT, TINY, TINY_SETTINGS
from support.photos import make_photos
from support.plain_model import Plain
from support.reliability import note
from support.resumption import ids, recorded, require_as_undisturbed

import adaptkit
from adaptkit.errors import BadInput, Interrupted
from adaptkit.experiment.recovery import claim, damaged_records, folder_of, records
from adaptkit.tracking.journal import left_journals
from adaptkit.tracking.tracker import Tracker

Cli = Callable[..., Result]

SETTINGS: dict[str, Any] = {**TINY_SETTINGS, "epochs": 3}


@pytest.fixture
def uri(store: Path) -> str:
    return f"sqlite:///{store}"


class Stop:
    """Interrupt the process once, when the tracker is told something: before it listens, or after."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()

    def at(self, hook: str, *, after: bool, name: str = "", epoch: int = 0, error: BaseException | None = None) -> None:
        """Interrupt in a hook of the run whose name begins so."""
        original, left = getattr(Tracker, hook), [error or Interrupted(15)]

        @functools.wraps(original)
        def stopping(tracker: Any, **given: Any) -> None:
            mine = (
                left and given["run"].name.startswith(name) and epoch in (0, getattr(given.get("epoch"), "number", 0))
            )
            if mine and not after:
                raise left.pop()
            original(tracker, **given)
            if mine:
                raise left.pop()

        # pluggy asks for a hook's parameters.
        wanted = {
            "adaptkit_run_started": lambda self, run, model: stopping(self, run=run, model=model),
            "adaptkit_epoch_ended": lambda self, run, epoch: stopping(self, run=run, epoch=epoch),
            "adaptkit_run_ended": lambda self, run, result, model: stopping(self, run=run, result=result, model=model),
        }[hook]
        self._patch.setattr(Tracker, hook, functools.wraps(original, assigned=())(wanted))

    def undo(self) -> None:
        """Interrupt no more."""
        self._patch.undo()


@pytest.fixture
def stop() -> Iterator[Stop]:
    made = Stop()
    yield made
    made.undo()


def interrupted(strategy: str | list[str] = "lora", settings: Mapping[str, Any] = SETTINGS, **more: Any) -> str:
    """Run until the interruption; return the note that says how to go on."""
    with pytest.raises(KeyboardInterrupt) as caught:
        adaptkit.run(strategy, settings=settings, **more)
    (note,) = caught.value.__notes__
    command, _, run_id = note.rpartition(" ")
    assert command == "To resume:  adaptkit resume"
    return run_id


def undisturbed(strategy: str = "lora", settings: Mapping[str, Any] = SETTINGS, **more: Any) -> str:
    outcome = adaptkit.run(strategy, settings=settings, experiment="undisturbed", **more)
    assert outcome.runs[0].run_id is not None
    return outcome.runs[0].run_id


#: kills its own process after the first epoch of an adaptation run, once the store has it
KILLING = """
import os, signal, time

from adaptkit import hookimpl


@hookimpl(trylast=True)
def adaptkit_epoch_ended(run, epoch):
    if run.kind == "adaptation" and os.environ.get("KILLED"):
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
"""

MOMENTS = {
    "before its first epoch": ("adaptkit_run_started", True, 0),
    "epoch kept, not logged": ("adaptkit_epoch_ended", False, 2),
    "epoch logged": ("adaptkit_epoch_ended", True, 1),
    "last epoch logged": ("adaptkit_epoch_ended", True, 3),
    "before its end is logged": ("adaptkit_run_ended", False, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_goes_on_from_any_moment(uri: str, stop: Stop, moment: str) -> None:
    hook, after, epoch = MOMENTS[moment]
    expected = recorded(uri, undisturbed())
    stop.at(hook, after=after, name="lora", epoch=epoch)
    run_id = interrupted()
    assert MlflowClient(uri).get_run(run_id).info.status == "KILLED"
    (record,) = records()
    assert record.name == "lora seed=0"
    outcome = adaptkit.resume(run_id)
    assert [(run.run_id, run.status) for run in outcome.runs] == [(run_id, "finished")]
    found = recorded(uri, run_id)
    require_as_undisturbed(found, expected)
    assert MlflowClient(uri).get_run(run_id).data.tags["adaptkit.resumed"] == "1"
    assert list(records()) == [] and not folder_of(record.local_id).exists()


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "full": ("full", {}, {}),
    "head": ("head", {}, {}),
    "bitfit": ("bitfit", {}, {"plugins": [BITFIT]}),
    "sgd, augmented": ("lora", {"optimizer": "sgd", "augment": "flip=0.5,crop=0.7"}, {}),
    "severity": ("head", {"severity": "0.5,1"}, {}),
    "whole": ("lora", {}, {"feature_cache": False}),
    "weights that decay": ("full", {"optimizer": "adamw", "weight_decay": 0.1}, {}),
    "BatchNorm, dropout": ("full", {}, {"backbone": Plain(10)}),
    "BatchNorm adapts": ("head", {"bn": "adapt"}, {"backbone": Plain(10)}),
    "no shift": ("lora", {"target": "digits"}, {}),
    "new head": ("lora", {"dataset": "none", "target": "digits"}, {}),
    "computed twice": ("full", {"checkpointing": True}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_whatever_is_trained_goes_on(uri: str, stop: Stop, case: str) -> None:
    strategy, settings, more = CASES[case]
    settings = SETTINGS | settings
    expected = recorded(uri, undisturbed(strategy, settings, **more))
    stop.at("adaptkit_epoch_ended", after=False, name=strategy, epoch=2)
    run_id = interrupted(strategy, settings, **more)
    given = {"backbone": Plain(10)} if "backbone" in more else {}
    adaptkit.resume(run_id, **given)
    require_as_undisturbed(recorded(uri, run_id), expected)


@pytest.mark.parametrize("mode", ["train", "probe"])
def test_a_base_run_goes_on_and_the_same_command_from_there(
    uri: str, stop: Stop, monkeypatch: pytest.MonkeyPatch, own_folder: Path, cli: Cli, mode: str
) -> None:
    settings = SETTINGS | {"base.epochs": 3, "base.mode": mode}
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "one"))
    run = undisturbed("head", settings)
    (base_id,) = ids(uri, kind="base").values()
    expected = recorded(uri, base_id)
    MlflowClient(uri).delete_run(base_id)
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "other"))
    stop.at("adaptkit_epoch_ended", after=False, name="base", epoch=2)
    run_id = interrupted("head", settings)
    result = cli("resume", run_id)
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0] == "base small_cnn mnist5k: resumed after epoch 2"
    assert [line.split("]")[0] for line in lines if "epoch 2/" in line or "epoch 3/" in line] == [
        "[base small_cnn mnist5k"
    ] * 2
    assert any(line.startswith("The base is there: typed again, the same command goes on from it: ") for line in lines)
    require_as_undisturbed(recorded(uri, run_id), expected)
    outcome = adaptkit.run("head", settings=settings)
    assert outcome.base.cached and outcome.base.run_id == run_id
    again = recorded(uri, str(outcome.runs[0].run_id))
    require_as_undisturbed(again, recorded(uri, run))


STEPPING = """
from adaptkit import hookimpl

class Stepping:
    name = "stepping"

    def adapt(self, model):
        self.seen = 0
        return list(model.head.parameters())

    def step_ended(self, model, step):
        self.seen += 1
        if self.seen % 3 == 0:
            model.head.bias.data.mul_(0.9)

@hookimpl
def adaptkit_strategies():
    return [Stepping]
"""


def test_a_strategy_that_acts_between_steps_is_trained_again_in_the_same_run(
    uri: str, stop: Stop, own_folder: Path, cli: Cli
) -> None:
    (own_folder / "stepping.py").write_text(STEPPING)
    expected = recorded(uri, undisturbed("stepping", plugins=["stepping.py"]))
    stop.at("adaptkit_epoch_ended", after=True, name="stepping", epoch=2)
    run_id = interrupted("stepping", plugins=["stepping.py"])
    (record,) = records()
    assert not (folder_of(record.local_id) / "checkpoint.safetensors").exists()
    result = cli("resume", run_id)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == (
        "stepping seed=0: trained again from the first epoch: its strategy has a step_ended hook"
    )
    require_as_undisturbed(recorded(uri, run_id), expected)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut short", "altered", "gone", "another run's"])
def test_a_damaged_checkpoint_is_not_used_and_the_run_is_trained_again(
    uri: str, stop: Stop, cli: Cli, damage: str
) -> None:
    expected = recorded(uri, undisturbed("head"))
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=2)
    run_id = interrupted("head")
    (record,) = records()
    path = folder_of(record.local_id) / "checkpoint.safetensors"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "another run's":
        path.write_bytes(content.replace(record.local_id.encode(), b"0" * 32))
    else:
        path.write_bytes(content[:-100] if damage == "cut short" else content[:-1] + bytes([content[-1] ^ 1]))
    result = cli("resume", run_id)
    why = "none of its epochs had ended" if damage == "gone" else "its checkpoint cannot be used ("
    assert result.stderr.startswith(f"head seed=0: trained again from the first epoch: {why}")
    require_as_undisturbed(recorded(uri, run_id), expected)
    note("damaged-checkpoint")


def test_it_may_be_killed_again_and_again(uri: str, stop: Stop) -> None:
    expected = recorded(uri, undisturbed("full"))
    stop.at("adaptkit_epoch_ended", after=False, name="full", epoch=1)
    run_id = interrupted("full")
    for hook, epoch in (("adaptkit_run_started", 0), ("adaptkit_epoch_ended", 3), ("adaptkit_run_ended", 0)):
        stop.undo()
        stop.at(hook, after=False, name="full", epoch=epoch)
        with pytest.raises(KeyboardInterrupt) as caught:
            adaptkit.resume(run_id)
        assert caught.value.__notes__ == [f"To resume:  adaptkit resume {run_id}"]
    adaptkit.resume(run_id)
    require_as_undisturbed(recorded(uri, run_id), expected)
    assert MlflowClient(uri).get_run(run_id).data.tags["adaptkit.resumed"] == "4"


def test_a_group_goes_on_with_all_that_its_command_would_have_done(uri: str, stop: Stop, cli: Cli) -> None:
    """Runs that were finished are not run again, one goes on, those never begun are run, and all are compared."""
    arguments = {"seeds": "0-1", "settings": SETTINGS, "options": {"lora.rank": 2, "head.lr": 1e-3}}
    expected = adaptkit.run(["lora", "head"], experiment="undisturbed", **arguments)  # type: ignore[arg-type]
    stop.at("adaptkit_epoch_ended", after=False, name="head seed=0", epoch=2)
    group = interrupted(["lora", "head"], **arguments)
    client = MlflowClient(uri)
    assert client.get_run(group).info.status == "KILLED"
    before = client.get_run(group).data.params
    result = cli("resume", group, "--json")
    assert result.exit_code == 0, result.stderr
    outcome = json.loads(result.stdout)
    assert [(run["label"], run["seed"], run["status"]) for run in outcome["runs"]] == [
        *(("lora rank=2", 0, "finished"), ("head", 0, "finished")),
        *(("lora rank=2", 1, "finished"), ("head", 1, "finished")),
    ]
    trained = {line.split("]")[0][1:] for line in result.stderr.splitlines() if line.startswith("[")}
    assert trained == {"head seed=0", "lora rank=2 seed=1", "head seed=1"}
    for run, was in zip(outcome["runs"], expected.runs, strict=True):
        assert client.get_run(run["run_id"]).data.tags["mlflow.parentRunId"] == group
        require_as_undisturbed(recorded(uri, run["run_id"]), recorded(uri, str(was.run_id)))
    ended = client.get_run(group)
    assert (ended.info.status, ended.data.params) == ("FINISHED", before)
    assert ended.data.metrics == client.get_run(str(expected.parent_run_id)).data.metrics
    assert expected.comparison is not None
    assert outcome["comparison"]["sentences"] == list(expected.comparison.sentences)
    assert list(records()) == []


def test_a_group_that_was_killed_in_its_base_goes_on_with_that(
    uri: str, stop: Stop, cli: Cli, monkeypatch: pytest.MonkeyPatch, own_folder: Path
) -> None:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    stop.at("adaptkit_epoch_ended", after=False, name="base", epoch=1)
    group = interrupted(["full", "head"])
    (base_id,) = ids(uri, kind="base").values()
    result = cli("resume", group)
    assert result.exit_code == 0, result.stderr
    assert "base small_cnn mnist5k: resumed after epoch 1" in result.stderr
    assert recorded(uri, base_id).status == recorded(uri, group).status == "FINISHED"
    assert ids(uri, kind="base") == {"base small_cnn mnist5k": base_id}
    assert list(records()) == []


def test_one_run_of_a_group_goes_on_alone_and_says_how_the_others_do(uri: str, stop: Stop, cli: Cli) -> None:
    stop.at("adaptkit_epoch_ended", after=False, name="head", epoch=2)
    group = interrupted(["full", "head"])
    run_id = ids(uri, kind="adaptation")["head seed=0"]
    result = cli("resume", run_id)
    assert f"It is one run of several; go on with the others:  adaptkit resume {group}" in result.stderr.splitlines()
    assert MlflowClient(uri).get_run(run_id).data.tags["mlflow.parentRunId"] == group
    assert cli("resume", group, "-q").exit_code == 0
    assert recorded(uri, group).status == "FINISHED"


def refused(cli: Cli, *arguments: str) -> str:
    result = cli("resume", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return str(line)


def test_a_run_that_has_ended_is_refused(uri: str, cli: Cli) -> None:
    outcome = adaptkit.run("head", settings=SETTINGS)
    run_id = str(outcome.runs[0].run_id)
    assert refused(cli, run_id) == f"Error: run {run_id} (head seed=0) is finished: there is nothing to resume"
    wild = adaptkit.run("full", settings={**SETTINGS, "optimizer": "sgd"}, lr=1e30)
    failed = str(wild.runs[0].run_id)
    assert refused(cli, failed).startswith(
        f"Error: run {failed} (full seed=0) failed: the loss is not finite in epoch 1"
    )
    MlflowClient(uri).delete_run(failed)
    assert refused(cli, failed).startswith(f"Error: run {failed} (full seed=0) was deleted; `mlflow runs restore")
    assert list(records()) == []


def test_what_is_no_run_of_a_store_is_refused(uri: str, cli: Cli, own_folder: Path, stop: Stop) -> None:
    assert refused(cli, "nothing") == f"Error: there is no run 'nothing' in {own_folder}/mlflow.db"
    assert refused(cli) == "Error: name runs by their ids, or all that stopped with --all"
    assert refused(cli, "x", "--all") == "Error: name runs by their ids, or all that stopped with --all, not both"
    foreign = MlflowClient(uri).create_run("0").info.run_id
    assert refused(cli, foreign).endswith(") is not a run of adaptkit")
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head")
    (own_folder / "elsewhere").mkdir()
    shutil.copy(own_folder / "mlflow.db", own_folder / "elsewhere")
    MlflowClient(f"sqlite:///{own_folder}/elsewhere/mlflow.db").delete_run(run_id)
    hint = f"; what is kept here is of runs in {uri}: name it with --tracking-uri"
    assert refused(cli, "x", "--tracking-uri", f"sqlite:///{own_folder}/elsewhere/mlflow.db").endswith(hint)
    none = own_folder / "elsewhere" / "none.db"
    for arguments in ([run_id], ["--all"]):
        line = refused(cli, *arguments, "--tracking-uri", f"sqlite:///{none}")
        assert line.startswith(f"Error: there is no tracking store at {none}: ") and line.endswith(hint)


def killed(uri: str, stop: Stop, **more: Any) -> str:
    """Return the id of a run that was killed as nothing can be seen coming: it is on record as running."""
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head", **more)
    MlflowClient(uri).update_run(run_id, status="RUNNING")
    return run_id


def test_a_run_that_lives_is_refused(uri: str, cli: Cli, stop: Stop) -> None:
    run_id, client = killed(uri, stop), MlflowClient(uri)
    assert refused(cli, run_id) == (
        f"Error: run {run_id} (head seed=0) is being made by process {os.getpid()} on this machine"
    )
    # On a machine that shares the folder its process cannot be seen, but what it holds can.
    client.set_tag(run_id, "adaptkit.host", "elsewhere")
    (record,) = records()
    held = claim(record.local_id)
    assert held is not None
    assert refused(cli, run_id) == f"Error: run {run_id} (head seed=0) is being made or resumed by another process"
    result = cli("resume", "--all")
    assert (result.exit_code, result.stdout) == (
        0, "Nothing to resume: no run of this machine that this store knows of has stopped.\n"
    )  # fmt: skip
    held.release()
    assert cli("resume", run_id, "-q").exit_code == 0


def test_a_run_of_which_nothing_is_kept_here_is_refused(uri: str, cli: Cli, stop: Stop) -> None:
    run_id, client = killed(uri, stop), MlflowClient(uri)
    (record,) = records()
    client.set_tag(run_id, "adaptkit.pid", "0")
    client.set_terminated(run_id, "KILLED")
    shutil.move(folder_of(record.local_id), "away")
    assert refused(cli, run_id).endswith("cannot be resumed: nothing is kept of it on this machine; run it anew")
    client.set_tag(run_id, "adaptkit.host", "elsewhere")
    assert refused(cli, run_id).endswith("it was begun on elsewhere, and what is kept of it is there")


DAMAGES = {
    "cut short": lambda text: text[: len(text) // 2],
    "emptied": lambda text: "",
    "a field gone": lambda text: text.replace('"store"', '"stored"'),
    "a field of another type": lambda text: re.sub(r'"started": [\d.]+', '"started": "now"', text),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_of_which_what_is_kept_is_damaged_is_told(uri: str, cli: Cli, stop: Stop, damage: str) -> None:
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head")
    (record,) = records()
    folder = folder_of(record.local_id)
    text = (folder / "record.json").read_text()
    (folder / "record.json").write_text(DAMAGES[damage](text))
    assert refused(cli, run_id) == (
        f"Error: run {run_id} (head seed=0) cannot be resumed: what is kept of it in {folder} is damaged; "
        "remove that folder and run it anew"
    )
    told = f"what is kept of a run in {folder} is damaged: it cannot be resumed; remove the folder\n"
    result = cli("resume", "--all")
    assert (result.exit_code, result.stderr) == (0, told)
    assert result.stdout.startswith("Nothing to resume: ")
    held = claim(record.local_id)  # whoever holds it may be writing
    assert held is not None and damaged_records() == []
    held.release()
    assert damaged_records() == [folder]
    (folder / "record.json").write_text(text)
    assert damaged_records() == []
    assert cli("resume", "--all", "-q").exit_code == 0


def test_no_run_goes_on_with_other_data(uri: str, cli: Cli, stop: Stop, own_folder: Path) -> None:
    make_photos(own_folder / "photos", per_class=20, size=24)
    settings = {"dataset": "folder:photos", "image_size": 16, "epochs": 2, "base.epochs": 1, "shots": 3}
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head", settings)
    one, other = sorted((own_folder / "photos").rglob("*.jpg"))[:2]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    result = cli("resume", run_id)
    title = f"Error: run {run_id} (head seed=0) cannot go on:"
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        [
            f"{title} its images are no longer what they were, and no run goes on with others",
            f"{title} its base would be another one: the backbone, its training or its data changed",
        ],
    )
    one.write_bytes(kept)
    assert cli("resume", run_id, "-q").exit_code == 0


def test_a_plugin_that_changed_stops_a_run_until_it_is_put_back(
    uri: str, cli: Cli, stop: Stop, own_folder: Path
) -> None:
    path = own_folder / "stepping.py"
    path.write_text(STEPPING)
    stop.at("adaptkit_epoch_ended", after=True, name="stepping", epoch=1)
    run_id = interrupted("stepping", plugins=[path])
    title = f"Error: run {run_id} (stepping seed=0) cannot go on: the plugin {path}"
    path.write_text(STEPPING.replace("0.9", "0.8"))
    assert refused(cli, run_id) == f"{title} was changed since the run began: put it back as it was"
    path.unlink()
    assert refused(cli, run_id) == f"{title} is gone: put it back as it was"
    path.write_text(STEPPING)
    assert cli("resume", run_id, "-q").exit_code == 0


@pytest.mark.slow
def test_a_base_that_is_gone_is_trained_anew_and_must_be_the_same(
    uri: str, cli: Cli, stop: Stop, monkeypatch: pytest.MonkeyPatch, own_folder: Path
) -> None:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    expected = recorded(uri, undisturbed("head"))
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head")
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    bases = [run.info.run_id for run in client.search_runs(experiments, "tags.`adaptkit.kind` = 'base'")]
    shutil.rmtree(own_folder / "cache")
    (record,) = records()
    path = folder_of(record.local_id) / "record.json"
    text = path.read_text()
    path.write_text(text.replace(str(record.base_fingerprint), "f" * 64))
    result = cli("resume", run_id)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "head seed=0: its base is gone from the cache: it is trained anew",
        f"Error: run {run_id} (head seed=0) cannot go on: its base was ffffffffffff, and is "
        f"{str(record.base_fingerprint)[:12]}",
    ]
    shutil.rmtree(own_folder / "cache")
    path.write_text(text)
    assert cli("resume", run_id).exit_code == 0
    require_as_undisturbed(recorded(uri, run_id), expected)
    assert [run.info.run_id for run in client.search_runs(experiments, "tags.`adaptkit.kind` = 'base'")] == bases


@pytest.mark.slow
def test_all_that_stopped_goes_on_and_one_that_cannot_does_not_stop_the_others(
    uri: str, cli: Cli, stop: Stop, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_folder / "stepping.py"
    path.write_text(STEPPING)
    stop.at("adaptkit_epoch_ended", after=True, name="stepping", epoch=1)
    bad = interrupted("stepping", plugins=[path])
    path.unlink()
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    good = interrupted("head")
    result = cli("resume", "--all", "--json", "-q")
    assert result.exit_code == 1
    found = {one["run_id"]: one for one in json.loads(result.stdout)["resumed"]}
    assert set(found) == {good, bad}
    assert found[good]["error"] is None and found[good]["outcome"]["runs"][0]["status"] == "finished"
    assert "is gone: put it back as it was" in found[bad]["error"] and found[bad]["outcome"] is None
    refusal = cli("resume", "--all")
    assert (refusal.exit_code, (refusal.stdout + refusal.stderr).count("is gone: put it back as it was")) == (1, 1)
    path.write_text(STEPPING)
    result = cli("resume", "--all")
    assert result.exit_code == 0
    assert ["stepping", "seed=0", bad, "finished"] in [line.split() for line in result.stdout.splitlines()]
    assert list(records()) == []


def test_a_run_whose_store_was_moved_goes_on_there_and_leaves_no_journal(
    cli: Cli, store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_folder / "killing.py").write_text(KILLING)
    command = [sys.executable, "-m", "adaptkit", "run", "-s", "head", *TINY, "--plugin", "killing.py"]
    killed = subprocess.run(command, capture_output=True, env={**os.environ, "KILLED": "1"})
    assert killed.returncode == -signal.SIGKILL
    moved = own_folder / "moved"
    moved.mkdir()
    for name in ("mlflow.db", "mlruns"):
        shutil.move(own_folder / name, moved)
    monkeypatch.chdir(moved)
    # The store was told all that the journals hold: only the ends of the runs are missing where it was.
    assert (cli("sync").exit_code, cli("sync").stdout) == (0, "Nothing is left to send.\n")
    result = cli("resume", "--all", "-q")
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    assert list(left_journals()) == [] and list(records()) == []


def test_what_is_left_of_a_run_that_has_ended_is_removed(uri: str, cli: Cli, stop: Stop) -> None:
    run_id = killed(uri, stop)
    (record,) = records()
    MlflowClient(uri).set_terminated(run_id, "FINISHED")
    old, new = folder_of("old"), folder_of("new")
    for path in (old, new):
        path.mkdir()
        (path / "checkpoint.safetensors.part").write_bytes(b"half")
    os.utime(old, (1, 1))
    # Of these the store has nothing: its process died before it had told it, or the store did not answer.
    unborn, trained = folder_of("a" * 32), folder_of("b" * 32)
    for path in (unborn, trained):
        path.mkdir()
        text = (folder_of(record.local_id) / "record.json").read_text()
        (path / "record.json").write_text(text.replace(record.local_id, path.name))
    (trained / "checkpoint.safetensors").write_bytes(b"")
    assert cli("resume", "--all").exit_code == 0
    left = [path.exists() for path in (folder_of(record.local_id), old, new, unborn, trained)]
    assert left == [False, False, True, False, True]


def test_a_sweeps_trial_goes_on_with_the_sweep(uri: str, cli: Cli) -> None:
    outcome = adaptkit.sweep("head", grid={"epochs": [1]}, settings={**TINY_SETTINGS})
    client = MlflowClient(uri)
    run_id = str(outcome.trials[0].run_id)
    client.set_terminated(run_id, "KILLED")
    assert list(records()) == []
    for one, what in ((run_id, "is one of a sweep's or a tuning's"), (outcome.parent_run_id, "groups others")):
        line = refused(cli, one)
        assert f"{what}: typed again, the same command goes on: " in line


def test_where_nothing_can_be_written_the_run_goes_on_without_checkpoints(
    uri: str, cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_folder / "file").write_text("")
    monkeypatch.setenv("ADAPTKIT_STATE", str(own_folder / "file"))
    given = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    result = cli("run", "-s", "head", *given)
    assert result.exit_code == 0
    notices = [line for line in result.stderr.splitlines() if line.startswith("no checkpoints are kept")]
    assert len(notices) == 1 and notices[0].endswith("the run cannot be resumed")


@pytest.mark.slow
def test_a_disk_that_fills_up_meanwhile_costs_a_line(
    uri: str, cli: Cli, stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptkit.experiment import recovery as keeping

    write, count = keeping.write_checkpoint, []

    def full(*given: Any) -> None:
        count.append(1)
        if len(count) > 1:
            raise OSError(28, "No space left on device")
        write(*given)

    expected = recorded(uri, undisturbed("head"))
    monkeypatch.setattr(keeping, "write_checkpoint", full)
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=3)
    given = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    result = cli("run", "-s", "head", *given)
    lines = result.stderr.splitlines()
    assert result.exit_code == 143
    assert len([line for line in lines if "No space left on device" in line]) == 1
    run_id = lines[-1].rpartition(" ")[2]
    assert lines[-2:] == ["Interrupted.", f"To resume:  adaptkit resume {run_id}"]
    # From the first epoch's checkpoint: what the store has is not logged again.
    monkeypatch.setattr(keeping, "write_checkpoint", write)
    assert cli("resume", run_id).stderr.startswith("head seed=0: resumed after epoch 1\n")
    require_as_undisturbed(recorded(uri, run_id), expected)


def test_it_goes_on_from_another_folder_with_the_store_named(
    uri: str, stop: Stop, own_folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    with pytest.raises(KeyboardInterrupt) as caught:
        adaptkit.run("head", settings=SETTINGS, tracking_uri="sqlite:///mlflow.db")
    (note,) = caught.value.__notes__
    words = note.removeprefix("To resume:  adaptkit ").split()
    assert words[2:] == ["--tracking-uri", "sqlite:///mlflow.db"]
    (own_folder / "elsewhere").mkdir()
    monkeypatch.chdir(own_folder / "elsewhere")
    result = cli("resume", words[1], "--tracking-uri", "sqlite:///../mlflow.db")
    assert result.exit_code == 0, result.stderr
    assert recorded(uri, words[1]).status == "FINISHED" and list((own_folder / "elsewhere").iterdir()) == []


def test_objects_are_given_again(uri: str, stop: Stop) -> None:
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head", backbone=Plain(10))
    with pytest.raises(BadInput, match="cannot go on: unknown backbone 'python'"):
        adaptkit.resume(run_id)
    other = Plain(10)
    other.hidden.bias.data.add_(1)
    with pytest.raises(BadInput, match="cannot go on: its base would be another one"):
        adaptkit.resume(run_id, backbone=other)
    assert adaptkit.resume(run_id, backbone=Plain(10)).runs[0].status == "finished"
