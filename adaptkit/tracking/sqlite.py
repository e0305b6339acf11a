"""Handle the SQLite file of a tracking store: may it be written, whose turn is it, and what is wrong with it."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from adaptkit.errors import BadInput

BUSY_SECONDS = 20.0  # for another program's transaction; MLflow itself waits as long
LOCK_SECONDS = 120.0  # longer than anybody works under the lock, so that the process in front gives up first


def connect(path: Path, timeout: float | None = None) -> sqlite3.Connection:
    """Open an existing database, never create one."""
    seconds = BUSY_SECONDS if timeout is None else timeout
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=seconds, isolation_level=None)


def copy(source: Path, target: Path) -> None:
    """Copy a whole database in one transaction, whatever others do to it meanwhile."""
    with closing(connect(source)) as old, closing(sqlite3.connect(target, timeout=BUSY_SECONDS)) as new:
        old.backup(new)


def ask_to_write(path: Path, timeout: float | None = None) -> None:
    """Open a write transaction and drop it: fails while another program is writing."""
    with closing(connect(path, timeout)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")


def check_writable(path: Path) -> None:
    """Refuse a database that cannot be written, at once: MLflow itself retries for 101 s and shows a traceback."""
    folder = path.parent
    try:
        os.stat(folder)
        # Really write: permission bits say nothing about root, a read-only mount or a full disk.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except FileNotFoundError:
        raise BadInput(f"the folder {folder} of the tracking store does not exist; create it first") from None
    except OSError as error:
        raise BadInput(f"cannot write the tracking store to {folder}: {error.strerror or error}") from error
    if path.is_dir():
        raise BadInput(f"the tracking store {path} is a folder; name a file in it: sqlite:///{path}/mlflow.db")
    # SQLite opens such a file all the same and begins to write; closing a handle of ours would drop SQLite's locks.
    if path.exists() and not os.access(path, os.W_OK):
        raise BadInput(f"the tracking store {path} is not writable")
    with explained(path):
        if path.exists():
            ask_to_write(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside the database `path`; adaptkit's processes prepare a store one after another."""
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
    """Turn SQLite's and the system's errors into one line."""
    try:
        yield
    except sqlite3.Error as error:
        known = {
            sqlite3.SQLITE_NOTADB: f"{path} is not a SQLite database; name another file: sqlite:///PATH/mlflow.db",
            sqlite3.SQLITE_BUSY: f"{path} is locked by another program; stop it, or try again",
            sqlite3.SQLITE_READONLY: f"the tracking store {path} is not writable",
            sqlite3.SQLITE_FULL: f"no space is left for the tracking store {path}",
        }
        # The low byte is the kind of an error; the rest says more closely where it came from.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise BadInput(known.get(code, f"the tracking store {path} cannot be opened: {error}")) from error
    except OSError as error:
        raise BadInput(f"the tracking store {path} cannot be made: {error.strerror or error}") from error
