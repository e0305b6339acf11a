"""Open the tracking store, and find or create the experiment for the runs."""

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

from adaptkit.errors import BadInput, suggestion
from adaptkit.settings.settings import DEFAULT_EXPERIMENT
from adaptkit.system.imports import uncollected
from adaptkit.tracking.address import Address, artifact_address, local_path, resolve
from adaptkit.tracking.server import check_database, check_server, plain_server_error
from adaptkit.tracking.sqlite import check_writable, locked, prepare_schema

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

#: MLflow's environment variables for the experiment
NAME_VARIABLE, ID_VARIABLE = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"


@dataclass(frozen=True)
class Store:
    """An open tracking store with the experiment for the runs."""

    #: may contain a password: show it only through `without_secrets`
    uri: str = field(repr=False)
    client: MlflowClient = field(repr=False)
    experiment_id: str
    experiment_name: str
    #: messages for the user
    notices: tuple[str, ...]
    #: the command that starts a user interface; None for an MLflow server
    ui_command: str | None

    @property
    def shown(self) -> str:
        """Return the address as messages show it."""
        return resolve(self.uri).shown

    def runs_url(self) -> str:
        """Return the address of the page with the charts of the experiment."""
        return Address(self.uri).runs_url(self.experiment_id)

    def without_secrets(self, text: str) -> str:
        """Remove user names and passwords from a text about this store."""
        return Address(self.uri).without_secrets(text)


def open_store(uri: str | None, experiment: str | None) -> Store:
    """Open a store for writing, and create the experiment if it does not exist.

    Without `uri`, MLFLOW_TRACKING_URI and MLflow's default apply; without `experiment`, see `experiment_name`. Raises
    BadInput if the store or the experiment cannot be used.
    """
    if experiment is not None and not experiment.strip():
        raise BadInput("the experiment needs a name: --experiment NAME")
    address = resolve(uri)
    # Resolve links: the lock and the temporary files must be in the folder of the database itself.
    path = Path(os.path.realpath(address.path)) if address.path else None
    if path:
        check_writable(path)
    elif address.is_server:
        check_server(address)
    _prepare_mlflow(address)
    notices: tuple[str, ...] = ()
    with uncollected(), errors_as_lines(address):  # MLflow imports more modules when it opens a store
        from mlflow import MlflowClient

        if path:
            notices = prepare_schema(path, address.uri)
        elif not address.is_server:
            check_database(address)
        client = MlflowClient(tracking_uri=address.uri)
        name = experiment_name(client, address, experiment)
        used, notice = _find_experiment(client=client, name=name, address=address, path=path)
    if not address.is_server:
        _check_artifacts(used.artifact_location)
    return Store(
        uri=address.uri,
        client=client,
        experiment_id=used.experiment_id,
        experiment_name=used.name,
        notices=(*notices, notice) if notice else notices,
        ui_command=address.ui_command,
    )


def open_existing(uri: str | None) -> tuple[Address, MlflowClient]:
    """Open an existing store for reading; raise BadInput if it does not exist or cannot be reached.

    Without `uri`, MLFLOW_TRACKING_URI and MLflow's default apply.
    """
    address = resolve(uri)
    path = Path(os.path.realpath(address.path)) if address.path else None
    if path and not path.is_file():
        raise BadInput(f"no tracking store at {path}: create one with `adaptkit run`, or name one with --tracking-uri")
    if address.is_server:
        check_server(address)
    _prepare_mlflow(address)
    with errors_as_lines(address):
        from mlflow import MlflowClient

        if path:
            prepare_schema(path, address.uri)  # upgrade a database of an older MLflow, which cannot be read otherwise
        elif not address.is_server:
            check_database(address)
        return address, MlflowClient(tracking_uri=address.uri)


def existing_store(uri: str | None, experiment: str | None) -> Store | None:
    """Open an existing store and experiment for reading; return None if one of them does not exist."""
    address = resolve(uri)
    if address.path and not Path(os.path.realpath(address.path)).is_file():
        return None
    address, client = open_existing(uri)
    with errors_as_lines(address):
        existing = client.get_experiment_by_name(experiment_name(client, address, experiment))
    if existing is None or existing.lifecycle_stage == "deleted":
        return None
    return Store(
        uri=address.uri,
        client=client,
        experiment_id=str(existing.experiment_id),
        experiment_name=existing.name,
        notices=(),
        ui_command=address.ui_command,
    )


def experiment_name(client: MlflowClient, address: Address, name: str | None) -> str:
    """Return the name of an experiment: `name`, or that of MLflow's environment variables, or the default.

    Raises BadInput if MLFLOW_EXPERIMENT_ID is not the id of an experiment, or contradicts MLFLOW_EXPERIMENT_NAME.
    """
    if name is not None:
        return name
    named, number = (os.environ.get(variable) for variable in (NAME_VARIABLE, ID_VARIABLE))
    if not number:
        return named or DEFAULT_EXPERIMENT
    from mlflow.exceptions import MlflowException

    try:
        experiment = client.get_experiment(number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise BadInput(
            f"{ID_VARIABLE}: there is no experiment {number!r} in {address.shown}; unset it, or use --experiment NAME"
        ) from None
    if named and experiment.name != named:
        raise BadInput(
            f"{NAME_VARIABLE} is {named!r}, and {ID_VARIABLE} is the id of {experiment.name!r}; "
            "unset one of them, or use --experiment NAME"
        )
    return str(experiment.name)


def existing_experiment(address: Address, client: MlflowClient, name: str | None) -> str:
    """Return the id of an experiment; raise BadInput with the most similar name if it does not exist.

    Without `name`, see `experiment_name`.
    """
    chosen = experiment_name(client, address, name)
    existing = client.get_experiment_by_name(chosen)
    if existing is None:
        origin = NAME_VARIABLE if name is None and os.environ.get(NAME_VARIABLE) else "--experiment"
        names = [other.name for other in client.search_experiments(max_results=1000) if other.name != "Default"]
        raise BadInput(f"{origin}: no experiment {chosen!r} in {address.shown}{suggestion(chosen, names)}")
    if existing.lifecycle_stage == "deleted":
        raise BadInput(_deleted_line(existing, address))
    return str(existing.experiment_id)


def _prepare_mlflow(address: Address) -> None:
    """Set MLflow's environment variables, import it, and silence its loggers: it also raises what it logs as errors."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if address.is_server:  # by default, each call to a dead server takes four minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    with uncollected(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # in a notebook; progress bars are off
        import mlflow  # noqa: F401  (before the levels of its loggers are set)

    if "MLFLOW_LOGGING_LEVEL" in os.environ:
        return
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    for name in ("mlflow.store", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def errors_as_lines(address: Address) -> Iterator[None]:
    """Convert errors of MLflow and of the database to BadInput, without passwords."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException  # MLflow does not convert the errors of artifact servers
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        line = plain_server_error(address, error) if address.is_server else None
        reason = address.without_secrets(str(error).strip().split("\n")[0])
        # Without the cause: its text may contain the password.
        raise BadInput(line or f"the tracking store {address.shown} failed: {reason}") from None


def _find_experiment(
    client: MlflowClient, name: str, address: Address, path: Path | None
) -> tuple[Experiment, str | None]:
    """Return the experiment, and a notice if it has another name, such as `name-2`, because `name` cannot be used."""
    unusable, number = None, 1
    while True:
        candidate = name if number == 1 else f"{name}-{number}"
        experiment = client.get_experiment_by_name(candidate)
        if experiment is None:
            experiment, problem = _create_experiment(client, candidate, path=path, is_server=address.is_server), None
        elif experiment.lifecycle_stage == "deleted":
            if number == 1:
                raise BadInput(_deleted_line(experiment, address))
            problem = "was deleted"
        else:
            problem = None if address.is_server else _artifact_problem(experiment.artifact_location, path)
        if problem is None:
            notice = f"experiment {name!r} {unusable}: these runs are in {candidate!r}"
            return experiment, notice if unusable else None
        unusable, number = unusable or problem, number + 1


def _create_experiment(client: MlflowClient, name: str, *, path: Path | None, is_server: bool) -> Experiment:
    """Create an experiment, or return the one that another process has just created."""
    from mlflow.exceptions import MlflowException

    here = Path(os.path.realpath(Path.cwd()))
    home = path.parent if path else here
    location = None
    # By default, MLflow stores artifacts in the current folder, with an address that it does not quote.
    if not is_server and (home != here or artifact_address(home) != str(home)):
        folder = re.sub(r"[^\w.-]+", "-", name).strip(".-") or "experiment"
        location = artifact_address(home / "mlruns" / folder)
    lock: AbstractContextManager[None] = locked(path) if path else nullcontext()
    with lock:
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return experiment


def _artifact_problem(location: str, path: Path | None) -> str | None:
    """Return why this machine cannot write artifacts to the location of an experiment; None if it can."""
    if location.startswith("mlflow-artifacts:"):
        return "was created by an MLflow server, and only the server can write its artifacts"
    local = local_path(location)
    if path is None or local is None:
        return None
    if str(local) != location and not location.startswith("file:"):
        return f"has its artifacts in {local}, because its address was not quoted"
    home = local.parent.parent
    if local.parent.name != "mlruns" or os.path.realpath(home) == str(path.parent):
        return None
    # A database may intentionally be in another folder than its artifacts. Then the folder of the artifacts exists and
    # does not contain another database.
    if local.parent.is_dir() and not (home / path.name).exists():
        return None
    return f"has its artifacts in {local}, a folder from which this database was moved or copied"


def _check_artifacts(location: str) -> None:
    """Raise BadInput if the local artifact folder cannot be written."""
    folder = local_path(location)
    if folder is None:
        return
    try:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"0")
    except OSError as error:
        raise BadInput(f"cannot write artifacts to {folder}: {error.strerror or error}") from None


def _deleted_line(experiment: Experiment, address: Address) -> str:
    where = "" if address.is_default else f"MLFLOW_TRACKING_URI={shlex.quote(address.without_secrets(address.uri))} "
    return (
        f"experiment {experiment.name!r} was deleted in MLflow: restore it with "
        f"`{where}mlflow experiments restore --experiment-id {experiment.experiment_id}`, or choose another name "
        "with --experiment"
    )
