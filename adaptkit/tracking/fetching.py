"""Find where a run's artifacts are on this machine."""

from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import unquote, urlsplit


def local_artifacts(address: str, database: Path | None) -> Path | None:
    """Return the folder that a run's artifact address means; None if it is on another machine.

    MLflow keeps absolute addresses: of a database that was moved together with the folder `mlruns` beside it, the
    artifacts are there.
    """
    if urlsplit(address).scheme not in ("", "file"):
        return None
    path = Path(unquote(urlsplit(address).path) if address.startswith("file:") else address)
    if path.is_dir() or database is None or "mlruns" not in path.parts:
        return path
    inner = path.parts[len(path.parts) - path.parts[::-1].index("mlruns") :]
    moved = database.resolve().parent / "mlruns" / Path(*inner)
    return moved if moved.is_dir() else path


def fetch(artifacts: str, name: str, folder: str, tracking_uri: str) -> Path:
    """Download an artifact, a file or a folder, into a local folder, and return where it lies there.

    `artifacts` is the address of all that a run has kept. Raises FileNotFoundError, with the name, when the store
    says that it has none, and otherwise what the store raises.
    """
    from mlflow.artifacts import download_artifacts, list_artifacts
    from mlflow.exceptions import MlflowException

    # By its address: by the run's id MLflow asks the store for the run several times, and calls all that goes wrong
    # a path that does not exist.
    where = f"{artifacts.rstrip('/')}/{name}"
    try:
        return Path(download_artifacts(artifact_uri=where, dst_path=folder, tracking_uri=tracking_uri))
    except (MlflowException, OSError) as error:
        # Stores answer in many ways that something is not there; what they list tells it, and a store that is away
        # cannot say that either.
        listed = list_artifacts(artifact_uri=posixpath.dirname(where), tracking_uri=tracking_uri)
        if all(posixpath.basename(entry.path) != posixpath.basename(name) for entry in listed):
            raise FileNotFoundError(2, "no such artifact", name) from error
        raise
