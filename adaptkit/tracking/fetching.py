"""Find artifacts of a run on this machine, or download them."""

from __future__ import annotations

import posixpath
from pathlib import Path

from adaptkit.tracking.address import local_path


def local_artifacts(address: str, database: Path | None) -> Path | None:
    """Return the folder for an artifact address; None if it is on another machine.

    MLflow stores absolute addresses. If the database was moved together with the folder `mlruns` next to it, the
    artifacts are in the moved folder.
    """
    path = local_path(address)
    if path is None or path.is_dir() or database is None or "mlruns" not in path.parts:
        return path
    relative = path.parts[len(path.parts) - path.parts[::-1].index("mlruns") :]
    moved_folder = database.resolve().parent / "mlruns" / Path(*relative)
    return moved_folder if moved_folder.is_dir() else path


def fetch(artifacts: str, name: str, folder: str, tracking_uri: str) -> Path:
    """Download an artifact (a file or a folder) to a local folder, and return the path of the copy.

    `artifacts` is the artifact address of the run. Raises FileNotFoundError with the name of the artifact if it does
    not exist, and the error of the store if the download fails.
    """
    from mlflow.artifacts import download_artifacts, list_artifacts
    from mlflow.exceptions import MlflowException

    # With the run's id instead of the address, MLflow requests the run several times, and reports every error as a
    # missing path.
    address = f"{artifacts.rstrip('/')}/{name}"
    try:
        return Path(download_artifacts(artifact_uri=address, dst_path=folder, tracking_uri=tracking_uri))
    except (MlflowException, OSError) as error:
        # Stores report missing artifacts with different errors, so look at the list of artifacts. If the store is
        # unreachable, listing fails as well.
        listed = list_artifacts(artifact_uri=posixpath.dirname(address), tracking_uri=tracking_uri)
        if all(posixpath.basename(entry.path) != posixpath.basename(name) for entry in listed):
            raise FileNotFoundError(2, "no such artifact", name) from error
        raise
