"""`adaptkit resume` refuses runs that cannot be resumed, with a reason."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from mlflow import MlflowClient
from support.interruption import SETTINGS, STEPPING, Stop, interrupted, killed, refused
from support.photos import make_photos

import adaptkit
from adaptkit.experiment.recovery import claim, damaged_records, folder_of, records

Cli = Callable[..., Result]

DAMAGES = {
    "cut short": lambda text: text[: len(text) // 2],
    "emptied": lambda text: "",
    "a field gone": lambda text: text.replace('"store"', '"stored"'),
    "a field of another type": lambda text: re.sub(r'"started": [\d.]+', '"started": "now"', text),
}


@pytest.mark.slow
def test_ended_run(uri: str, cli: Cli) -> None:
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


def test_unknown_run(uri: str, cli: Cli, own_folder: Path, stop: Stop) -> None:
    assert (
        refused(cli, "nothing")
        == f"Error: no run 'nothing' in {own_folder}/mlflow.db; `adaptkit ui` shows the ids of its runs"
    )
    assert refused(cli) == "Error: name the ids of runs, or use --all for every interrupted run"
    assert refused(cli, "x", "--all") == "Error: name the ids of runs, or use --all for every interrupted run, not both"
    foreign = MlflowClient(uri).create_run("0").info.run_id
    assert refused(cli, foreign).endswith(") was not made by adaptkit and cannot be resumed")
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head")
    (own_folder / "elsewhere").mkdir()
    shutil.copy(own_folder / "mlflow.db", own_folder / "elsewhere")
    MlflowClient(f"sqlite:///{own_folder}/elsewhere/mlflow.db").delete_run(run_id)
    hint = f"; interrupted runs are in {uri}: name the store with --tracking-uri"
    assert refused(cli, "x", "--tracking-uri", f"sqlite:///{own_folder}/elsewhere/mlflow.db").endswith(hint)
    none = own_folder / "elsewhere" / "none.db"
    for arguments in ([run_id], ["--all"]):
        line = refused(cli, *arguments, "--tracking-uri", f"sqlite:///{none}")
        assert line.startswith(f"Error: no tracking store at {none}: ") and line.endswith(hint)


@pytest.mark.slow
def test_live_run(uri: str, cli: Cli, stop: Stop) -> None:
    run_id, client = killed(uri, stop), MlflowClient(uri)
    assert refused(cli, run_id) == (
        f"Error: run {run_id} (head seed=0) is running in process {os.getpid()} on this machine"
    )
    # Another machine that shares the folder cannot see the process, but it can see its lock.
    client.set_tag(run_id, "adaptkit.host", "elsewhere")
    (record,) = records()
    held = claim(record.local_id)
    assert held is not None
    assert refused(cli, run_id) == f"Error: run {run_id} (head seed=0) is in use by another process"
    result = cli("resume", "--all")
    assert (result.exit_code, result.stdout) == (
        0, "Nothing to resume: this store has no interrupted run of this machine.\n"
    )  # fmt: skip
    held.release()
    assert cli("resume", run_id, "-q").exit_code == 0


@pytest.mark.slow
def test_run_without_checkpoint(uri: str, cli: Cli, stop: Stop) -> None:
    run_id, client = killed(uri, stop), MlflowClient(uri)
    (record,) = records()
    client.set_tag(run_id, "adaptkit.pid", "0")
    client.set_terminated(run_id, "KILLED")
    shutil.move(folder_of(record.local_id), "away")
    assert refused(cli, run_id).endswith(
        "cannot be resumed: this machine has no checkpoint of it; run the command again"
    )
    client.set_tag(run_id, "adaptkit.host", "elsewhere")
    assert refused(cli, run_id).endswith("it started on elsewhere, and its checkpoint is there")


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_record(uri: str, cli: Cli, stop: Stop, damage: str) -> None:
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head")
    (record,) = records()
    folder = folder_of(record.local_id)
    text = (folder / "record.json").read_text()
    (folder / "record.json").write_text(DAMAGES[damage](text))
    assert refused(cli, run_id) == (
        f"Error: run {run_id} (head seed=0) cannot be resumed: its checkpoint in {folder} is damaged; "
        "run the command again"
    )
    notice = f"the checkpoints of a run in {folder} are damaged: remove the folder\n"
    result = cli("resume", "--all")
    assert (result.exit_code, result.stderr) == (0, notice)
    assert result.stdout.startswith("Nothing to resume: ")
    held = claim(record.local_id)  # the holder may be writing
    assert held is not None and damaged_records() == []
    held.release()
    assert damaged_records() == [folder]
    (folder / "record.json").write_text(text)
    assert damaged_records() == []
    assert cli("resume", "--all", "-q").exit_code == 0


@pytest.mark.slow
def test_changed_data(uri: str, cli: Cli, stop: Stop, own_folder: Path) -> None:
    make_photos(own_folder / "photos", per_class=20, size=24)
    settings = {"dataset": "folder:photos", "image_size": 16, "epochs": 2, "base.epochs": 1, "shots": 2}
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head", settings)
    one, other = sorted((own_folder / "photos").rglob("*.jpg"))[:2]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    result = cli("resume", run_id)
    title = f"Error: run {run_id} (head seed=0) cannot be resumed:"
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        [
            f"{title} its images have changed since it started",
            f"{title} it needs another base now: the backbone, its training or its data changed",
        ],
    )
    one.write_bytes(kept)
    assert cli("resume", run_id, "-q").exit_code == 0


@pytest.mark.slow
def test_changed_plugin(uri: str, cli: Cli, stop: Stop, own_folder: Path) -> None:
    path = own_folder / "stepping.py"
    path.write_text(STEPPING)
    stop.at("adaptkit_epoch_ended", after=True, name="stepping", epoch=1)
    run_id = interrupted("stepping", plugins=[path])
    title = f"Error: run {run_id} (stepping seed=0) cannot be resumed: the plugin {path}"
    path.write_text(STEPPING.replace("0.9", "0.8"))
    assert refused(cli, run_id) == f"{title} was changed since the run started; restore it"
    path.unlink()
    assert refused(cli, run_id) == f"{title} was removed; restore it"
    path.write_text(STEPPING)
    assert cli("resume", run_id, "-q").exit_code == 0
