"""Check, lock, create and upgrade the SQLite database of a tracking store."""

from __future__ import annotations

import functools
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from adaptkit.errors import BadInput
from adaptkit.tracking.address import sqlite_address

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

#: maximum time to wait for a transaction of another program, as in MLflow
BUSY_SECONDS = 20.0
#: maximum time to wait for the lock; no process holds it for longer
LOCK_SECONDS = 120.0


def connect(path: Path, timeout: float | None = None) -> sqlite3.Connection:
    """Open an existing database."""
    seconds = BUSY_SECONDS if timeout is None else timeout
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=seconds, isolation_level=None)


def copy(source: Path, target: Path) -> None:
    """Copy a database in one transaction, so that concurrent changes do not damage the copy."""
    with closing(connect(source)) as old, closing(sqlite3.connect(target, timeout=BUSY_SECONDS)) as new:
        old.backup(new)


def ask_to_write(path: Path, timeout: float | None = None) -> None:
    """Open and close a write transaction; this fails while another program is writing."""
    with closing(connect(path, timeout)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")


def check_writable(path: Path) -> None:
    """Raise BadInput at once if the database cannot be written: MLflow itself would retry for 101 s."""
    folder = path.parent
    try:
        os.stat(folder)
        # Write a file: permission bits do not show a read-only mount or a full disk.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except FileNotFoundError:
        raise BadInput(f"the folder {folder} of the tracking store does not exist; create it first") from None
    except OSError as error:
        raise BadInput(f"cannot write the tracking store to {folder}: {error.strerror or error}") from error
    if path.is_dir():
        raise BadInput(f"the tracking store {path} is a folder; name a file in it: sqlite:///{path}/mlflow.db")
    # Do not open the file to test it: closing it would release the locks of SQLite in this process.
    if path.exists() and not os.access(path, os.W_OK):
        raise BadInput(f"the tracking store {path} is not writable")
    with explained(path):
        if path.exists():
            ask_to_write(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file next to the database `path`, so that only one process of adaptkit prepares the store."""
    from filelock import FileLock, Timeout

    lock = path.with_name(f".{path.name}.lock")
    guard = FileLock(str(lock), timeout=LOCK_SECONDS)
    try:
        guard.acquire()
    except Timeout:
        raise BadInput(f"another process has held {lock} for {LOCK_SECONDS:.0f} s; stop it, or try again") from None
    except (OSError, NotImplementedError) as error:
        raise BadInput(f"cannot lock {lock}: {error}") from error
    try:
        yield
    finally:
        guard.release()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Convert errors of SQLite and of the system to BadInput."""
    try:
        yield
    except sqlite3.Error as error:
        messages = {
            sqlite3.SQLITE_NOTADB: f"{path} is not a SQLite database; name another file: sqlite:///PATH/mlflow.db",
            sqlite3.SQLITE_BUSY: f"{path} is locked by another program; stop it, or try again",
            sqlite3.SQLITE_READONLY: f"the tracking store {path} is not writable",
            sqlite3.SQLITE_FULL: f"no space is left for the tracking store {path}",
        }
        # The low byte is the kind of the error.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise BadInput(messages.get(code, f"the tracking store {path} cannot be opened: {error}")) from error
    except OSError as error:
        raise BadInput(f"the tracking store {path} cannot be created: {error.strerror or error}") from error


#: maximum time to wait for another program that is creating or upgrading the schema
PATIENCE_SECONDS = 60.0
#: time without changes after which the schema counts as complete
SETTLED_SECONDS = 4.0


def prepare_schema(path: Path, uri: str) -> tuple[str, ...]:
    """Create or upgrade the schema of a database for the installed MLflow; return notices for the user.

    Raises BadInput if the file belongs to another program, is incomplete, or was created by a newer MLflow.
    """
    scripts = _migrations()
    head = scripts.get_current_head()
    with explained(path):
        if not _unfinished_files(path) and path.exists() and _revision(path) == head:
            return ()
    with locked(path), explained(path):
        for unfinished in _unfinished_files(path):
            unfinished.unlink(missing_ok=True)  # left by a killed process: a running one would hold the lock
        if not path.exists():
            _create(path, _publish)
        revision = _settled_revision(path, head)
        if path.stat().st_size == 0:  # created by hand, or by a process that was killed in `_publish`
            _create(path, os.replace)
            revision = head
        return () if revision == head else (_upgrade(path=path, uri=uri, revision=revision, scripts=scripts),)


@functools.cache
def _migrations() -> ScriptDirectory:
    """Return the migrations of the installed MLflow; cached, since MLflow never frees them."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))


def _unfinished_files(path: Path) -> list[Path]:
    """Return the databases with a temporary name: another process is creating them, or was killed."""
    return list(path.parent.glob(f".{path.name}.new-*"))


def _tables(database: sqlite3.Connection) -> set[str]:
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in rows if not name.startswith("sqlite_")}


def _revision(path: Path, timeout: float | None = None) -> str | None:
    """Return the schema revision of a database, None if it has none."""
    with closing(connect(path, timeout)) as database:
        if "alembic_version" not in _tables(database):
            return None
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None


def _settled_revision(path: Path, head: str | None) -> str | None:
    """Wait while another program, such as `mlflow ui`, creates the schema; return the final revision."""
    started = time.monotonic()
    while True:
        try:
            revision = _revision(path, timeout=0)
            if revision == head:
                return revision
            ask_to_write(path, timeout=0)  # fails while another program is writing
            if abs(time.time() - path.stat().st_mtime) > SETTLED_SECONDS:
                return revision
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        if time.monotonic() - started > PATIENCE_SECONDS:
            raise BadInput(f"another program is still writing the schema of {path}; wait for it, then try again")
        time.sleep(0.05)


def _upgrade(path: Path, uri: str, revision: str | None, scripts: ScriptDirectory) -> str:
    """Upgrade the database of an older MLflow; return a notice with the name of the backup.

    Raises BadInput if it is not the database of an older MLflow, or if the upgrade fails.
    """
    from alembic.util import CommandError

    with closing(connect(path)) as database:
        tables = _tables(database) - {"alembic_version"}
    if tables and not tables & {"experiments", "_alembic_tmp_experiments"}:
        raise BadInput(f"{path} belongs to another program; name another file: sqlite:///PATH/mlflow.db")
    if revision is None:
        raise BadInput(
            f"{path} is incomplete: the program that created it was stopped too early; move it away, then try again"
        )
    try:
        scripts.get_revision(revision)
    except CommandError:
        raise BadInput(
            f"{path} was made by a newer MLflow than the installed one (schema {revision}): "
            "pip install --upgrade mlflow"
        ) from None
    backup = _free_name(path, f"backup-{revision}")
    copy(path, backup)
    # MLflow's documented command, in a separate process because it prints.
    command = [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", uri]
    if subprocess.run(command, capture_output=True).returncode:
        copy(backup, path)
        backup.unlink()
        raise BadInput(
            f"{path} could not be upgraded and is unchanged: `mlflow db upgrade {uri}` shows the reason; "
            "move it away to start with a new one"
        )
    return f"{path} was upgraded to the schema of the installed MLflow; the previous version is kept in {backup.name}"


def _free_name(path: Path, ending: str) -> Path:
    """Return `<path>.<ending>`, with -2, -3 and so on appended if that exists."""
    names = (f"{path.name}.{ending}" + (f"-{number}" if number > 1 else "") for number in count(1))
    return next(free for name in names if not (free := path.with_name(name)).exists())


def _create(path: Path, rename: Callable[[Path, Path], None]) -> None:
    """Create a database under a temporary name, and call `rename` when it is complete."""
    from mlflow import MlflowClient

    if {"'", '"'} <= set(str(Path.cwd())):  # MLflow puts the name into a statement without quoting it
        raise BadInput(
            "MLflow cannot create a database here: the current folder has both ' and \" in its name; rename it"
        )
    temporary = path.with_name(f".{path.name}.new-{uuid4().hex[:12]}")
    try:
        MlflowClient(tracking_uri=sqlite_address(temporary).uri)
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Rename a complete database unless a file with the new name exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return
        os.replace(temporary, path)
