"""Opening a tracking store: its address, its experiment, and errors in one line."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.reliability import note

from adaptkit.errors import BadInput
from adaptkit.tracking import server, sqlite
from adaptkit.tracking import sqlite as schema
from adaptkit.tracking.address import CHARTS
from adaptkit.tracking.store import Store, open_store

HEAD_SQL = "SELECT version_num FROM alembic_version"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SETTLED_SECONDS", 0.2)
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.5)
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)


def refusal(uri: str | None = None, experiment: str = "adaptkit") -> str:
    """Return the error message, which must be one line."""
    with pytest.raises(BadInput) as caught:
        open_store(uri, experiment)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


def location(store: Store) -> str:
    return str(store.client.get_experiment(store.experiment_id).artifact_location)


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def half_made(path: Path, *more: str) -> None:
    """Create the database of a killed `mlflow ui`: some tables without a revision."""
    change(
        path,
        "CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name VARCHAR(256))",
        "CREATE TABLE runs (run_uuid VARCHAR(32) PRIMARY KEY)",
        "CREATE TABLE alembic_version (version_num VARCHAR(32))",
        *more,
    )


def names(folder: Path) -> list[str]:
    """Return the names in a folder, without the lock file."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_default_store(store: Path, own_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import mlflow

    opened = open_store(None, "adaptkit")

    assert opened.uri == mlflow.get_tracking_uri() == f"sqlite:///{own_folder}/mlflow.db"
    assert not mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    assert mlflow.active_run() is None
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert location(opened) == f"{own_folder}/mlruns/{opened.experiment_id}"
    assert mlflow.MlflowClient().get_experiment(opened.experiment_id).name == "adaptkit"
    assert opened.experiment_name == "adaptkit"
    assert opened.notices == ()
    assert opened.ui_command == "mlflow ui"
    assert opened.runs_url() == (f"http://127.0.0.1:5000/#/experiments/{opened.experiment_id}/runs?{CHARTS}")
    assert open_store(None, "adaptkit").experiment_id == opened.experiment_id
    assert capfd.readouterr() == ("", "")


def test_new_store_is_complete(own_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    opened = open_store("", "adaptkit")

    assert names(own_folder) == ["mlflow.db"]
    assert opened.notices == ()
    with closing(sqlite3.connect("mlflow.db")) as database:
        assert database.execute(HEAD_SQL).fetchone()[0] == schema._migrations().get_current_head()
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert capfd.readouterr() == ("", "")


def test_new_store_without_hard_links(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(source: object, target: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", unsupported)
    for name, text in {"new.db": None, "old.db": "another process"}.items():
        target = own_folder / name
        if text:
            target.write_text(text)
        temporary = own_folder / "temporary"
        temporary.write_text("ours")
        schema._publish(temporary, target)
        assert target.read_text() == (text or "ours")


def test_argument_overrides_environment(empty_store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("given.db", "variable.db"):
        shutil.copy(empty_store, name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///variable.db")

    assert open_store("sqlite:///given.db", "adaptkit").uri == f"sqlite:///{own_folder}/given.db"
    opened = open_store("", "adaptkit")
    assert opened.uri == f"sqlite:///{own_folder}/variable.db"
    assert opened.ui_command == f"mlflow ui --backend-store-uri sqlite:///{own_folder}/variable.db"


def test_ui_command_names_other_store(store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "sqlite:///other.db")
    assert open_store(None, "adaptkit").ui_command == f"mlflow ui --backend-store-uri sqlite:///{own_folder}/mlflow.db"


def test_artifacts_next_to_database(empty_store: Path, own_folder: Path) -> None:
    folder = own_folder / "50% of a study"
    folder.mkdir()
    shutil.copy(empty_store, folder / "runs.db")

    opened = open_store("sqlite:///50%25 of a study/runs.db", "vision / first")

    assert opened.uri == f"sqlite+pysqlite:///{own_folder}/50%25 of a study/runs.db"
    assert [path.name for path in own_folder.iterdir()] == [folder.name]
    assert opened.ui_command == f"mlflow ui --backend-store-uri '{opened.uri}'"
    assert location(opened) == (folder / "mlruns" / "vision-first").as_uri()
    run = opened.client.create_run(opened.experiment_id)
    opened.client.log_text(run.info.run_id, "text", "note.txt")
    assert (folder / "mlruns" / "vision-first" / run.info.run_id / "artifacts" / "note.txt").read_text() == "text"
    assert not (own_folder / "mlruns").exists()
    assert open_store(opened.uri, "vision / first").experiment_id == opened.experiment_id


def test_linked_database(empty_store: Path, own_folder: Path) -> None:
    (own_folder / "shared").mkdir()
    shutil.copy(empty_store, own_folder / "shared" / "real.db")
    Path("mlflow.db").symlink_to("shared/real.db")

    opened = open_store(None, "adaptkit")

    assert opened.ui_command == "mlflow ui"
    assert location(opened) == f"{own_folder}/shared/mlruns/adaptkit"
    assert Path("mlflow.db").is_symlink()


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        (
            "mlruns",
            "mlruns is a folder for MLflow's old file store, which MLflow no longer supports; write sqlite:///mlflow.db",
        ),
        (
            "./results",
            "./results is a folder for MLflow's old file store, which MLflow no longer supports; "
            "write sqlite:///results/mlflow.db",
        ),
        (
            "file:///data/mlruns",
            "file:///data/mlruns is a folder for MLflow's old file store, which MLflow no longer supports; "
            "write sqlite:////data/mlflow.db",
        ),
        (
            "runs.db",
            "runs.db is a folder for MLflow's old file store, which MLflow no longer supports; write sqlite:///runs.db",
        ),
        ("sqlite:///:memory:", "sqlite:///:memory: does not name a database file; write sqlite:///PATH/mlflow.db"),
        ("sqlite://", "sqlite:// does not name a database file; write sqlite:///PATH/mlflow.db"),
        ("sqlite:mlflow.db", "sqlite:mlflow.db does not name a database file; write sqlite:///PATH/mlflow.db"),
        (
            "postgres://me:secret@host/runs",
            "adaptkit cannot track to 'postgres' addresses; did you mean 'postgresql'?",
        ),
        (
            "databricks",
            "adaptkit cannot track to 'databricks' addresses; known: http, https, mssql, mysql, postgresql, sqlite",
        ),
        ("http://", "http:// is not the address of a tracking store; write http://HOST:PORT"),
        ("http:/\n/me:secret@host", "http:/host is not the address of a tracking store; write http://HOST:PORT"),
        (
            "http://me:secret@host:port",
            "http://host:port is not the address of a tracking store; write http://HOST:PORT",
        ),
    ],
)
def test_invalid_addresses(uri: str, line: str, own_folder: Path) -> None:
    assert refusal(uri) == line
    assert list(own_folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", "  "])
def test_experiment_without_name(name: str, own_folder: Path) -> None:
    assert refusal(experiment=name) == "the experiment needs a name: --experiment NAME"
    assert list(own_folder.iterdir()) == []


def test_experiment_name_rejected_by_mlflow(store: Path) -> None:
    line = refusal(experiment="x" * 501)
    assert line.startswith(f"the tracking store {store} failed: 'name' exceeds the maximum length of 500 characters")


@pytest.mark.parametrize(("has_database", "target"), [(False, "mlflow.db"), (True, "mlflow-old.db")])
def test_old_file_store(has_database: bool, target: str, own_folder: Path) -> None:
    Path("mlruns/123").mkdir(parents=True)
    Path("mlruns/123/meta.yaml").touch()
    if has_database:
        Path("mlflow.db").touch()

    assert refusal() == (
        "mlruns/ holds runs of MLflow's old file store, which MLflow no longer supports; to keep them, type "
        f"`mlflow migrate-filestore --source mlruns --target sqlite:///{target} && rm mlruns/*/meta.yaml`; "
        "to start with a new store, type `mv mlruns mlruns-old`"
    )


def test_named_store_ignores_old_file_store(store: Path, own_folder: Path) -> None:
    Path("mlruns/0").mkdir(parents=True)
    Path("mlruns/0/meta.yaml").touch()
    opened = open_store("sqlite:///mlflow.db", "adaptkit")
    assert opened.ui_command == f"mlflow ui --backend-store-uri sqlite:///{own_folder}/mlflow.db"


def test_readme_in_mlruns(store: Path) -> None:
    Path("mlruns/notes").mkdir(parents=True)
    Path("mlruns/README.md").write_text("Nothing here belongs into version control.")
    Path("mlruns/notes/meta.yaml").touch()
    assert open_store(None, "adaptkit").ui_command == "mlflow ui"


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_moved_or_copied_database(way: str, store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = own_folder / "old", own_folder / "new"
    old.mkdir()
    shutil.copy(store, old / "mlflow.db")
    monkeypatch.chdir(old)
    first = open_store(None, "adaptkit")
    if way == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    monkeypatch.chdir(new)

    opened = open_store(None, "adaptkit")

    notice = (
        f"experiment 'adaptkit' has its artifacts in {old}/mlruns/{first.experiment_id}, a folder from which "
        "this database was moved or copied: these runs are in 'adaptkit-2'"
    )
    assert opened.notices == (notice,)
    assert opened.experiment_name == "adaptkit-2"
    assert location(opened) == f"{new}/mlruns/{opened.experiment_id}"
    again = open_store(None, "adaptkit")
    assert (again.experiment_id, again.notices) == (opened.experiment_id, (notice,))


def test_artifacts_in_another_folder(store: Path, own_folder: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}")
    for name, place in {"away": f"{own_folder}/elsewhere/mlruns/7", "cloud": "s3://bucket/mlruns/8"}.items():
        client.create_experiment(name, artifact_location=place)
    (own_folder / "elsewhere" / "mlruns").mkdir(parents=True)

    for name in ("away", "cloud"):
        assert open_store(None, name).notices == ()


def test_experiment_of_server(store: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}")
    for name in ("adaptkit", "adaptkit-2"):
        client.create_experiment(name, artifact_location=f"mlflow-artifacts:/{name}")

    opened = open_store(None, "adaptkit")

    assert opened.notices == (
        "experiment 'adaptkit' was created by an MLflow server, and only the server can write its artifacts: "
        "these runs are in 'adaptkit-3'",
    )
    assert opened.experiment_name == "adaptkit-3"


def test_deleted_experiment(store: Path, own_folder: Path) -> None:
    opened = open_store(None, "adaptkit")
    opened.client.delete_experiment(opened.experiment_id)

    command = f"mlflow experiments restore --experiment-id {opened.experiment_id}"
    line = "experiment 'adaptkit' was deleted in MLflow: restore it with `{}`, or choose another name with --experiment"
    assert refusal() == line.format(command)
    shutil.copy(store, "other.db")
    assert refusal("sqlite:///other.db") == line.format(
        f"MLFLOW_TRACKING_URI=sqlite:///{own_folder}/other.db {command}"
    )


def test_missing_folder(own_folder: Path) -> None:
    assert refusal("sqlite:///missing/mlflow.db") == (
        f"the folder {own_folder}/missing of the tracking store does not exist; create it first"
    )
    assert list(own_folder.iterdir()) == []


def test_path_below_file(own_folder: Path) -> None:
    Path("file").touch()
    for path in ("file/mlflow.db", "file/folder/mlflow.db"):
        line = f"cannot write the tracking store to {(own_folder / path).parent}: Not a directory"
        assert refusal(f"sqlite:///{path}") == line
    note("no-writing", 2)


def test_folder_instead_of_file(own_folder: Path) -> None:
    Path("runs").mkdir()
    assert refusal("sqlite:///runs") == (
        f"the tracking store {own_folder}/runs is a folder; name a file in it: sqlite:///{own_folder}/runs/mlflow.db"
    )


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Make a file read-only even for root, if the file system supports it."""
    chattr = shutil.which("chattr")
    if not chattr or subprocess.run([chattr, "+i", path], capture_output=True).returncode:
        pytest.skip("no chattr +i here: permission bits do not stop root")
    try:
        yield
    finally:
        subprocess.run([chattr, "-i", path], check=True)


def test_read_only_folder(store: Path, own_folder: Path) -> None:
    with immutable(own_folder):
        started = time.monotonic()
        line = refusal()
        assert time.monotonic() - started < 1
    assert line == f"cannot write the tracking store to {own_folder}: Operation not permitted"
    note("no-writing")


def test_read_only_database(store: Path) -> None:
    with immutable(store):
        assert refusal() == f"the tracking store {store} is not writable"
    note("no-writing")


def test_locked_database(store: Path) -> None:
    with closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert refusal() == f"{store} is locked by another program; stop it, or try again"


def test_lock_of_other_process(own_folder: Path) -> None:
    with sqlite.locked(own_folder / "mlflow.db"):
        assert refusal() == f"another process has held {own_folder}/.mlflow.db.lock for 0 s; stop it, or try again"


def test_file_that_is_not_sqlite(own_folder: Path) -> None:
    Path("mlflow.db").write_text("not a database, and long enough to be read as one " * 20)
    before = Path("mlflow.db").read_bytes()
    assert refusal() == f"{own_folder}/mlflow.db is not a SQLite database; name another file: sqlite:///PATH/mlflow.db"
    assert Path("mlflow.db").read_bytes() == before


def test_database_of_other_program(own_folder: Path) -> None:
    change(own_folder / "mlflow.db", "CREATE TABLE songs (title TEXT)", "INSERT INTO songs VALUES ('Lili')")
    assert (
        refusal() == f"{own_folder}/mlflow.db belongs to another program; name another file: sqlite:///PATH/mlflow.db"
    )
    assert names(own_folder) == ["mlflow.db"]


@pytest.mark.parametrize("more", [(), ("INSERT INTO runs VALUES ('0123')",)])
def test_incomplete_database(more: tuple[str, ...], own_folder: Path) -> None:
    path = own_folder / "mlflow.db"
    half_made(path, *more)
    before = path.read_bytes()
    assert refusal() == (
        f"{path} is incomplete: the program that created it was stopped too early; move it away, then try again"
    )
    assert path.read_bytes() == before
    assert names(own_folder) == ["mlflow.db"]


@pytest.mark.slow
def test_empty_file(own_folder: Path) -> None:
    path = own_folder / "mlflow.db"
    path.touch()
    opened = open_store(None, "adaptkit")
    assert opened.notices == ()
    assert schema._revision(path) == schema._migrations().get_current_head()
    assert names(own_folder) == ["mlflow.db"]


def test_schema_creation_that_never_ends(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "PATIENCE_SECONDS", 0.5)
    path = own_folder / "mlflow.db"
    half_made(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        ask = sqlite.ask_to_write  # skip the first check, which has no time limit
        monkeypatch.setattr(sqlite, "ask_to_write", lambda path, timeout=None: timeout is None or ask(path, timeout))
        other.execute("BEGIN IMMEDIATE")
        line = f"another program is still writing the schema of {path}; wait for it, then try again"
        assert refusal() == line
    assert names(own_folder) == ["mlflow.db"]


def test_schema_creation_by_other_program(empty_store: Path, own_folder: Path) -> None:
    path = own_folder / "mlflow.db"
    half_made(path)
    waiting = threading.Event()

    def finish() -> None:
        waiting.wait()
        for _ in range(4):  # each change is more recent than SETTLED_SECONDS
            time.sleep(0.1)
            os.utime(path)
        sqlite.copy(empty_store, path)

    thread = threading.Thread(target=finish)
    thread.start()
    waiting.set()
    opened = open_store(None, "adaptkit")
    thread.join()
    assert opened.notices == ()
    assert names(own_folder) == ["mlflow.db"]


def test_newer_schema(store: Path) -> None:
    change(store, "UPDATE alembic_version SET version_num = 'fffffffffff1'")
    assert refusal() == (
        f"{store} was made by a newer MLflow than the installed one (schema fffffffffff1): pip install --upgrade mlflow"
    )


def test_temporary_files_are_removed(store: Path, own_folder: Path) -> None:
    Path(".mlflow.db.new-0123456789ab").write_text("half")
    os.link(store, ".mlflow.db.new-linked")
    open_store(None, "adaptkit")
    assert names(own_folder) == ["mlflow.db"]


def test_missing_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "in-the-variable")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    started = time.monotonic()
    line = refusal(f"http://me:se@cret@127.0.0.1:{port}")
    assert time.monotonic() - started < 10
    assert line == f"cannot reach the MLflow server at http://127.0.0.1:{port}: Connection refused"


def test_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REACH_SECONDS", 0.3)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        assert refusal(f"http://127.0.0.1:{port}") == (
            f"cannot reach the MLflow server at http://127.0.0.1:{port}: no answer within 0 s"
        )


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    """Run a server that answers all requests with the same response; yield its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        try:
            yield service.server_port
        finally:
            service.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [401, 403])
def test_server_refuses_access(status: int) -> None:
    with answering(status, b"no") as port:
        assert refusal(f"http://me:secret@127.0.0.1:{port}") == (
            f"the MLflow server at http://127.0.0.1:{port} refuses access; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def test_server_that_is_not_mlflow() -> None:
    with answering(404, b"<html>secret</html>") as port:
        line = refusal(f"http://me:secret@127.0.0.1:{port}/page")
    assert line.startswith(f"the tracking store http://127.0.0.1:{port}/page failed: ")
    assert "secret" not in line


def test_unreachable_database_server(monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy

    def fail(uri: str) -> object:
        raise sqlalchemy.exc.ArgumentError(f"no answer from {uri}\n(Background on this error)")

    monkeypatch.setattr(sqlalchemy, "create_engine", fail)
    line = "cannot reach the tracking database at postgresql://127.0.0.1:1/runs: no answer from postgresql://127.0.0.1:1/runs"
    assert refusal("postgresql://me:secret@127.0.0.1:1/runs") == line


def test_passwords_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-7")
    uri = "https://me:p%40ss@host/mlflow/"
    opened = Store(uri, None, "7", "adaptkit", (), None)  # type: ignore[arg-type]
    assert opened.runs_url() == f"https://host/mlflow/#/experiments/7/runs?{CHARTS}"
    assert "p%40ss" not in repr(opened)
    assert opened.without_secrets(f"{uri} p@ss token-7") == "https://host/mlflow/ *** ***"
