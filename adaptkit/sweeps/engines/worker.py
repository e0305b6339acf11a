"""Run trials one after the other: in this process, in other processes or on other machines."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from adaptkit.errors import HINT, AdaptkitError, BadInput, lacks_memory, located
from adaptkit.events import Epoch, RunStart
from adaptkit.experiment.adaptation import adapt_once
from adaptkit.experiment.outcome import RunSummary
from adaptkit.experiment.stage import Stage
from adaptkit.experiment.tuning_run import tune_once
from adaptkit.hookspecs import hookimpl
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins, PluginWarning
from adaptkit.settings.identity import trial_key
from adaptkit.settings.request import Arm, Request
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.sweeps.engines.tasks import EpochEnded, Started, Task, Tell
from adaptkit.sweeps.shared import SharedInputs, open_shared_inputs, stage_for, use_threads
from adaptkit.system.core_sharing import Seat
from adaptkit.system.hardware import keep_freed_memory
from adaptkit.system.signals import origin
from adaptkit.tracking.store import Store, open_store
from adaptkit.tracking.sweeps import end_dead, finished_run, require_parent
from adaptkit.tracking.tracker import Tracker

#: number of recent seeds whose views and features stay in memory
KEPT_SEEDS = 8


@dataclass(frozen=True)
class Place:
    """The store, the experiment and the parent run that record trials, and the plugin files to load."""

    tracking_uri: str
    experiment: str
    parent: str
    plugin_files: tuple[str, ...]
    feature_cache: bool

    @classmethod
    def of(cls, store: Store, parent: str, *, plugins: Plugins, feature_cache: bool) -> Place:
        """Return the place of an open store."""
        return cls(
            tracking_uri=store.uri,
            experiment=store.experiment_name,
            parent=parent,
            plugin_files=plugins.files,
            feature_cache=feature_cache,
        )


@dataclass(frozen=True)
class Work:
    """The inputs of an engine for its workers. `jobs` is the number of parallel trials; None if it is not set."""

    place: Place
    inputs: Sequence[SharedInputs]
    plugins: Plugins
    store: Store
    seat: Seat
    jobs: int | None = None

    def worker(self) -> Worker:
        """Return a worker in this process."""
        return Worker(self.place, self.inputs, plugins=self.plugins, store=self.store, seat=self.seat)

    def packed(self, title: str) -> bytes:
        """Return the bytes for `open_worker` in another process; raise BadInput if the inputs cannot be pickled.

        The message begins with `title`.
        """
        try:
            # Pickle copies the images, because the shared memory of a container is often too small for them. The inputs
            # are pickled separately, because plugins must be loaded before their objects are unpickled.
            return pickle.dumps((self.place, pickle.dumps(tuple(self.inputs))))
        except Exception as error:
            raise BadInput(f"{title}: the data cannot be sent to other processes: {error}") from None

    def end_lost_runs(self) -> None:
        """End the runs of lost workers as killed."""
        end_dead(self.store, self.place.parent)


def open_worker(packed: bytes, seat: Seat, threads: int) -> Worker:
    """Return a worker for a process that only runs trials, and limit torch to this number of threads."""
    keep_freed_memory()
    use_threads(threads)
    place, inputs = pickle.loads(packed)
    plugins = load_plugins(place.plugin_files)
    store = open_store(place.tracking_uri, place.experiment)
    return Worker(place, pickle.loads(inputs), plugins=plugins, store=store, seat=seat)


class Worker:
    """Run tasks, and keep open stages for later tasks."""

    def __init__(
        self, place: Place, inputs: Sequence[SharedInputs], *, plugins: Plugins, store: Store, seat: Seat
    ) -> None:
        self._place = place
        self._inputs = inputs
        self._plugins = plugins
        self._store = store
        self._seat = seat
        self._stages: dict[int, Stage] = {}
        self._seeds: dict[tuple[int, int], None] = {}  # recent stages and seeds, the latest at the end

    def require_parent(self) -> None:
        """Raise BadInput if the tracking store of this machine does not have the parent run."""
        require_parent(self._store, self._place.parent)

    def perform(self, task: Task, tell: Tell, attempt: int = 0) -> RunSummary:
        """Run a task and return its record; the record of a failed run contains the reason.

        An `attempt` above 0 repeats a task whose worker was lost. If an earlier attempt finished the run, the record of
        that run is returned.
        """
        tell(Started(task))
        request = request_of(task, self._plugins)
        (arm,), (seed,) = request.arms, request.settings.seed
        with (
            Tracker(self._store, self._place.parent, task.tags) as tracker,
            self._plugins.watching(tracker, "tracker"),
            self._plugins.watching(_Epochs(task, tell), "epochs"),
        ):
            try:
                stage = stage_for(self._stage(task.stage, request), request, tracker=tracker, label=task.label)
                self._forget_old_seeds(task.stage, seed)
                earlier = self._finished_run(task, stage, arm=arm, seed=seed) if attempt else None
                if earlier is not None:
                    return earlier
                record = tune_once(stage, arm, seed) if task.kind == "tuning" else adapt_once(stage, arm, seed)
                tracker.flush()
                record = dataclasses.replace(record, run_id=tracker.run_id(f"{task.label or arm.label} seed={seed}"))
            except Exception as error:  # an error fails this trial, not the sweep
                if (cause := origin(error)) is not error:
                    raise cause from error
                problems = error.problems if isinstance(error, AdaptkitError) else ()
                reason = "; ".join(problems or ((HINT,) if lacks_memory(error) else (located(error),)))
                return failed(task, reason)
        # A trial that the store did not record counts as failed, because it cannot be compared.
        return record if tracker.fault is None else failed(task, tracker.fault)

    def _finished_run(self, task: Task, stage: Stage, *, arm: Arm, seed: int) -> RunSummary | None:
        """Return the record of a run that finished before its worker was lost; end the unfinished runs of the task."""
        params = stage.experiment.request.run_params(arm, seed) | stage.experiment.backbone_facts
        key = trial_key(
            task.kind,
            params,
            data_fingerprint=stage.experiment.domains.fingerprint,
            base_fingerprint=stage.base.fingerprint,
        )
        end_dead(self._store, self._place.parent, key)
        stored = finished_run(self._store, self._place.parent, key)
        if stored is None:
            return None
        run_id, metrics = stored
        return RunSummary(
            strategy=arm.strategy,
            label=task.label,
            options=arm.options,
            lr=arm.lr,
            seed=seed,
            status="finished",
            run_id=run_id,
            metrics=metrics,
            epochs=(),
        )

    def _forget_old_seeds(self, stage: int, seed: int) -> None:
        """Free the views and features of old seeds, because a sweep runs seed by seed and may have many seeds."""
        self._seeds.pop((stage, seed), None)
        self._seeds[stage, seed] = None
        while len(self._seeds) > KEPT_SEEDS:
            old_stage, old_seed = next(iter(self._seeds))
            del self._seeds[old_stage, old_seed]
            self._stages[old_stage].inputs.forget(old_seed)

    def _stage(self, number: int, request: Request) -> Stage:
        if number not in self._stages:
            self._stages[number] = open_shared_inputs(
                self._inputs[number],
                request,
                plugins=self._plugins,
                seat=self._seat,
                feature_cache=self._place.feature_cache,
            )
        return self._stages[number]


class _Epochs:
    """Report the epochs of a task."""

    def __init__(self, task: Task, tell: Tell) -> None:
        self._task = task
        self._tell = tell

    @hookimpl
    def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
        """Report this epoch."""
        self._tell(EpochEnded(self._task, epoch))


def request_of(task: Task, plugins: Plugins) -> Request:
    """Return the checked request for the params of a task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the main process has already shown these warnings
        return resolve([Layer(task.params)], plugins)


def failed(task: Task, reason: str) -> RunSummary:
    """Return the record of a task that failed before its run had a record."""
    params = task.params
    options = {key.removeprefix("strategy."): value for key, value in params.items() if key.startswith("strategy.")}
    return RunSummary(
        strategy=str(params["strategy"]),
        label=task.label,
        options=options,
        lr=float(params["lr"]) if "lr" in params else None,
        seed=int(params["seed"]),
        status="failed",
        run_id=None,
        metrics={},
        epochs=(),
        error=reason,
    )
