"""Look at the machine: what is installed, what computes, and the cache, which is read."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from adaptkit import __version__
from adaptkit.cache import cache_folder

DISTRIBUTIONS = ("torch", "torchvision", "mlflow", "scikit-learn", "numpy", "matplotlib", "pluggy", "click", "rich")
#: bytes that a disk should have left, and that are read of a cache
LITTLE, READ = 10**9, 10**9


@dataclass(frozen=True)
class Finding:
    """What was found of one thing: `state` is ok, note or wrong; `mend` says how to put it right."""

    name: str
    state: str
    text: str
    mend: str | None = None


def versions() -> Iterator[Finding]:
    """Yield what is installed, and what of it cannot be imported."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("versions", "wrong", f"{name} is not installed", f"pip install {name}")
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield Finding("versions", "ok", f"adaptkit {__version__}, Python {platform.python_version()}, {', '.join(found)}")
    yield Finding("system", "ok", f"{system}; {sys.executable}")
    for name in ("torch", "torchvision"):
        try:
            importlib.import_module(name)
        except Exception as error:  # of many kinds, where compiled parts do not fit
            line = str(error).strip().split("\n")[0]
            yield Finding(name, "wrong", f"cannot be imported: {line}", "pip install --upgrade torch torchvision")


def device() -> Iterator[Finding]:
    """Yield what runs would compute with."""
    try:
        import torch

        from adaptkit.experiment.hardware import THREAD_VARIABLES, computes_bf16, find_device
    except Exception:  # said already
        return
    found = find_device("auto")
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else found.type
    bf16 = "bf16 is native" if found.type != "mps" and computes_bf16(found) else "bf16 is not known to be native"
    yield Finding("device", "ok", f"{name}; {bf16}")
    given = [f"{variable}={os.environ[variable]}" for variable in THREAD_VARIABLES if os.environ.get(variable)]
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    text = f"{threads} of {cores} cores{f' ({chr(44).join(given)})' if given else ''}"
    if threads < cores and given:
        yield Finding("threads", "note", text, f"unset {given[0].partition('=')[0]} to use all cores")
    else:
        yield Finding("threads", "ok", text)


def cache() -> Iterator[Finding]:
    """Yield whether the cache can be written and has room, and which of its entries are damaged."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Really write: permission bits say nothing about a read-only mount or a full disk.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
            probe.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = error.strerror or error
        yield Finding("cache", "wrong", f"cannot write to {folder}: {reason}", "set ADAPTKIT_CACHE to another folder")
        return
    if free < LITTLE:
        mend = "adaptkit cache clear, or set ADAPTKIT_CACHE to a folder on another disk"
        yield Finding("cache", "wrong", f"{folder}: only {free / 1e6:.0f} MB are left on its disk", mend)
    else:
        yield Finding("cache", "ok", f"{folder}; {free / 1e9:.1f} GB are left on its disk")
    yield from _entries()


def _entries() -> Iterator[Finding]:
    try:
        from adaptkit.caching import list_cache, verify_cache
    except Exception:  # torch is at fault: said already
        return
    held = sum(entry.bytes for entry in list_cache())
    if held > READ:
        text = f"its {held / 1e9:.1f} GB were not read; what is damaged would be computed anew"
        yield Finding("cache", "note", text, "adaptkit cache verify reads them")
        return
    for _, damage in verify_cache():
        if damage is not None:
            yield Finding("cache", "wrong", f"{damage.entry.path}: {damage.reason}", "adaptkit cache verify --remove")
