"""Diagnose problems with this installation, its cache and its store, and suggest fixes."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.errors import AdaptkitError
from adaptkit.plugins.loading import load_plugins
from adaptkit.system.folders import cache_folder
from adaptkit.tracking.address import Address, resolve, sqlite_address, tracking_option
from adaptkit.tracking.journal import unused_journals
from adaptkit.tracking.liveness import StaleRun, end_stale, unfinished
from adaptkit.tracking.server import clock_skew
from adaptkit.tracking.sqlite import check_writable
from adaptkit.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient

DISTRIBUTIONS = ("torch", "torchvision", "mlflow", "scikit-learn", "numpy", "matplotlib", "pluggy", "click", "rich")
#: smallest free space on a disk, and largest cache that is checked, in bytes
MIN_FREE, MAX_CHECKED = 10**9, 10**9


@dataclass(frozen=True)
class Finding:
    """Result of one check: `state` is ok, note or wrong; `mend` (a JSON key of `adaptkit doctor`) suggests a fix."""

    name: str
    state: str
    text: str
    mend: str | None = None


def versions() -> Iterator[Finding]:
    """Check the versions of packages, and that compiled packages can be imported."""
    installed = []
    for name in DISTRIBUTIONS:
        try:
            installed.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name="versions", state="wrong", text=f"{name} is not installed", mend=f"pip install {name}")
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    packages = [f"adaptkit {__version__}", f"Python {platform.python_version()}", *installed]
    yield Finding("versions", "ok", ", ".join(packages))
    yield Finding("system", "ok", f"{system}; {sys.executable}")
    for name in ("torch", "torchvision"):
        try:
            importlib.import_module(name)
        except Exception as error:  # compiled parts that do not match raise many types of errors
            line = str(error).strip().split("\n")[0]
            yield Finding(
                name=name,
                state="wrong",
                text=f"cannot be imported: {line}",
                mend="pip install --upgrade torch torchvision",
            )


def device() -> Iterator[Finding]:
    """Check the device and the number of threads that runs would use."""
    try:
        import torch

        from adaptkit.system.hardware import THREAD_VARIABLES, computes_bf16, find_device
    except Exception:  # reported by `versions`
        return
    fastest = find_device("auto")
    name = torch.cuda.get_device_name(fastest) if fastest.type == "cuda" else fastest.type
    bf16 = "bf16 is native" if fastest.type != "mps" and computes_bf16(fastest) else "bf16 support is unknown"
    yield Finding("device", "ok", f"{name}; {bf16}")
    variables = [f"{variable}={os.environ[variable]}" for variable in THREAD_VARIABLES if os.environ.get(variable)]
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    text = f"{threads} of {cores} cores{f' ({chr(44).join(variables)})' if variables else ''}"
    if threads < cores and variables:
        yield Finding(
            name="threads", state="note", text=text, mend=f"unset {variables[0].partition('=')[0]} to use all cores"
        )
    else:
        yield Finding("threads", "ok", text)


def cache() -> Iterator[Finding]:
    """Check that the cache can be written, has free space, and holds no damaged entries."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Write a file, because permission bits do not show a read-only mount or a full disk.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
            probe.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = error.strerror or error
        yield Finding(
            name="cache",
            state="wrong",
            text=f"cannot write to {folder}: {reason}",
            mend="set ADAPTKIT_CACHE to another folder",
        )
        return
    if free < MIN_FREE:
        mend = "adaptkit cache clear, or set ADAPTKIT_CACHE to a folder on another disk"
        yield Finding(
            name="cache", state="wrong", text=f"{folder}: only {free / 1e6:.0f} MB are free on its disk", mend=mend
        )
    else:
        yield Finding("cache", "ok", f"{folder}; {free / 1e9:.1f} GB are free on its disk")
    yield from _entries()


def _entries() -> Iterator[Finding]:
    try:
        from adaptkit.api.cache import list_cache, verify_cache
    except Exception:  # torch cannot be imported: reported by `versions`
        return
    total = sum(entry.bytes for entry in list_cache())
    if total > MAX_CHECKED:
        text = f"its {total / 1e9:.1f} GB were not checked; runs compute damaged entries again"
        yield Finding(name="cache", state="note", text=text, mend="adaptkit cache verify checks them")
        return
    for _, damage in verify_cache():
        if damage is not None:
            yield Finding(
                name="cache",
                state="wrong",
                text=f"{damage.entry.path}: {damage.reason}",
                mend="adaptkit cache verify --remove",
            )


#: largest difference to the clock of a server, in seconds
SKEW = 5.0
#: largest number of runs in a message
NAMED = 5


def diagnose(
    tracking_uri: str | None = None,
    plugins: Sequence[str | Path] = (),
    end_stale_runs: bool = False,
    older_than: float | None = None,
) -> Iterator[Finding]:
    """Yield the result of each check.

    `end_stale_runs` marks runs whose process has ended as killed. With `older_than`, it also marks runs of other
    machines whose last heartbeat is older than this number of seconds.
    """
    yield from versions()
    yield from device()
    yield from cache()
    yield from _plugins(plugins)
    yield from _store(tracking_uri, end_stale_runs, older_than)
    yield from _unsent()
    yield from _damaged()


def _damaged() -> Iterator[Finding]:
    from adaptkit.experiment.recovery import damaged_records

    for path in damaged_records():
        yield Finding(
            name="resume",
            state="wrong",
            text=f"the recovery files of a run in {path} are damaged",
            mend=f"rm -r {shlex.quote(str(path))}",
        )


def _unsent() -> Iterator[Finding]:
    try:
        # A killed run without queued events lacks only its end: `_runs` reports it.
        waiting = [journal for journal in unused_journals() if journal.unsent()]
    except OSError as error:
        reason = f"cannot read {error.filename}: {error.strerror}"
        yield Finding(name="journals", state="wrong", text=reason, mend="set ADAPTKIT_STATE to another folder")
        return
    for store in sorted({journal.store for journal in waiting}):
        names = [journal.name for journal in waiting if journal.store == store]
        named = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        uri = store if "://" in store else sqlite_address(Path(store)).uri
        text = f"{store} lacks events of {named}"
        yield Finding(name="journals", state="wrong", text=text, mend=f"adaptkit sync{tracking_option(uri)}")
    if not waiting:
        yield Finding("journals", "ok", "no queued events")


def _plugins(files: Sequence[str | Path]) -> Iterator[Finding]:
    try:
        loaded = load_plugins(files)
    except AdaptkitError as error:
        yield from (Finding("plugins", "wrong", line) for line in error.problems)
        return
    names = [source.origin for source in loaded.sources if source.kind != "built-in"]
    yield Finding("plugins", "ok", ", ".join(names) or "only built-in ones")
    for fault in loaded.faults:
        state = "note" if fault.works else "wrong"
        yield Finding(
            name="plugins", state=state, text=f"{fault.origin}: {fault.message}", mend=fault.source.hint or None
        )


def _store(uri: str | None, end_stale_runs: bool, older_than: float | None) -> Iterator[Finding]:
    try:
        address = resolve(uri)
        if address.path is not None:
            path = Path(os.path.realpath(address.path))
            check_writable(path)
            if not path.is_file():
                yield Finding("store", "note", f"{address.shown} does not exist yet; the first tracked run creates it")
                return
        from adaptkit.tracking.store import open_existing

        address, client = open_existing(uri)
        experiments = client.search_experiments(max_results=1000)
    except AdaptkitError as error:
        yield from (Finding("store", "wrong", line) for line in error.problems)
        return
    except Exception as error:  # any error of the store
        line = str(error).strip().split("\n")[0]
        yield Finding("store", "wrong", f"cannot be read: {resolve(uri).without_secrets(line)}")
        return
    count = f"{len(experiments)} experiment{'s' * (len(experiments) != 1)}"
    state = "can be read and written" if address.path else "answers"
    yield Finding("store", "ok", f"{address.shown} {state}; {count}")
    yield from _clock(address)
    option = tracking_option(address.uri)
    ids = [experiment.experiment_id for experiment in experiments]
    yield from _runs(client, ids, end_them=end_stale_runs, older_than=older_than, option=option)
    yield from _resumable(client, option)


def _clock(address: Address) -> Iterator[Finding]:
    skew = clock_skew(address) if address.is_server else None
    if skew is None:
        return
    text = f"the server's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    if abs(skew) > SKEW:
        mend = "synchronize both clocks with a time server; otherwise runs may appear to end before they start"
        yield Finding(name="clock", state="wrong", text=text, mend=mend)
    else:
        yield Finding("clock", "ok", text)


def _runs(
    client: MlflowClient, experiments: Sequence[str], end_them: bool, older_than: float | None, option: str
) -> Iterator[Finding]:
    runs = unfinished(client, experiments)
    by_state: dict[bool | None, list[StaleRun]] = {True: [], False: [], None: []}
    silent: list[StaleRun] = []
    for run in runs:
        (silent if run.silent else by_state[run.lives]).append(run)
    if not runs:
        yield Finding("runs", "ok", "no unfinished runs")
    if by_state[True]:
        yield Finding("runs", "ok", f"{_named(by_state[True], 'under way')}")
    if by_state[None]:
        mend = f"run `adaptkit doctor{option}` on the machines on which they were started"
        yield Finding(name="runs", state="note", text=_named(by_state[None], "running elsewhere"), mend=mend)
    if silent:
        yield from _silent(client, silent, older_than=older_than if end_them else None, option=option)
    if by_state[False] and end_them:
        end_stale(client, by_state[False])
        yield Finding("runs", "note", _named(by_state[False], "ended as killed, since the process has ended"))
    elif by_state[False]:
        text = _named(by_state[False], "recorded as running, but the process has ended")
        mend = f"adaptkit doctor --end-stale-runs{option}"
        yield Finding(name="runs", state="wrong", text=text, mend=mend)


def _silent(client: MlflowClient, runs: Sequence[StaleRun], older_than: float | None, option: str) -> Iterator[Finding]:
    """Report runs of other machines without a recent heartbeat; end those that are older than `older_than`."""
    latest = -math.inf if older_than is None else time.time() - older_than
    ended = [run for run in runs if (run.last_heartbeat or 0) <= latest]
    if ended:
        end_stale(client, ended)
        yield Finding("runs", "note", _named(ended, "ended as killed, since it had no recent heartbeat"))
    if remaining := [run for run in runs if run not in ended]:
        mend = f"adaptkit doctor --end-stale-runs --older-than TIME{option} ends them if they no longer run"
        yield Finding(
            name="runs",
            state="note",
            text=_named(remaining, "running elsewhere, without a recent heartbeat"),
            mend=mend,
        )


def _resumable(client: MlflowClient, option: str) -> Iterator[Finding]:
    from adaptkit.resumption.interrupted import stopped

    runs = stopped(client)
    if not runs:
        return
    names = [f"{name} ({run_id})" for run_id, name in runs[:NAMED]]
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    count = "1 interrupted run" if len(runs) == 1 else f"{len(runs)} interrupted runs"
    yield Finding(
        name="resume",
        state="note",
        text=f"{count} can be resumed here: {', '.join(names)}{more}",
        mend=f"adaptkit resume --all{option}",
    )


def _named(runs: Sequence[StaleRun], what: str) -> str:
    shown = [f"{run.name} ({run.run_id}, {run.place}{_heartbeat_text(run)})" for run in runs[:NAMED]]
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    return f"{what}: {', '.join(shown)}{more}"


def _heartbeat_text(run: StaleRun) -> str:
    if not run.silent or run.last_heartbeat is None:
        return ""
    return f"; last heartbeat {time.strftime('%Y-%m-%d %H:%M', time.localtime(run.last_heartbeat))}"
