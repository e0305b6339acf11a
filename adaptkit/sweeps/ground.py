"""What sweeps and tunings stand on: bases, a run that groups theirs, and the certainty that nobody else runs them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from adaptkit.cache import cache_folder
from adaptkit.errors import BadInput, TrackingLost
from adaptkit.experiment.base import Base
from adaptkit.experiment.base_run import obtain_base
from adaptkit.experiment.preparation import Experiment
from adaptkit.findings import Findings
from adaptkit.plugins import Plugins
from adaptkit.tracking.store import Store
from adaptkit.tracking.sweeps import close_sweep, open_sweep
from adaptkit.tracking.tracker import Tracker


@dataclass(frozen=True)
class Foundation:
    """The base of a stage and the id of its run in the store."""

    base: Base
    run_id: str | None


def obtain_bases(
    experiments: Sequence[Experiment],
    plugins: Plugins,
    store: Store,
    refresh_base: bool,
    notice: Callable[[str], None],
) -> list[Foundation]:
    """Return the base of each experiment, trained now or earlier, with its run; raise TrackingLost without a store."""
    with Tracker(store) as tracker, plugins.watching(tracker, "tracker"):
        found = []
        for number, experiment in enumerate(experiments, start=1):
            is_trained = experiment.clean is not None
            if is_trained and (refresh_base or not experiment.plan.base_cached):
                which = f" {number} of {len(experiments)}" if len(experiments) > 1 else ""
                notice(f"Base{which}: {experiment.request.settings.backbone} is being trained on the source")
            base, run_id, _ = obtain_base(experiment, plugins, tracker, refresh_base, notice)
            tracker.flush()
            found.append(Foundation(base, run_id or tracker.find_base(base.fingerprint)))
    if tracker.fault is not None:
        raise TrackingLost(tracker.fault)
    return found


def key_of(parts: Iterable[str]) -> str:
    """Return what a sweep of these trials is known by in its experiment, whatever their order."""
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


@contextmanager
def alone(store: Store, key: str) -> Iterator[None]:
    """Hold the lock of a sweep; raise BadInput if another process of this machine runs it."""
    name = hashlib.sha256(f"{store.uri} {store.experiment_id} {key}".encode()).hexdigest()
    path = cache_folder() / "sweeps" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput("the same sweep is running in another process; wait for it, or stop it") from None
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"cannot write to the cache folder {path.parent} ({reason}); set ADAPTKIT_CACHE") from None
    try:
        yield
    finally:
        lock.release()


@dataclass
class Group:
    """The run that groups others, until it is closed with what they say."""

    run_id: str
    store: Store
    is_closed: bool = False

    def close(self, status: str, findings: Findings | None = None, files: Sequence[Path] = ()) -> None:
        """End the run, if it has not been ended yet, with what those it groups say, and files."""
        if not self.is_closed:
            self.is_closed = True
            close_sweep(self.store, self.run_id, status, findings, files)


@contextmanager
def grouped(
    store: Store, key: str, name: str, params: Mapping[str, object], tags: Mapping[str, str] | None = None
) -> Iterator[Group]:
    """Lend the run that groups those of a sweep; it ends as what became of it, whatever happens."""
    group = Group(open_sweep(store, key, name, params, tags or {}), store)
    try:
        yield group
    except BaseException as error:
        group.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    group.close("FINISHED")
