"""What lies in the cache: list it, find what is damaged, and make room. All of it can be computed again."""

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

#: seconds after which a file that somebody was writing is taken for abandoned
ABANDONED = 3600.0


@dataclass(frozen=True)
class Entry:
    """One thing that is kept: of a kind, in a file or a folder, of so many bytes, `used` last at this Unix time."""

    kind: str
    path: Path
    bytes: int
    used: float


@dataclass(frozen=True)
class Damage:
    """An entry that does not hold what was written."""

    entry: Entry
    reason: str


def list_cache(kinds: Sequence[str] = ()) -> list[Entry]:
    """Return the entries of some kinds, or of all, the latest used of each first.

    Raises BadInput for an unknown kind, and for a cache that is no folder; it need not be there yet.

    `bases` are trained bases, `features` what frozen layers make of test images, `pictures` which picture files are
    sound, `leftovers` what dead processes were writing.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise BadInput(*(f"the cache has no {kind!r}{suggestion(kind, KINDS)}" for kind in unknown))
    _require_folder(cache_folder())
    found = [entry for kind in KINDS if kind in (kinds or KINDS) for entry in KINDS[kind].find(kind)]
    return sorted(found, key=lambda entry: (list(KINDS).index(entry.kind), -entry.used))


def verify_cache(kinds: Sequence[str] = ()) -> Iterator[tuple[Entry, Damage | None]]:
    """Read the entries of some kinds, or of all, and yield each with what is wrong with it."""
    for entry in list_cache(kinds):
        reason = KINDS[entry.kind].fault(entry.path)
        yield entry, None if reason is None else Damage(entry, reason)


def clear_cache(kinds: Sequence[str] = (), unused_for: float = 0.0, keep: int = 0) -> tuple[list[Entry], list[Entry]]:
    """Remove what was not used for so many seconds, the earliest first, until `keep` bytes are left.

    Returns what was removed, and what could not be since a process uses it.
    """
    entries = sorted(list_cache(kinds), key=lambda entry: entry.used)
    held, latest = sum(entry.bytes for entry in entries), time.time() - unused_for
    removed, busy = [], []
    for entry in entries:
        if held <= keep or entry.used > latest:
            break
        if KINDS[entry.kind].remove(entry.path):
            removed.append(entry)
            held -= entry.bytes
        else:
            busy.append(entry)
    return removed, busy


def remove_damaged(found: Iterable[Damage]) -> list[Damage]:
    """Remove damaged entries, so that they are computed anew; return those that a process uses."""
    return [damage for damage in found if not KINDS[damage.entry.kind].remove(damage.entry.path)]


@dataclass(frozen=True)
class _Kind:
    """How the entries of a kind are found, tried and removed; `remove` tells whether it could."""

    find: Callable[[str], Iterable[Entry]]
    fault: Callable[[Path], str | None]
    remove: Callable[[Path], bool]


def _require_folder(path: Path) -> None:
    """Refuse a path at which no folder is, nor can be made."""
    there = next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
    if not os.path.isdir(there):
        raise BadInput(f"the cache {path} is no folder; set ADAPTKIT_CACHE to another")


def _bases(kind: str) -> Iterator[Entry]:
    for folder in _children(cache_folder() / "bases"):
        if folder.is_dir():
            yield Entry(kind, folder, sum(path.stat().st_size for path in folder.iterdir()), last_used(folder.name))


def _files(pattern: str) -> Callable[[str], Iterator[Entry]]:
    def find(kind: str) -> Iterator[Entry]:
        for path in _children(cache_folder() / kind, pattern):
            status = path.stat()
            yield Entry(kind, path, status.st_size, status.st_mtime)

    return find


def _leftovers(kind: str) -> Iterator[Entry]:
    patterns = {"bases": "*/.*", "features": "*.part", "pictures": ".pictures-*"}
    for folder, pattern in patterns.items():
        for path in _children(cache_folder() / folder, pattern):
            status = path.stat()
            if time.time() - status.st_mtime > ABANDONED:
                yield Entry(kind, path, status.st_size, status.st_mtime)


def _children(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Yield what is in a folder, though others may remove it meanwhile."""
    for path in sorted(folder.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):
            path.stat()
            yield path


def _base_fault(folder: Path) -> str | None:
    return None if stored_base(folder.name) is not None else "its weights are not those of its card"


def _remove_base(folder: Path) -> bool:
    return remove_base(folder.name)


def _feature_fault(path: Path) -> str | None:
    return None if sound(path) else "its content does not have its checksum"


def _record_fault(path: Path) -> str | None:
    try:
        return None if read_record(path) is not None else "its content does not have its checksum"
    except FileNotFoundError:  # removed meanwhile
        return None
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"


def _unlink(path: Path) -> bool:
    # Whoever reads it has it open, or reads it anew after it is gone.
    path.unlink(missing_ok=True)
    return True


KINDS = {
    "bases": _Kind(_bases, _base_fault, _remove_base),
    "features": _Kind(_files("*.safetensors"), _feature_fault, _unlink),
    "pictures": _Kind(_files("*.json"), _record_fault, _unlink),
    "leftovers": _Kind(_leftovers, lambda path: None, _unlink),
}
