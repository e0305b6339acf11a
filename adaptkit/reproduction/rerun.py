"""Run a recorded run again, in a temporary tracking store. The store of the recorded run is only read."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adaptkit.errors import RunFailed
from adaptkit.experiment.adaptation import adapt_once
from adaptkit.experiment.base import obtain_base
from adaptkit.experiment.base_cache import Base, drop_base, stored_base
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.experiment.stage import open_stage
from adaptkit.experiment.tuning_run import blinded, tune_once
from adaptkit.names import BASE_FINGERPRINT_TAG, ENVIRONMENT_FILE, KIND_TAG, THREADS_TAG
from adaptkit.plugins.manager import Plugins
from adaptkit.reproduction.agreement import Results
from adaptkit.reproduction.record import read_results
from adaptkit.system.core_sharing import Seat
from adaptkit.system.hardware import recorded_threads
from adaptkit.tracking.address import sqlite_address
from adaptkit.tracking.runs import StoredRun, open_runs
from adaptkit.tracking.search import search_runs
from adaptkit.tracking.store import Store, open_store
from adaptkit.tracking.tracker import Tracker

FROM_CACHE, TRAINED = "from the cache", "made anew"


@dataclass(frozen=True)
class Rerun:
    """A repeated run: its results, the origin and the fingerprint of its base, and its environment."""

    results: Results
    base_fingerprint: str
    base: str
    environment: str
    threads: str | None


def run_again(
    stored: StoredRun,
    experiment: Experiment,
    plugins: Plugins,
    *,
    threads: int | None,
    refresh_base: bool = False,
    feature_cache: bool = True,
    notice: Callable[[str], None] = lambda line: None,
) -> Rerun:
    """Run an experiment of one strategy and one seed again; raise RunFailed if it fails.

    The base is taken from the cache only if its fingerprint is that of the recorded run. A base run is always trained
    again.
    """
    recorded_fingerprint = stored.tags.get(BASE_FINGERPRINT_TAG)
    refresh_base = refresh_base or stored.kind == "base"
    with (
        tempfile.TemporaryDirectory(prefix="adaptkit-") as folder,
        _without_other_base(experiment, recorded_fingerprint, refresh=refresh_base, notice=notice) as (
            experiment,
            train_again,
        ),
        Seat() as seat,
        recorded_threads(threads, notice),
    ):
        store = open_store(sqlite_address(Path(folder, "mlflow.db")).uri, "reproduction")
        # The tracker is also active while the base is trained, so that plugins log to the temporary store.
        with Tracker(store, journals=Path(folder) / "journals") as tracker, plugins.watching(tracker, "tracker"):
            follow = tracker if stored.kind == "base" else None
            obtained = obtain_base(experiment, plugins, tracker=follow, refresh=train_again, notice=notice)
            base = obtained.base
            if stored.kind != "base":
                _adapt(
                    stored.kind,
                    experiment,
                    plugins,
                    seat=seat,
                    tracker=tracker,
                    base=base,
                    feature_cache=feature_cache,
                )
        if tracker.fault is not None:
            raise RunFailed(f"the results of the repetition could not be stored: {tracker.fault}")
        repeated = _only(store, stored.kind)
        with repeated.file(ENVIRONMENT_FILE) as path:
            text = path.read_text(encoding="utf-8")
        return Rerun(
            results=read_results(repeated),
            base_fingerprint=base.fingerprint,
            base=FROM_CACHE if obtained.cached else TRAINED,
            environment=text,
            threads=repeated.tags.get(THREADS_TAG),
        )


def _adapt(
    kind: str,
    experiment: Experiment,
    plugins: Plugins,
    *,
    seat: Seat,
    tracker: Tracker,
    base: Base,
    feature_cache: bool,
) -> None:
    """Run the adaptation or the tuning run."""
    if kind == "tuning":
        experiment = prepare(experiment.request, domains=blinded(experiment.domains))
    stage = open_stage(experiment, base, plugins=plugins, seat=seat, tracker=tracker, feature_cache=feature_cache)
    (arm,), (seed,) = experiment.request.arms, experiment.request.settings.seed
    if kind == "tuning":
        record = tune_once(stage, arm, seed)
    else:
        _ = stage.base_logits  # computed first, as in an experiment
        record = adapt_once(stage, arm, seed)
    if record.error is not None:
        raise RunFailed(record.error)


def _only(store: Store, kind: str) -> StoredRun:
    """Return the only run of this kind in a store."""
    (record,) = search_runs(store.client, [store.experiment_id], tags={KIND_TAG: kind})
    return open_runs(store.uri).find(str(record.info.run_id), (kind,))


@contextmanager
def _without_other_base(
    experiment: Experiment, fingerprint: str | None, refresh: bool, notice: Callable[[str], None]
) -> Iterator[tuple[Experiment, bool]]:
    """Yield the experiment and whether its base must be trained again, without replacing another base in the cache."""
    cached = stored_base(experiment.base_key)
    if cached is None or (cached.fingerprint == fingerprint and not refresh):
        yield experiment, False
        return
    if cached.fingerprint != fingerprint:
        notice(f"the cache has another base of this recipe ({cached.fingerprint[:12]}); it stays there and is not used")
    key = hashlib.sha256(f"{experiment.base_key} made once more".encode()).hexdigest()
    try:
        yield dataclasses.replace(experiment, base_key=key), True
    finally:
        drop_base(key)
