"""Concurrent processes, kills and `mlflow ui` while a tracking store is created."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.processes import Process, start

from adaptkit.errors import BadInput
from adaptkit.tracking import sqlite as schema
from adaptkit.tracking.store import open_store

pytestmark = pytest.mark.slow

PATIENCE = 120.0

#: opens the default store, logs a run with 20 metrics, and prints its ids
CLIENT = """
import time
from mlflow.entities import Metric
from adaptkit.tracking.store import open_store
store = open_store(None, "adaptkit")
run = store.client.create_run(store.experiment_id)
for step in range(20):
    store.client.log_batch(run.info.run_id, metrics=[Metric("train/loss", step / 20, int(time.time() * 1000), step)])
store.client.log_text(run.info.run_id, "text", "note.txt")
store.client.set_terminated(run.info.run_id)
print(store.experiment_id, run.info.run_id, *store.notices, sep="\\n")
"""

#: a script without adaptkit: MLflow creates the schema in place
PLAIN = "import mlflow; mlflow.MlflowClient()"


@contextmanager
def process(*command: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a new session, and kill the session at the end."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with log.open("w") as file:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment, start_new_session=True
        )
        try:
            yield child
        finally:
            kill(child)


def kill(child: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate(timeout=PATIENCE)


def python(code: str, log: Path) -> Any:
    return process(sys.executable, "-c", code, log=log)


def finished(child: Process | subprocess.Popen[str], log: Path | None = None) -> list[str]:
    """Wait for a client that must succeed and print no error, here or to a log; return its output lines."""
    output, errors = child.communicate(timeout=PATIENCE)
    assert (child.returncode, log.read_text() if log else errors) == (0, "")
    return output.splitlines()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


def ui(port: int, log: Path) -> Any:
    return process("mlflow", "ui", "--port", str(port), "--workers", "1", log=log)


def ask(port: int, path: str, question: dict[str, Any] | None = None) -> Any:
    """Send a request to MLflow's REST API."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{path}",
        data=json.dumps(question).encode() if question is not None else None,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read().decode()
    return json.loads(text) if text.startswith("{") else text


def wait_for(child: subprocess.Popen[str], port: int, log: Path) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert child.poll() is None, log.read_text()
        try:
            ask(port, "health")
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer within {PATIENCE:.0f} s: {log.read_text()}")


def assert_is_shown(port: int, experiment_id: str, run_id: str) -> None:
    """Check that a server shows a run, its metric and its file."""
    runs = ask(port, "api/2.0/mlflow/runs/search", {"experiment_ids": [experiment_id]})["runs"]
    (run,) = [run for run in runs if run["info"]["run_id"] == run_id]
    assert [(metric["key"], metric["step"]) for metric in run["data"]["metrics"]] == [("train/loss", 19)]
    files = ask(port, f"api/2.0/mlflow/artifacts/list?run_id={run_id}")["files"]
    assert [file["path"] for file in files] == ["note.txt"]


def test_eight_processes_in_empty_folder(own_folder: Path) -> None:
    clients = [start(code=CLIENT) for _ in range(8)]
    answers = [finished(client) for client in clients]

    assert {len(answer) for answer in answers} == {2}  # no notice
    assert len({experiment for experiment, _ in answers}) == 1
    assert len({run for _, run in answers}) == 8
    with closing(sqlite3.connect("mlflow.db")) as database:
        counts = database.execute("SELECT run_uuid, count(DISTINCT step) FROM metrics GROUP BY run_uuid").fetchall()
    assert dict(counts) == {run: 20 for _, run in answers}
    assert sorted(path.name for path in own_folder.glob(".mlflow.db*")) in ([], [".mlflow.db.lock"])


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.8, 1.6])
def test_kill_while_adaptkit_creates_store(delay: float, own_folder: Path) -> None:
    kill_when_there_is(".mlflow.db.lock", CLIENT, delay)

    experiment_id, run_id = finished(start(code=CLIENT))  # and no notice
    assert list(own_folder.glob(".mlflow.db.new-*")) == []
    store = open_store(None, "adaptkit")
    assert (store.experiment_id, store.notices) == (experiment_id, ())
    assert len(store.client.get_metric_history(run_id, "train/loss")) == 20
    assert schema._revision(own_folder / "mlflow.db") == schema._migrations().get_current_head()


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.8])
def test_kill_while_mlflow_creates_store(delay: float, own_folder: Path) -> None:
    """The next start uses the file, or rejects it with advice that works."""
    path = own_folder / "mlflow.db"
    kill_when_there_is("mlflow.db", PLAIN, delay)

    try:
        open_store(None, "adaptkit")
    except BadInput as error:
        assert str(error).startswith(str(path)) and "move it away" in str(error)
        path.rename("aside.db")
        assert open_store(None, "adaptkit").notices == ()
    assert schema._revision(path) == schema._migrations().get_current_head()


def kill_when_there_is(name: str, code: str, delay: float) -> None:
    """Run a program, and kill it `delay` seconds after a file has appeared."""
    child = start(code=code)
    deadline = time.monotonic() + PATIENCE
    while not Path(name).exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    child.kill()
    child.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("before", ["", "link(*names)"])
def test_kill_at_rename(before: str, own_folder: Path) -> None:
    cut = f"import os\nlink = os.link\ndef cut(*names):\n    {before}\n    os.kill(os.getpid(), 9)\nos.link = cut\n"
    child = start(code=cut + CLIENT)
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == -signal.SIGKILL, errors
    assert len(list(own_folder.glob(".mlflow.db.new-*"))) == 1
    assert Path("mlflow.db").exists() == bool(before)

    assert open_store(None, "adaptkit").notices == ()
    assert list(own_folder.glob(".mlflow.db.new-*")) == []


@pytest.mark.parametrize("head_start", [0.0, 2.0, "file", "tables", -2.0])
def test_concurrent_mlflow_ui(head_start: float | str, own_folder: Path) -> None:
    """`mlflow ui` starts some seconds before or after the client, or until its database exists or has tables."""
    port, ui_log, client_log = free_port(), own_folder / "ui.log", own_folder / "client.log"
    server_context, client_context = ui(port, ui_log), python(CLIENT, client_log)
    if isinstance(head_start, float) and head_start < 0:
        with client_context as client:
            time.sleep(-head_start)
            with server_context as server:
                check_both(server, client, port, ui_log, client_log)
        return
    with server_context as server:
        if isinstance(head_start, float):
            time.sleep(head_start)
        else:
            deadline = time.monotonic() + PATIENCE
            while not Path("mlflow.db").exists() and time.monotonic() < deadline:
                time.sleep(0.002)
            if head_start == "tables":
                time.sleep(0.3)
            # This process has imported mlflow already, so it opens the store during the creation.
            opened = open_store(None, "adaptkit")
            assert opened.notices == ()
        with client_context as client:
            check_both(server, client, port, ui_log, client_log)


def check_both(
    server: subprocess.Popen[str], client: subprocess.Popen[str], port: int, ui_log: Path, client_log: Path
) -> None:
    experiment_id, run_id = finished(client, client_log)
    wait_for(server, port, ui_log)
    assert_is_shown(port, experiment_id, run_id)
    through_server = open_store(f"http://127.0.0.1:{port}/", "adaptkit")
    assert (through_server.experiment_id, through_server.ui_command) == (experiment_id, None)
    assert through_server.runs_url().startswith(f"http://127.0.0.1:{port}/#/experiments/{experiment_id}/runs?")
    assert server.poll() is None


def test_upgrade_keeps_backup(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, older = own_folder / "mlflow.db", make_older(own_folder)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (5, 'mine', 'active')")
    os.utime(path, (0, 0))  # an old file: no process is creating it

    opened = open_store(None, "adaptkit")

    backup = f"mlflow.db.backup-{older}"
    assert opened.notices == (
        f"{path} was upgraded to the schema of the installed MLflow; the previous version is kept in {backup}",
    )
    assert schema._revision(own_folder / backup) == older
    assert opened.client.get_experiment("5").name == "mine"
    assert open_store(None, "adaptkit").notices == ()


def test_failed_upgrade_changes_nothing(own_folder: Path) -> None:
    path, older = own_folder / "mlflow.db", make_older(own_folder)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (5, 'mine', 'active')")
        database.execute("CREATE TABLE secrets (taken TEXT)")  # a later migration creates this table
    os.utime(path, (0, 0))

    with pytest.raises(BadInput) as caught:
        open_store(None, "adaptkit")

    command = f"mlflow db upgrade sqlite:///{path}"
    assert str(caught.value) == (
        f"{path} could not be upgraded and is unchanged: `{command}` shows the reason; "
        "move it away to start with a new one"
    )
    assert schema._revision(path) == older
    assert list(own_folder.glob("*.backup-*")) == []


def make_older(folder: Path) -> str:
    """Create the store of an older MLflow; return its revision."""
    code = (
        "import mlflow, sqlalchemy\n"
        "from alembic import command\n"
        "from mlflow.store.db import utils\n"
        "from mlflow.store.tracking.dbmodels.initial_models import Base\n"
        "config = utils._get_alembic_config('sqlite:///mlflow.db')\n"
        "engine = sqlalchemy.create_engine('sqlite:///mlflow.db')\n"
        "Base.metadata.create_all(engine)\n"
        "command.upgrade(config, '534353b11cbc')\n"
    )
    child = start(code=code)
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, errors
    return "534353b11cbc"
