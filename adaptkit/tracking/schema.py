"""Give a SQLite file MLflow's schema, whoever else opens the file at the same moment.

MLflow creates its tables in place, one migration after another and without a lock: two first starts at once, or one
that is killed, leave a file that MLflow refuses for good. So the schema is made in memory and gets its name when whole.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from contextlib import closing
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from adaptkit.errors import BadInput
from adaptkit.tracking.address import sqlite_address
from adaptkit.tracking.sqlite import ask_to_write, connect, copy, explained, locked

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

PATIENCE_SECONDS = 60.0  # for another program that is creating or upgrading the schema
SETTLED_SECONDS = 4.0  # without a change, after which nobody is at work on the schema
UNTOUCHED_SECONDS = 60.0  # age of a file that nobody can still be creating


def prepare_schema(path: Path, uri: str) -> tuple[str, ...]:
    """Make `path` hold the schema of the installed MLflow; return what the user should be told.

    Raises BadInput when the file is another program's, is broken but holds runs, or was made by a newer MLflow.
    """
    scripts = _migrations()
    head = scripts.get_current_head()
    with explained(path):
        if not _stale_files(path) and path.exists() and _revision(path) == head:
            return ()
    notices: list[str] = []
    with locked(path), explained(path):
        for stale in _stale_files(path):
            stale.unlink(missing_ok=True)  # whoever was making it held this lock, and is dead
        # A program without the lock (`mlflow ui`) may create the file between any two steps: look again after each.
        for _ in range(10):
            if not path.exists():
                _create(path, head)
            elif (revision := _settled_revision(path, head)) == head:
                return tuple(notices)
            else:
                notices.append(_mend(path, uri, revision, scripts))
    raise BadInput(f"another program keeps breaking {path}; stop it, then try again")


@functools.cache
def _migrations() -> ScriptDirectory:
    """Return the migrations that the installed MLflow knows; once, since each reading of them stays in memory."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))


def _stale_files(path: Path) -> list[Path]:
    """Return the files that are being made beside `path`, or were when a process was killed."""
    return list(path.parent.glob(f".{path.name}.new-*"))


def _tables(database: sqlite3.Connection) -> list[str]:
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return [name for (name,) in rows if not name.startswith("sqlite_")]


def _revision(path: Path, timeout: float | None = None) -> str | None:
    """Return the schema revision of a database, None if it has none."""
    with closing(connect(path, timeout)) as database:
        if "alembic_version" not in _tables(database):
            return None
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None


def _settled_revision(path: Path, head: str | None) -> str | None:
    """Wait while another program is at work on the schema; return the revision that stays."""
    started = changed = time.monotonic()
    before: object = None
    while True:
        revision, modified = None, None
        try:
            revision = _revision(path, timeout=0)
            if revision == head:
                return revision
            ask_to_write(path, timeout=0)  # fails while a writer is between two changes that can be seen
            modified = path.stat().st_mtime
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        if modified is not None and time.time() - modified > UNTOUCHED_SECONDS:
            return revision
        now = time.monotonic()
        if modified is None or (revision, modified) != before:
            before, changed = (revision, modified), now
        elif now - changed > SETTLED_SECONDS:
            return revision
        if now - started > PATIENCE_SECONDS:
            raise BadInput(f"another program is still writing the schema of {path}; wait for it, then try again")
        time.sleep(0.05)


def _mend(path: Path, uri: str, revision: str | None, scripts: ScriptDirectory) -> str:
    """Upgrade an older database, or move a broken one aside; return a line that says so."""
    from alembic.util import CommandError

    with closing(connect(path)) as database:
        tables = set(_tables(database)) - {"alembic_version"}
        if tables and not tables & {"experiments", "_alembic_tmp_experiments"}:
            raise BadInput(f"{path} belongs to another program; name another file: sqlite:///PATH/mlflow.db")
        content = any(_has_content(database, table) for table in tables)
    try:
        if revision is not None:
            scripts.get_revision(revision)
    except CommandError:
        raise BadInput(
            f"{path} was made by a newer MLflow than the installed one (schema {revision}): "
            "pip install --upgrade mlflow"
        ) from None
    if not content:
        aside = _free_name(path, (f"broken-{number}" for number in count(1)))
        for suffix in ("", "-journal", "-wal", "-shm"):
            if (part := path.with_name(path.name + suffix)).exists():
                part.rename(aside.with_name(aside.name + suffix))
        return f"{path} was half-made and held no runs: moved to {aside.name}, and made anew"
    if revision is None:
        raise BadInput(f"{path} is broken but holds runs: its schema has no revision; move it away and try again")
    ending = f"backup-{revision}"
    backup = _free_name(path, chain([ending], (f"{ending}-{number}" for number in count(2))))
    copy(path, backup)
    # MLflow's documented way, in a process of its own because it prints.
    command = [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", uri]
    if subprocess.run(command, capture_output=True).returncode:
        copy(backup, path)
        backup.unlink()
        raise BadInput(f"{path} could not be upgraded and is as it was; `mlflow db upgrade {uri}` shows why")
    return f"{path} was upgraded to the installed MLflow's schema; as it was before, it is kept in {backup.name}"


def _has_content(database: sqlite3.Connection, table: str) -> bool:
    """Tell whether a table holds more than what MLflow puts into a new one."""
    if table == "workspaces":
        return False
    made_by_mlflow = " WHERE experiment_id <> 0" if table in ("experiments", "_alembic_tmp_experiments") else ""
    return database.execute(f'SELECT 1 FROM "{table}"{made_by_mlflow} LIMIT 1').fetchone() is not None


def _free_name(path: Path, endings: Iterable[str]) -> Path:
    """Return the first `<path>.<ending>` that does not exist."""
    return next(free for ending in endings if not (free := path.with_name(f"{path.name}.{ending}")).exists())


def _create(path: Path, head: str | None) -> None:
    """Make a new database in memory; give it its name only when it is whole, and never over another file."""
    from mlflow import MlflowClient

    temporary = path.with_name(f".{path.name}.new-{uuid4().hex[:12]}")
    memory = f"file:adaptkit-{uuid4().hex}?mode=memory&cache=shared"
    try:
        # In memory it takes half the time of a file, which is synced after each migration; and a kill leaves nothing.
        with closing(sqlite3.connect(memory, uri=True)) as source, closing(sqlite3.connect(temporary)) as target:
            with warnings.catch_warnings():
                # SQLAlchemy is about to choose another pool for such an address: as good, while `source` is open.
                warnings.filterwarnings("ignore", "Selection of the SingletonThreadPool", DeprecationWarning)
                MlflowClient(tracking_uri=f"sqlite:///{memory}&uri=true")
            source.backup(target)
        if _revision(temporary) != head:  # an SQLite that was built without the shared cache
            temporary.unlink()
            MlflowClient(tracking_uri=sqlite_address(temporary).uri)
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, unless the name is taken."""
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
