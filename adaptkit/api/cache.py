"""List, check and clear the cache. Everything in it can be computed again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptkit.data.sets.image_files import read_record
from adaptkit.errors import BadInput, suggestion
from adaptkit.experiment.base_cache import last_used, remove_base, stored_base
from adaptkit.system.folders import cache_folder
from adaptkit.training.frozen.features import sound

#: seconds after which an unfinished file counts as abandoned
ABANDONED = 3600.0


@dataclass(frozen=True)
class Entry:
    """A cache entry: its kind, its file or folder, its size, and the Unix time of its last use."""

    kind: str
    path: Path
    bytes: int
    used: float


@dataclass(frozen=True)
class Damage:
    """A cache entry whose content differs from its checksum, and the reason."""

    entry: Entry
    reason: str


def list_cache(kinds: Sequence[str] = ()) -> list[Entry]:
    """Return the cache entries of these kinds (default: all), the most recently used of each kind first.

    Kinds are `bases` (trained bases), `features` (features of frozen layers for test images), `pictures` (results of
    checking picture files) and `leftovers` (unfinished files of ended processes). Raises BadInput for an unknown kind,
    and for a cache that is not a folder. The folder need not exist.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise BadInput(*(f"the cache has no {kind!r}{suggestion(kind, KINDS)}" for kind in unknown))
    _require_folder(cache_folder())
    entries = [entry for kind in KINDS if kind in (kinds or KINDS) for entry in KINDS[kind].find(kind)]
    return sorted(entries, key=lambda entry: (list(KINDS).index(entry.kind), -entry.used))


def verify_cache(kinds: Sequence[str] = ()) -> Iterator[tuple[Entry, Damage | None]]:
    """Read the entries of these kinds (default: all), and yield each with its damage, if any."""
    for entry in list_cache(kinds):
        reason = KINDS[entry.kind].fault(entry.path)
        yield entry, None if reason is None else Damage(entry, reason)


def clear_cache(kinds: Sequence[str] = (), unused_for: float = 0.0, keep: int = 0) -> tuple[list[Entry], list[Entry]]:
    """Remove entries that were not used for `unused_for` seconds, the oldest first, until `keep` bytes are left.

    Return the removed entries, and those that a process uses and that therefore stay.
    """
    entries = sorted(list_cache(kinds), key=lambda entry: entry.used)
    total, latest = sum(entry.bytes for entry in entries), time.time() - unused_for
    removed, busy = [], []
    for entry in entries:
        if total <= keep or entry.used > latest:
            break
        if KINDS[entry.kind].remove(entry.path):
            removed.append(entry)
            total -= entry.bytes
        else:
            busy.append(entry)
    return removed, busy


def remove_damaged(damages: Iterable[Damage]) -> list[Damage]:
    """Remove damaged entries; return those that a process uses and that therefore stay."""
    return [damage for damage in damages if not KINDS[damage.entry.kind].remove(damage.entry.path)]


@dataclass(frozen=True)
class _Kind:
    """Functions that find, check and remove the entries of one kind; `remove` returns whether it succeeded."""

    find: Callable[[str], Iterable[Entry]]
    fault: Callable[[Path], str | None]
    remove: Callable[[Path], bool]


def _require_folder(path: Path) -> None:
    """Raise BadInput if the path is not a folder and cannot become one."""
    existing = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    if not os.path.isdir(existing):
        raise BadInput(f"the cache {path} is not a folder; set ADAPTKIT_CACHE to another one")


def _bases(kind: str) -> Iterator[Entry]:
    for folder in _children(cache_folder() / "bases"):
        if folder.is_dir():
            yield Entry(
                kind=kind,
                path=folder,
                bytes=sum(path.stat().st_size for path in folder.iterdir()),
                used=last_used(folder.name),
            )


def _files(pattern: str) -> Callable[[str], Iterator[Entry]]:
    def find(kind: str) -> Iterator[Entry]:
        for path in _children(cache_folder() / kind, pattern):
            status = path.stat()
            yield Entry(kind=kind, path=path, bytes=status.st_size, used=status.st_mtime)

    return find


def _leftovers(kind: str) -> Iterator[Entry]:
    patterns = {"bases": "*/.*", "features": "*.part", "pictures": ".pictures-*"}
    for folder, pattern in patterns.items():
        for path in _children(cache_folder() / folder, pattern):
            status = path.stat()
            if time.time() - status.st_mtime > ABANDONED:
                yield Entry(kind=kind, path=path, bytes=status.st_size, used=status.st_mtime)


def _children(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Yield the files of a folder, except those that another process removes meanwhile."""
    for path in sorted(folder.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):
            path.stat()
            yield path


def _base_fault(folder: Path) -> str | None:
    return None if stored_base(folder.name) is not None else "its weights do not match its card"


def _remove_base(folder: Path) -> bool:
    return remove_base(folder.name)


def _feature_fault(path: Path) -> str | None:
    return None if sound(path) else "its content does not match its checksum"


def _record_fault(path: Path) -> str | None:
    try:
        return None if read_record(path) is not None else "its content does not match its checksum"
    except FileNotFoundError:  # removed meanwhile
        return None
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"


def _unlink(path: Path) -> bool:
    # A process that reads the file keeps it open, or computes the content again.
    path.unlink(missing_ok=True)
    return True


KINDS = {
    "bases": _Kind(_bases, _base_fault, _remove_base),
    "features": _Kind(_files("*.safetensors"), _feature_fault, _unlink),
    "pictures": _Kind(_files("*.json"), _record_fault, _unlink),
    "leftovers": _Kind(_leftovers, lambda path: None, _unlink),
}
