"""Find out which tracking store is meant, and show its address to people without the passwords in it."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from adaptkit.errors import BadInput, suggestion, without_secrets
from adaptkit.names import REPORT_FILE

SERVERS = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")
#: where `mlflow ui` listens unless it is told otherwise
UI_PORT = 5000
#: MLflow's own start page shows something else, and is empty. Sorted by time, runs hide behind the run that groups
#: them; and only the first ten are drawn: by seed, they are of every strategy.
CHARTS = (
    "workflowType=machine_learning&compareRunsMode=CHART&searchFilter=tags.adaptkit.kind%3D%27adaptation%27"
    "&orderByKey=params.%60seed%60&orderByAsc=true"
)


@dataclass(frozen=True)
class Address:
    """Where a tracking store is: a SQLite file (`path`), a database server or an MLflow server."""

    uri: str = field(repr=False)
    path: Path | None = None

    @property
    def is_server(self) -> bool:
        """Tell whether an MLflow server keeps this store."""
        return self.uri.startswith(tuple(f"{scheme}:" for scheme in SERVERS))

    @property
    def is_default(self) -> bool:
        """Tell whether MLflow's own commands find this store when they are typed in the current folder."""
        here = self.path is not None and self.path == Path.cwd() / "mlflow.db"
        return here and not os.environ.get("MLFLOW_BACKEND_STORE_URI") and not _has_file_store(Path("mlruns"))

    @property
    def shown(self) -> str:
        """Return the address for people: without user, password and options."""
        return str(self.path) if self.path else re.sub("://.*@", "://", self.uri.split("?")[0], flags=re.DOTALL)

    @property
    def ui_command(self) -> str | None:
        """Return the command that shows this store, None when a server shows it already."""
        if self.is_server:
            return None
        if self.is_default:
            return "mlflow ui"
        # A password does not belong on the screen: its place stays to be filled in.
        return f"mlflow ui --backend-store-uri {shlex.quote(re.sub('://.*@', '://***@', self.uri, flags=re.DOTALL))}"

    def runs_url(self, experiment_id: str | None, port: int = UI_PORT) -> str:
        """Return the page of an experiment's charts, or of all experiments, at the server or at `mlflow ui`'s port."""
        page = self._page(port)
        if experiment_id is None:
            return f"{page}/#/experiments?workflowType=machine_learning"
        return f"{page}/#/experiments/{experiment_id}/runs?{CHARTS}"

    def report_url(self, experiment_id: str, run_id: str) -> str:
        """Return the page of a comparison run's report, at the server or at `mlflow ui`'s port."""
        return f"{self._page(UI_PORT)}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/{REPORT_FILE}"

    def _page(self, port: int) -> str:
        return self.shown.rstrip("/") if self.is_server else f"http://127.0.0.1:{port}"

    def without_secrets(self, text: str) -> str:
        """Return a text about this store without users and passwords."""
        found = re.match("[^/]+://[^:]*:(.*)@", self.uri, flags=re.DOTALL)
        return without_secrets(text, {found[1], unquote(found[1])} if found else ())


def resolve(uri: str | None) -> Address:
    """Return the store that is meant: the given one, else MLFLOW_TRACKING_URI's, else MLflow's own default.

    Raises BadInput for a file store, and for an address that MLflow has no store for.
    """
    given = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        if _has_file_store(Path("mlruns")):
            raise BadInput(_file_store_line())
        return sqlite_address(Path.cwd() / "mlflow.db")
    scheme = match[1].lower() if (match := re.match(r"([\w+.-]{2,}):", given)) else ""
    kind = scheme.split("+")[0]
    if kind == "sqlite":
        return _sqlite(given)
    if kind in (*SERVERS, *DATABASES):
        address = Address(f"{scheme}{given[len(scheme) :]}")
        if not (_names_a_host(given) if kind in SERVERS else given[len(scheme) :].startswith("://")):
            raise BadInput(f"{_without_login(given)} is no address of a tracking store; write {scheme}://HOST:PORT")
        return address
    if scheme in ("", "file") and not given.startswith("databricks"):
        raise BadInput(_no_file_store(given))
    scheme = scheme or "databricks"
    raise BadInput(
        f"adaptkit cannot track to {scheme!r} addresses{suggestion(scheme, ('sqlite', *SERVERS, *DATABASES))}"
    )


def tracking_option(uri: str) -> str:
    """Return ` --tracking-uri URI`, without secrets, if a command that is typed here would mean another store."""
    address = resolve(uri)
    try:
        if resolve(None).shown == address.shown:
            return ""
    except BadInput:
        pass
    return f" --tracking-uri {shlex.quote(address.without_secrets(address.uri))}"


def sqlite_address(path: Path, options: str = "") -> Address:
    """Return the address of a database file."""
    # Only what an address would read as something else is quoted: MLflow makes a folder of the quoted name.
    name = path.as_posix().replace("%", "%25").replace("?", "%3F")
    return Address(f"sqlite:///{name}{options}", path)


def _sqlite(uri: str) -> Address:
    parts = re.fullmatch(r"sqlite(?:\+pysqlite)?:///([^?]*)(\?.*)?", uri, flags=re.IGNORECASE)
    name = unquote(parts[1]) if parts else ""
    if parts is None or not name or name.startswith((":memory:", "file:")):
        raise BadInput(f"{_without_login(uri)} names no database file; write sqlite:///PATH/mlflow.db")
    return sqlite_address(Path(os.path.abspath(name)), parts[2] or "")


def _names_a_host(uri: str) -> bool:
    if not uri.isprintable() or " " in uri:  # a line break in its midst would be dropped, and its login be shown
        return False
    try:
        parts = urlsplit(uri)
        return parts.port != 0 and bool(parts.hostname)
    except ValueError:  # a port or a bracket that is none
        return False


def _without_login(uri: str) -> str:
    """Return what was given for an address, but nothing that could be a user and a password before an @."""
    if re.match("(file:)?/(?!/)|file:///", uri):
        return uri  # the path of a file
    return re.sub(r"^((?:[\w+.-]+:)?/*).*@", r"\1", uri.split("?")[0], flags=re.DOTALL)


def _no_file_store(given: str) -> str:
    given = _without_login(given)
    # Not by urlsplit, which refuses brackets.
    path = Path(unquote(re.sub("^file:(//[^/]*)?", "", given)) if given.startswith("file:") else given)
    if path.suffix not in (".db", ".sqlite", ".sqlite3"):
        path = (path.parent if path.name == "mlruns" else path) / "mlflow.db"
    return f"{given} is a folder for MLflow's old file store, which MLflow has given up; write sqlite:///{path}"


def _has_file_store(folder: Path) -> bool:
    """Tell whether MLflow takes the folder for a file store of its own; it then refuses to start there."""
    return any(file.parent.name.isdigit() for file in folder.glob("*/meta.yaml"))


def _file_store_line() -> str:
    # `migrate-filestore` would overwrite a database that is there.
    target = "mlflow-old.db" if Path("mlflow.db").exists() else "mlflow.db"
    return (
        "mlruns/ holds runs of MLflow's old file store, with which MLflow no longer starts; to keep them, type "
        f"`mlflow migrate-filestore --source mlruns --target sqlite:///{target} && rm mlruns/*/meta.yaml`; "
        "to begin anew, `mv mlruns mlruns-old`"
    )
