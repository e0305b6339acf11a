"""Open MLflow's store safely, and find or make the experiment that runs go to."""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from adaptkit.errors import BadInput, suggestion
from adaptkit.system.imports import uncollected
from adaptkit.tracking.address import Address, resolve
from adaptkit.tracking.server import check_database, check_server, plain_server_error
from adaptkit.tracking.sqlite import check_writable, locked, prepare_schema

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment


@dataclass(frozen=True)
class Store:
    """An open tracking store, and the experiment that runs go to."""

    #: may hold a password: show it only through `without_secrets`
    uri: str = field(repr=False)
    client: MlflowClient = field(repr=False)
    experiment_id: str
    experiment_name: str
    #: lines to tell the user
    notices: tuple[str, ...]
    #: shows the store; None when a server shows it already
    ui_command: str | None

    @property
    def shown(self) -> str:
        """Return the address for people."""
        return resolve(self.uri).shown

    def runs_url(self) -> str:
        """Return the page of the experiment's charts."""
        return Address(self.uri).runs_url(self.experiment_id)

    def without_secrets(self, text: str) -> str:
        """Return a text about this store without users and passwords."""
        return Address(self.uri).without_secrets(text)


def open_store(uri: str | None, experiment: str) -> Store:
    """Open the store at `uri`, MLFLOW_TRACKING_URI or MLflow's default, and make the experiment if it is new.

    Raises BadInput when the store or the experiment cannot be used.
    """
    if not experiment.strip():
        raise BadInput("the experiment needs a name: --experiment NAME")
    address = resolve(uri)
    # Where the files are, when `mlflow.db` is a link: a lock or a second name beside the link would guard nothing.
    path = Path(os.path.realpath(address.path)) if address.path else None
    if path:
        check_writable(path)
    elif address.is_server:
        check_server(address)
    _prepare_mlflow(address)
    notices: tuple[str, ...] = ()
    with uncollected(), errors_as_lines(address):  # what the store needs of MLflow is imported when it is opened
        from mlflow import MlflowClient

        if path:
            notices = prepare_schema(path, address.uri)
        elif not address.is_server:
            check_database(address)
        client = MlflowClient(tracking_uri=address.uri)
        found, moved = _find_experiment(client, experiment, address, path)
    if not address.is_server:
        _check_artifacts(found.artifact_location)
    return Store(
        uri=address.uri,
        client=client,
        experiment_id=found.experiment_id,
        experiment_name=found.name,
        notices=(*notices, moved) if moved else notices,
        ui_command=address.ui_command,
    )


def open_existing(uri: str | None) -> tuple[Address, MlflowClient]:
    """Open the store at `uri`, MLFLOW_TRACKING_URI or MLflow's default to read what it holds.

    Raises BadInput when there is none, or it cannot be reached.
    """
    address = resolve(uri)
    path = Path(os.path.realpath(address.path)) if address.path else None
    if path and not path.is_file():
        raise BadInput(f"there is no tracking store at {path}: `adaptkit run` makes one; --tracking-uri names another")
    if address.is_server:
        check_server(address)
    _prepare_mlflow(address)
    with errors_as_lines(address):
        from mlflow import MlflowClient

        if path:
            prepare_schema(path, address.uri)  # of an older MLflow: it could not be read
        elif not address.is_server:
            check_database(address)
        return address, MlflowClient(tracking_uri=address.uri)


def existing_store(uri: str | None, experiment: str) -> Store | None:
    """Return the store and the experiment of this name, to read them; None if one of them is not there."""
    address = resolve(uri)
    if address.path and not Path(os.path.realpath(address.path)).is_file():
        return None
    address, client = open_existing(uri)
    with errors_as_lines(address):
        found = client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage == "deleted":
        return None
    return Store(address.uri, client, str(found.experiment_id), found.name, (), address.ui_command)


def existing_experiment(address: Address, client: MlflowClient, name: str) -> str:
    """Return the id of the experiment of this name; raise BadInput, with the nearest, when there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        known = [other.name for other in client.search_experiments(max_results=1000) if other.name != "Default"]
        raise BadInput(f"--experiment: there is no experiment {name!r} in {address.shown}{suggestion(name, known)}")
    if found.lifecycle_stage == "deleted":
        raise BadInput(_deleted_line(found, address))
    return str(found.experiment_id)


def _prepare_mlflow(address: Address) -> None:
    """Set what MLflow reads when it is imported, and keep it off the terminal: what fails is also raised."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if address.is_server:  # by default a dead server blocks each call for four minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    with uncollected(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # in a notebook: its bars are off
        import mlflow  # noqa: F401  (it sets its loggers' levels: ours come after)

    if "MLFLOW_LOGGING_LEVEL" in os.environ:
        return
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    for name in ("mlflow.store", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def errors_as_lines(address: Address) -> Iterator[None]:
    """Turn MLflow's and the database's errors into one line, without passwords."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException  # what MLflow lets through of a server that keeps artifacts
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        line = plain_server_error(address, error) if address.is_server else None
        reason = address.without_secrets(str(error).strip().split("\n")[0])
        # Without the cause: its text may hold the password.
        raise BadInput(line or f"the tracking store {address.shown} failed: {reason}") from None


def _find_experiment(
    client: MlflowClient, name: str, address: Address, path: Path | None
) -> tuple[Experiment, str | None]:
    """Return the experiment of this name, or of `name-2` and so on while its artifacts could not be kept."""
    unusable, number = None, 1
    while True:
        candidate = name if number == 1 else f"{name}-{number}"
        found = client.get_experiment_by_name(candidate)
        if found is None:
            found, problem = _create_experiment(client, candidate, path), None
        elif found.lifecycle_stage == "deleted":
            if number == 1:
                raise BadInput(_deleted_line(found, address))
            problem = "was deleted"
        else:
            problem = None if address.is_server else _artifact_problem(found.artifact_location, path)
        if problem is None:
            moved = f"experiment {name!r} {unusable}: these runs go to {candidate!r}"
            return found, moved if unusable else None
        unusable, number = unusable or problem, number + 1


def _create_experiment(client: MlflowClient, name: str, path: Path | None) -> Experiment:
    """Make an experiment, or take the one that another process has made meanwhile."""
    from mlflow.exceptions import MlflowException

    location = None
    if path and path.parent != Path(os.path.realpath(Path.cwd())):
        # MLflow's own choice is the current folder; artifacts belong beside the database that lists them.
        folder = re.sub(r"[^\w.-]+", "-", name).strip(".-") or "experiment"
        location = str(path.parent / "mlruns" / folder)
    turn: AbstractContextManager[None] = locked(path) if path else nullcontext()
    with turn:
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    found = client.get_experiment_by_name(name)
    assert found is not None
    return found


def _artifact_problem(location: str, path: Path | None) -> str | None:
    """Return why artifacts cannot be kept at an experiment's location when no server is asked, else None."""
    if location.startswith("mlflow-artifacts:"):
        return "was made by an MLflow server, which alone can reach its artifacts"
    if path is None or urlsplit(location).scheme not in ("", "file"):
        return None
    local = Path(unquote(urlsplit(location).path) if location.startswith("file:") else location)
    home = local.parent.parent
    if local.parent.name != "mlruns" or os.path.realpath(home) == str(path.parent):
        return None
    # A database may have been given its own place on purpose: then its artifacts are where they were,
    # and no other database claims them.
    if local.parent.is_dir() and not (home / path.name).exists():
        return None
    return f"keeps its artifacts in {local}, a folder from which this database was moved or copied"


def _check_artifacts(location: str) -> None:
    """Refuse a local artifact folder that cannot be written, before anything is trained."""
    scheme = urlsplit(location).scheme
    if scheme not in ("", "file"):
        return
    folder = Path(unquote(urlsplit(location).path) if scheme else location)
    try:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"0")
    except OSError as error:
        raise BadInput(f"cannot write artifacts to {folder}: {error.strerror or error}") from None


def _deleted_line(found: Experiment, address: Address) -> str:
    where = "" if address.is_default else f"MLFLOW_TRACKING_URI={shlex.quote(address.without_secrets(address.uri))} "
    return (
        f"experiment {found.name!r} was deleted in MLflow: restore it with "
        f"`{where}mlflow experiments restore --experiment-id {found.experiment_id}`, or choose another --experiment"
    )
