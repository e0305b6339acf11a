"""Resolve the address of the tracking store, and show addresses without passwords."""

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
#: default port of `mlflow ui`
UI_PORT = 5000
#: Options of the page that shows charts of adaptation runs; MLflow's start page shows traces, which adaptkit does not
#: have. MLflow draws only the first ten runs: sorted by seed, these include all strategies.
CHARTS = (
    "workflowType=machine_learning&compareRunsMode=CHART&searchFilter=tags.adaptkit.kind%3D%27adaptation%27"
    "&orderByKey=params.%60seed%60&orderByAsc=true"
)


@dataclass(frozen=True)
class Address:
    """The address of a tracking store: a SQLite file (`path`), a database server or an MLflow server."""

    uri: str = field(repr=False)
    path: Path | None = None

    @property
    def is_server(self) -> bool:
        """Return whether this is the address of an MLflow server."""
        return self.uri.startswith(tuple(f"{scheme}:" for scheme in SERVERS))

    @property
    def _is_file(self) -> bool:
        return self.uri.startswith("sqlite")

    @property
    def is_default(self) -> bool:
        """Return whether MLflow's commands use this store by default in the current folder."""
        is_local = self.path is not None and self.path == Path.cwd() / "mlflow.db"
        return is_local and not os.environ.get("MLFLOW_BACKEND_STORE_URI") and not _has_file_store(Path("mlruns"))

    @property
    def shown(self) -> str:
        """Return the address as messages show it: without user, password and options."""
        return str(self.path) if self.path else re.sub("://.*@", "://", self.uri.split("?")[0], flags=re.DOTALL)

    @property
    def ui_command(self) -> str | None:
        """Return the command that starts a user interface for this store; None for an MLflow server."""
        if self.is_server:
            return None
        if self.is_default:
            return "mlflow ui"
        # Stars replace the user name and the password; the user fills them in.
        uri = self.uri if self._is_file else re.sub("://.*@", "://***@", self.uri, flags=re.DOTALL)
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"

    def runs_url(self, experiment_id: str | None, port: int = UI_PORT) -> str:
        """Return the address of the page with the charts of an experiment, or with all experiments."""
        page = self._page(port)
        if experiment_id is None:
            return f"{page}/#/experiments?workflowType=machine_learning"
        return f"{page}/#/experiments/{experiment_id}/runs?{CHARTS}"

    def report_url(self, experiment_id: str, run_id: str) -> str:
        """Return the address of the report of a comparison run."""
        return f"{self._page(UI_PORT)}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/{REPORT_FILE}"

    def _page(self, port: int) -> str:
        return self.shown.rstrip("/") if self.is_server else f"http://127.0.0.1:{port}"

    def without_secrets(self, text: str) -> str:
        """Remove user names and passwords from a text about this store."""
        login = None if self._is_file else re.match("[^/]+://[^:]*:(.*)@", self.uri, flags=re.DOTALL)
        return without_secrets(text, {login[1], unquote(login[1])} if login else ())


def resolve(uri: str | None) -> Address:
    """Return the address of the store: `uri`, else MLFLOW_TRACKING_URI, else MLflow's default.

    Raises BadInput for MLflow's old file store, and for an address of a kind that adaptkit does not support.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not chosen:
        if _has_file_store(Path("mlruns")):
            raise BadInput(_file_store_line())
        return sqlite_address(Path.cwd() / "mlflow.db")
    scheme = match[1].lower() if (match := re.match(r"([\w+.-]{2,}):", chosen)) else ""
    kind = scheme.split("+")[0]
    if kind == "sqlite":
        return _sqlite(chosen)
    if kind in (*SERVERS, *DATABASES):
        address = Address(f"{scheme}{chosen[len(scheme) :]}")
        if not (_names_a_host(chosen) if kind in SERVERS else chosen[len(scheme) :].startswith("://")):
            raise BadInput(
                f"{_without_login(chosen)} is not the address of a tracking store; write {scheme}://HOST:PORT"
            )
        return address
    if scheme in ("", "file") and not chosen.startswith("databricks"):
        raise BadInput(_no_file_store(chosen))
    scheme = scheme or "databricks"
    raise BadInput(
        f"adaptkit cannot track to {scheme!r} addresses{suggestion(scheme, ('sqlite', *SERVERS, *DATABASES))}"
    )


def tracking_option(uri: str) -> str:
    """Return the option ` --tracking-uri URI` without secrets; empty if a command without it uses the same store."""
    address = resolve(uri)
    try:
        if resolve(None).shown == address.shown:
            return ""
    except BadInput:
        pass
    return f" --tracking-uri {shlex.quote(address.without_secrets(address.uri))}"


def sqlite_address(path: Path, options: str = "") -> Address:
    """Return the address of a database file."""
    name = path.as_posix()
    quoted = name.replace("%", "%25").replace("?", "%3F")
    # With sqlite:///, MLflow would create a folder with the quoted name.
    return Address(f"{'sqlite' if quoted == name else 'sqlite+pysqlite'}:///{quoted}{options}", path)


def local_path(address: str) -> Path | None:
    """Return the path for an artifact address, as MLflow reads it; None for an address on another machine."""
    parts = urlsplit(address)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path if parts.scheme else address))


def artifact_address(path: Path) -> str:
    """Return the artifact address of a local folder: a URI if MLflow would read the path as another one."""
    return path.as_uri() if re.search("[%?#;]", str(path)) else str(path)


def _sqlite(uri: str) -> Address:
    parts = re.fullmatch(r"sqlite(?:\+pysqlite)?:///([^?]*)(\?.*)?", uri, flags=re.IGNORECASE)
    name = unquote(parts[1]) if parts else ""
    if parts is None or not name or name.startswith((":memory:", "file:")):
        raise BadInput(f"{_without_login(uri)} does not name a database file; write sqlite:///PATH/mlflow.db")
    if not Path(name).parent.exists() and Path(parts[1]).parent.exists():
        quoted = uri.replace("%", "%25")
        raise BadInput(
            f"there is no folder {str(Path(name).parent)!r}, for which {uri} stands; write % as %25: {quoted}"
        )
    return sqlite_address(Path(os.path.abspath(name)), parts[2] or "")


def _names_a_host(uri: str) -> bool:
    if not uri.isprintable() or " " in uri:  # a line break would be dropped, and the login would be shown
        return False
    try:
        parts = urlsplit(uri)
        return parts.port != 0 and bool(parts.hostname)
    except ValueError:  # an invalid port or bracket
        return False


def _without_login(uri: str) -> str:
    """Return an address without everything before an @: that could be a user and a password."""
    if re.match("(file:)?/(?!/)|file:///", uri):
        return uri  # the path of a file
    return re.sub(r"^((?:[\w+.-]+:)?/*).*@", r"\1", uri.split("?")[0], flags=re.DOTALL)


def _no_file_store(uri: str) -> str:
    uri = _without_login(uri)
    # Without urlsplit, which rejects brackets.
    path = Path(unquote(re.sub("^file:(//[^/]*)?", "", uri)) if uri.startswith("file:") else uri)
    if path.suffix not in (".db", ".sqlite", ".sqlite3"):
        path = (path.parent if path.name == "mlruns" else path) / "mlflow.db"
    return f"{uri} is a folder for MLflow's old file store, which MLflow no longer supports; write sqlite:///{path}"


def _has_file_store(folder: Path) -> bool:
    """Return whether MLflow treats the folder as an old file store; MLflow then refuses to start."""
    return any(file.parent.name.isdigit() for file in folder.glob("*/meta.yaml"))


def _file_store_line() -> str:
    # `migrate-filestore` would overwrite an existing database.
    target = "mlflow-old.db" if Path("mlflow.db").exists() else "mlflow.db"
    return (
        "mlruns/ holds runs of MLflow's old file store, which MLflow no longer supports; to keep them, type "
        f"`mlflow migrate-filestore --source mlruns --target sqlite:///{target} && rm mlruns/*/meta.yaml`; "
        "to start with a new store, type `mv mlruns mlruns-old`"
    )
