"""Find where a run's artifacts are on this machine."""

from __future__ import annotations

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
