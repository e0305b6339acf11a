"""`adaptkit sync` and journals: queued results are listed, uploaded and reported by doctor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from support.experiments import TINY

AWAY = """
import os

from adaptkit import hookimpl


@hookimpl
def adaptkit_epoch_ended(run, epoch):
    if run.kind == "adaptation" and epoch.number == 1 and os.path.exists("mlflow.db"):
        os.rename("mlflow.db", "away.db")
"""


def journals() -> list[Path]:
    return sorted(Path(os.environ["XDG_STATE_HOME"], "adaptkit", "journals").glob("*"))


def runs() -> dict[str, MlflowRun]:
    client = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("adaptkit")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def steps(run: MlflowRun, key: str) -> list[int]:
    client = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    return [point.step for point in client.get_metric_history(run.info.run_id, key)]


def put_back() -> None:
    """Move the database back, over an empty one that may have been created."""
    os.replace("away.db", "mlflow.db")


@pytest.fixture
def unsent(cli: Callable[..., Result], store: Path, own_folder: Path) -> Result:
    """Run an experiment whose store is moved away during its adaptation run."""
    (own_folder / "away.py").write_text(AWAY)
    result = cli("run", "-s", "head", *TINY, "--plugin", "away.py", "-q")
    put_back()
    return result


def test_store_lost_during_a_run(cli: Callable[..., Result], unsent: Result) -> None:
    assert unsent.exit_code == 1
    assert " head " in unsent.stdout
    (error,) = [line for line in unsent.stderr.splitlines() if line.startswith("Error")]
    assert error.startswith("Error: MLflow does not have all results: ")
    assert error.endswith("; the missing records are kept: `adaptkit sync` sends them; the results above are complete")
    assert {name: run.info.status for name, run in runs().items()} == {
        "base small_cnn mnist5k": "FINISHED",
        "head seed=0": "RUNNING",
    }
    (journal,) = journals()
    listed = cli("sync", "--dry-run")
    assert (listed.exit_code, listed.stderr) == (0, "")
    assert listed.stdout == f"head seed=0: 6 records for {Path.cwd() / 'mlflow.db'}, experiment adaptkit\n"
    sent = cli("sync")
    run = runs()["head seed=0"]
    assert (sent.exit_code, sent.stderr) == (0, "")
    assert sent.stdout == f"head seed=0: 6 records uploaded; the run ended as FINISHED ({run.info.run_id})\n"
    assert run.info.status == "FINISHED"
    assert len(run.data.metrics) == 33
    assert steps(run, "train/loss") == [1, 2] and steps(run, "final/gain") == [0]
    assert not journal.exists()
    assert cli("sync").stdout == "Nothing to upload.\n"


@pytest.mark.slow
def test_uploading_twice(cli: Callable[..., Result], unsent: Result) -> None:
    (journal,) = journals()
    again = journal.with_name(f"{journal.name}-again")
    shutil.copytree(journal, again)
    (again / "sent.json").unlink()  # as if the process was killed before it recorded its progress
    first, second = (line.split(" (")[-1] for line in cli("sync").stdout.splitlines())
    assert first == second
    run = runs()["head seed=0"]
    assert (steps(run, "train/loss"), steps(run, "final/gain"), run.info.status) == ([1, 2], [0], "FINISHED")
    assert len(runs()) == 2


@pytest.mark.slow
def test_truncated_journal(cli: Callable[..., Result], unsent: Result) -> None:
    (journal,) = journals()
    lines = [line for line in (journal / "events.jsonl").read_text().splitlines() if line]
    kinds = [json.loads(line)["do"] for line in lines]
    assert kinds == ["create", "log", "input", "input", "log", "log", "put", "log", "put", "end"]
    torn = [*lines[:5], lines[5][:40], *lines[6:8]]
    (journal / "events.jsonl").write_text("\n".join(torn))
    sent = cli("sync")
    assert (sent.exit_code, sent.stderr) == (0, "")
    run = runs()["head seed=0"]
    assert sent.stdout.endswith(f"; the run ended as KILLED ({run.info.run_id})\n")
    assert (run.info.status, run.data.tags["adaptkit.error"]) == ("KILLED", "its process has ended")
    assert (steps(run, "train/loss"), steps(run, "final/gain")) == ([1], [0])


@pytest.mark.parametrize("spoilt", ["about.json", "sent.json", "events.jsonl"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe\x00", b'{"events": "many", "run_id": 3}'])
def test_damaged_journal(
    cli: Callable[..., Result], store: Path, own_folder: Path, spoilt: str, content: bytes
) -> None:
    folder = Path(os.environ["XDG_STATE_HOME"], "adaptkit", "journals", "20261128T000000.000000000-0123456789ab")
    folder.mkdir(parents=True)
    about = {"local_id": "0" * 32, "name": "a", "store": str(store), "experiment": "adaptkit"}
    (folder / "about.json").write_text(json.dumps(about))
    (folder / spoilt).write_bytes(content)
    result = cli("sync")
    assert result.exit_code in (0, 1) and "Traceback" not in result.stderr
    assert result.stderr == ""


@pytest.mark.slow
def test_run_of_another_store(cli: Callable[..., Result], unsent: Result) -> None:
    result = cli("sync", "--tracking-uri", f"sqlite:///{Path.cwd() / 'other.db'}")
    assert (result.exit_code, result.stderr) == (1, "")
    uri = f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    assert result.stdout == f"head seed=0: for another store; upload it with: adaptkit sync --tracking-uri {uri}\n"
    assert not Path("other.db").exists()
    assert len(journals()) == 1


@pytest.mark.slow
def test_unreachable_store(cli: Callable[..., Result], unsent: Result) -> None:
    os.replace("mlflow.db", "away.db")
    Path("mlflow.db").mkdir()
    result = cli("sync")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: the tracking store ") and len(result.stderr.splitlines()) == 1
    assert len(journals()) == 1


@pytest.mark.slow
def test_deleted_run(cli: Callable[..., Result], unsent: Result) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    client.delete_run(runs()["head seed=0"].info.run_id)
    result = cli("sync", "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    (one,) = json.loads(result.stdout)["runs"]
    assert (one["name"], one["events"], one["status"]) == ("head seed=0", 0, None)
    assert "must be in the 'active' state" in one["error"]
    assert len(journals()) == 1
    (line,) = cli("sync").stdout.splitlines()
    assert line.endswith(
        f"; if the run was deleted, `mlflow runs restore --run-id {one['run_id']}` brings it back, "
        "or `adaptkit sync --discard-refused` deletes its queue"
    )
    given_up = cli("sync", "--discard-refused")
    assert (given_up.exit_code, journals()) == (0, [])
    assert given_up.stdout.startswith("head seed=0: discarded: ")


@pytest.mark.slow
def test_doctor_and_the_next_run_warn(cli: Callable[..., Result], unsent: Result) -> None:
    told = json.loads(cli("doctor", "--json").stdout)["findings"]
    (journal,) = [one for one in told if one["name"] == "journals"]
    store = Path.cwd() / "mlflow.db"
    assert (journal["state"], journal["mend"]) == ("wrong", "adaptkit sync")
    assert journal["text"] == f"{store} lacks events of head seed=0"
    again = cli("run", "-s", "head", *TINY)
    assert again.exit_code == 0
    assert "1 earlier run is not completely in MLflow; run `adaptkit sync`" in again.stderr.splitlines()


@pytest.mark.slow
def test_read_only_state_folder(
    cli: Callable[..., Result], store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_folder / "file").write_text("")
    monkeypatch.setenv("ADAPTKIT_STATE", str(own_folder / "file"))
    result = cli("run", "-s", "head", *TINY, "--json")
    assert result.exit_code == 0, result.stderr
    assert {run.info.status for run in runs().values()} == {"FINISHED"}
    outcome: dict[str, Any] = json.loads(result.stdout)
    assert outcome["tracking_error"] is None


@pytest.mark.slow
def test_no_store_and_no_journal(
    cli: Callable[..., Result], store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_folder / "file").write_text("")
    (own_folder / "away.py").write_text(AWAY)
    monkeypatch.setenv("ADAPTKIT_STATE", str(own_folder / "file"))
    result = cli("run", "-s", "head", *TINY, "--plugin", "away.py", "-q")
    assert result.exit_code == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert "; the missing records cannot be saved for later either: " in error
    assert error.endswith("; the results above are complete")
