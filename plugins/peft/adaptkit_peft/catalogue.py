"""Catalogue of the PEFT types of one version of PEFT, so that they can be listed without importing PEFT."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptkit.errors import BadInput
from adaptkit.system.folders import cache_folder

#: catalogue of the PEFT version that this package was developed with
PACKAGED = Path(__file__).with_name("catalogue.json")
#: Increment when the entries change. Catalogues of other editions are not used.
EDITION = 2


@dataclass(frozen=True)
class Option:
    """An option. `kinds` are `bool`, `int`, `float`, `str` or `none`; `choices` are the valid words."""

    name: str
    kinds: tuple[str, ...]
    choices: tuple[str, ...]
    default: bool | int | float | str | None
    help: str


@dataclass(frozen=True)
class Entry:
    """A PEFT type: the layers that it can adapt, or the reason why it cannot be used (`unavailable`)."""

    type: str
    unavailable: str
    layers: tuple[str, ...]
    starts_at_base: bool
    merges: bool
    options: tuple[Option, ...]


def read() -> tuple[Entry, ...]:
    """Return the entries for the installed PEFT.

    Without a catalogue for this version, measure it and store it in the cache. Raises BadInput if PEFT is not
    installed or cannot be imported.
    """
    version = installed_version()
    kept = cache_folder() / "peft" / f"{version}.json"
    for path in (PACKAGED, kept):
        entries = _parse(path, version)
        if entries is not None:
            return entries
    from adaptkit.system.files import write_bytes

    from adaptkit_peft.measurement import measured

    entries = measured()
    with contextlib.suppress(OSError):  # without a writable cache, measure again next time
        write_bytes(kept, written(version, entries).encode())
    return entries


def installed_version() -> str:
    """Return the version of the installed PEFT. Raises BadInput if PEFT is not installed."""
    try:
        return importlib.metadata.version("peft")
    except importlib.metadata.PackageNotFoundError:
        raise BadInput("PEFT is not installed; run: pip install peft") from None


def written(version: str, entries: tuple[Entry, ...]) -> str:
    """Return the JSON text of a catalogue."""
    document = {"edition": EDITION, "peft": version, "types": [asdict(entry) for entry in entries]}
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _parse(path: Path, version: str) -> tuple[Entry, ...] | None:
    """Return the entries of a file, or None if it is missing, damaged, or of another version or edition."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if (document["edition"], document["peft"]) != (EDITION, version):
            return None
        return tuple(_entry(record) for record in document["types"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entry(record: dict[str, Any]) -> Entry:
    options = [
        Option(**option | {"kinds": tuple(option["kinds"]), "choices": tuple(option["choices"])})
        for option in record["options"]
    ]
    return Entry(**record | {"layers": tuple(record["layers"]), "options": tuple(options)})


if __name__ == "__main__":
    from adaptkit_peft.measurement import measured

    PACKAGED.write_text(written(installed_version(), measured()), encoding="utf-8")
    print(f"wrote {PACKAGED}")
