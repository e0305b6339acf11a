"""`adaptkit resume`: a resumed run equals an uninterrupted one; other runs are refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from mlflow import MlflowClient
from support import processes
from support.experiments import BITFIT, TINY, TINY_SETTINGS
from support.interruption import SETTINGS, STEPPING, Stop, interrupted, killed, refused, undisturbed
from support.plain_model import Plain
from support.reliability import note
from support.resumption import ids, recorded, require_as_undisturbed

import adaptkit
from adaptkit.errors import BadInput
from adaptkit.experiment.recovery import folder_of, records
from adaptkit.names import REPORT_FILE
from adaptkit.tracking.journal import unused_journals

Cli = Callable[..., Result]


#: kills its own process after the store has the first epoch of an adaptation run
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
def test_resume_from_any_moment(uri: str, stop: Stop, moment: str) -> None:
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
    "new head": ("lora", {"dataset": "none", "weights": "none", "target": "digits"}, {}),
    "computed twice": ("full", {"checkpointing": True}, {}),
    "some classes, weighted": (
        "lora",
        {"class_weights": "balanced", "classes": "7,1,3", "split.sampling": "proportional"},
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_resume_of_each_kind(uri: str, stop: Stop, case: str) -> None:
    strategy, settings, more = CASES[case]
    settings = SETTINGS | settings
    expected = recorded(uri, undisturbed(strategy, settings, **more))
    stop.at("adaptkit_epoch_ended", after=False, name=strategy, epoch=2)
    run_id = interrupted(strategy, settings, **more)
    given = {"backbone": Plain(10)} if "backbone" in more else {}
    adaptkit.resume(run_id, **given)
    require_as_undisturbed(recorded(uri, run_id), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "probe"])
def test_resume_base_run(
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
    assert any(line.startswith("The base is trained. Run the same command again to continue: ") for line in lines)
    require_as_undisturbed(recorded(uri, run_id), expected)
    outcome = adaptkit.run("head", settings=settings)
    assert outcome.base.cached and outcome.base.run_id == run_id
    again = recorded(uri, str(outcome.runs[0].run_id))
    require_as_undisturbed(again, recorded(uri, run))


@pytest.mark.slow
def test_strategy_with_step_hook_restarts(uri: str, stop: Stop, own_folder: Path, cli: Cli) -> None:
    (own_folder / "stepping.py").write_text(STEPPING)
    expected = recorded(uri, undisturbed("stepping", plugins=["stepping.py"]))
    stop.at("adaptkit_epoch_ended", after=True, name="stepping", epoch=2)
    run_id = interrupted("stepping", plugins=["stepping.py"])
    (record,) = records()
    assert not (folder_of(record.local_id) / "checkpoint.safetensors").exists()
    result = cli("resume", run_id)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == (
        "stepping seed=0: trained again from the first epoch: its strategy has step_ended without state_dict"
    )
    require_as_undisturbed(recorded(uri, run_id), expected)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut short", "altered", "gone", "another run's"])
def test_damaged_checkpoint(uri: str, stop: Stop, cli: Cli, damage: str) -> None:
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


@pytest.mark.slow
def test_repeated_kills(uri: str, stop: Stop) -> None:
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


@pytest.mark.slow
def test_resume_parent_run(uri: str, stop: Stop, cli: Cli) -> None:
    """Skip finished runs, resume one, start the others, and compare all."""
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


@pytest.mark.slow
def test_resume_parent_run_killed_in_its_base(
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


@pytest.mark.slow
def test_resume_one_run_of_a_parent(uri: str, stop: Stop, cli: Cli) -> None:
    stop.at("adaptkit_epoch_ended", after=False, name="head", epoch=2)
    group = interrupted(["full", "head"])
    run_id = ids(uri, kind="adaptation")["head seed=0"]
    result = cli("resume", run_id)
    assert f"This run is one of several. To resume the others:  adaptkit resume {group}" in result.stderr.splitlines()
    assert MlflowClient(uri).get_run(run_id).data.tags["mlflow.parentRunId"] == group
    assert cli("resume", group, "-q").exit_code == 0
    assert recorded(uri, group).status == "FINISHED"


@pytest.mark.slow
def test_missing_base_is_trained_again(
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
        "head seed=0: the cache no longer holds its base; it is trained again",
        f"Error: run {run_id} (head seed=0) cannot be resumed: its base was ffffffffffff, and is "
        f"{str(record.base_fingerprint)[:12]}",
    ]
    shutil.rmtree(own_folder / "cache")
    path.write_text(text)
    assert cli("resume", run_id).exit_code == 0
    require_as_undisturbed(recorded(uri, run_id), expected)
    assert [run.info.run_id for run in client.search_runs(experiments, "tags.`adaptkit.kind` = 'base'")] == bases


@pytest.mark.slow
def test_resume_all_with_one_failure(
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
    assert "was removed; restore it" in found[bad]["error"] and found[bad]["outcome"] is None
    refusal = cli("resume", "--all")
    assert (refusal.exit_code, (refusal.stdout + refusal.stderr).count("was removed; restore it")) == (1, 1)
    path.write_text(STEPPING)
    result = cli("resume", "--all")
    assert result.exit_code == 0
    assert ["stepping", "seed=0", bad, "finished"] in [line.split() for line in result.stdout.splitlines()]
    assert list(records()) == []


@pytest.mark.slow
def test_moved_store(cli: Cli, store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "killing.py").write_text(KILLING)
    command = ("run", "-s", "head", *TINY, "--plugin", "killing.py")
    killed = processes.run(*command, environment={**os.environ, "KILLED": "1"})
    assert killed.returncode == -signal.SIGKILL
    moved = own_folder / "moved"
    moved.mkdir()
    for name in ("mlflow.db", "mlruns"):
        shutil.move(own_folder / name, moved)
    monkeypatch.chdir(moved)
    # The store has all events of the journals. The copy at the old place lacks only the ends of the runs.
    assert (cli("sync").exit_code, cli("sync").stdout) == (0, "Nothing to upload.\n")
    result = cli("resume", "--all", "-q")
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    assert list(unused_journals()) == [] and list(records()) == []


def test_leftovers_of_ended_runs_are_removed(uri: str, cli: Cli, stop: Stop) -> None:
    run_id = killed(uri, stop)
    (record,) = records()
    MlflowClient(uri).set_terminated(run_id, "FINISHED")
    old, new = folder_of("old"), folder_of("new")
    for path in (old, new):
        path.mkdir()
        (path / "checkpoint.safetensors.part").write_bytes(b"half")
    os.utime(old, (1, 1))
    # The store has none of these runs: the process died before it sent them, or the store did not respond.
    unborn, trained = folder_of("a" * 32), folder_of("b" * 32)
    for path in (unborn, trained):
        path.mkdir()
        text = (folder_of(record.local_id) / "record.json").read_text()
        (path / "record.json").write_text(text.replace(record.local_id, path.name))
    (trained / "checkpoint.safetensors").write_bytes(b"")
    assert cli("resume", "--all").exit_code == 0
    left = [path.exists() for path in (folder_of(record.local_id), old, new, unborn, trained)]
    assert left == [False, False, True, False, True]


@pytest.mark.slow
def test_trial_of_a_sweep(uri: str, cli: Cli) -> None:
    outcome = adaptkit.sweep("head", grid={"epochs": [1]}, settings={**TINY_SETTINGS})
    client = MlflowClient(uri)
    run_id = str(outcome.trials[0].run_id)
    client.set_terminated(run_id, "KILLED")
    assert list(records()) == []
    for one, what in ((run_id, "belongs to a sweep or a tuning"), (outcome.parent_run_id, "is a sweep or a tuning")):
        line = refused(cli, one)
        assert f"{what}: run the same command again to continue: " in line


@pytest.mark.slow
def test_read_only_folder_means_no_checkpoints(
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
def test_disk_fills_up(uri: str, cli: Cli, stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # Resumed from the checkpoint of the first epoch. Stored metrics are not logged again.
    monkeypatch.setattr(keeping, "write_checkpoint", write)
    assert cli("resume", run_id).stderr.startswith("head seed=0: resumed after epoch 1\n")
    require_as_undisturbed(recorded(uri, run_id), expected)


@pytest.mark.slow
def test_resume_from_another_folder(
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
    for several in (("--all",), (words[1], "0" * 32)):
        refused = cli("resume", *several, "--report", "report", "--tracking-uri", "sqlite:///../mlflow.db")
        line = "Error: --report: each comparison has its own report; resume one run at a time\n"
        assert (refused.exit_code, refused.stderr) == (2, line)
    result = cli("resume", words[1], "--report", "report", "--tracking-uri", "sqlite:///../mlflow.db")
    assert result.exit_code == 0, result.stderr
    assert recorded(uri, words[1]).status == "FINISHED"
    assert [path.name for path in (own_folder / "elsewhere").iterdir()] == ["report"]
    assert (own_folder / "elsewhere" / "report" / REPORT_FILE).exists()


@pytest.mark.slow
def test_python_objects(uri: str, stop: Stop) -> None:
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head", backbone=Plain(10))
    with pytest.raises(BadInput, match="cannot be resumed: unknown backbone 'python'"):
        adaptkit.resume(run_id)
    other = Plain(10)
    other.hidden.bias.data.add_(1)
    with pytest.raises(BadInput, match="cannot be resumed: it needs another base now"):
        adaptkit.resume(run_id, backbone=other)
    assert adaptkit.resume(run_id, backbone=Plain(10)).runs[0].status == "finished"
