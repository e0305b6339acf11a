"""Run trials one after the other: what an engine does in this process, in others or on other machines."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from adaptkit.errors import HINT, AdaptkitError, BadInput, lacks_memory, located
from adaptkit.events import Epoch, RunStart
from adaptkit.experiment.adaptation import Stage
from adaptkit.experiment.outcome import RunSummary
from adaptkit.experiment.tuning_run import tune_once
from adaptkit.hookspecs import hookimpl
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins, PluginWarning
from adaptkit.settings.identity import trial_key
from adaptkit.settings.request import Arm, Request
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.sweeps.engines.tasks import EpochEnded, Started, Task, Tell
from adaptkit.sweeps.shared import SharedInputs, open_material, stage_for, use_threads
from adaptkit.system.core_sharing import Seat
from adaptkit.system.hardware import keep_freed_memory
from adaptkit.system.signals import origin
from adaptkit.tracking.store import Store, open_store
from adaptkit.tracking.sweeps import end_dead, finished_run, require_parent
from adaptkit.tracking.tracker import Tracker

#: seeds whose views and features are kept for the next trials
KEPT_SEEDS = 8


@dataclass(frozen=True)
class Place:
    """Where trials are recorded: `parent` is the run that groups them; plugins are named by their files."""

    tracking_uri: str
    experiment: str
    parent: str
    plugin_files: tuple[str, ...]
    feature_cache: bool

    @classmethod
    def of(cls, store: Store, parent: str, plugins: Plugins, feature_cache: bool) -> Place:
        """Return the place of an open store."""
        return cls(store.uri, store.experiment_name, parent, plugins.files, feature_cache)


@dataclass(frozen=True)
class Work:
    """What an engine needs to make workers, and the number of trials at a time that the user asks for, if any."""

    place: Place
    materials: Sequence[SharedInputs]
    plugins: Plugins
    store: Store
    seat: Seat
    jobs: int | None = None

    def worker(self) -> Worker:
        """Return a worker in this process."""
        return Worker(self.place, self.materials, self.plugins, self.store, self.seat)

    def packed(self, what: str) -> bytes:
        """Return what `open_worker` needs in another process; raise BadInput, begun by `what`, if it cannot be sent."""
        try:
            # By value: a container's shared memory is often too small for images. The materials are pickled apart,
            # because the plugins must be loaded before objects of theirs are unpickled.
            return pickle.dumps((self.place, pickle.dumps(tuple(self.materials))))
        except Exception as error:
            raise BadInput(f"{what}: these things cannot be sent to other processes: {error}") from None

    def end_lost_runs(self) -> None:
        """End, as killed, the runs of workers that were lost."""
        end_dead(self.store, self.place.parent)


def open_worker(packed: bytes, seat: Seat, threads: int) -> Worker:
    """Return a worker in a process that runs trials only, and limit torch to this number of threads."""
    keep_freed_memory()
    use_threads(threads)
    place, materials = pickle.loads(packed)
    plugins = load_plugins(place.plugin_files)
    store = open_store(place.tracking_uri, place.experiment)
    return Worker(place, pickle.loads(materials), plugins, store, seat)


class Worker:
    """Run tasks on materials, keeping the stages that are open."""

    def __init__(
        self, place: Place, materials: Sequence[SharedInputs], plugins: Plugins, store: Store, seat: Seat
    ) -> None:
        self._place = place
        self._materials = materials
        self._plugins = plugins
        self._store = store
        self._seat = seat
        self._stages: dict[int, Stage] = {}
        self._seeds: dict[tuple[int, int], None] = {}  # stages and seeds of late, the last one at the end

    def require_parent(self) -> None:
        """Raise BadInput if the tracking store on this machine is another than the sweep's."""
        require_parent(self._store, self._place.parent)

    def perform(self, task: Task, tell: Tell, attempt: int = 0) -> RunSummary:
        """Make a task's run; one that fails is a record with its reason.

        An `attempt` above 0 follows others whose worker was lost: if one of them did finish its run, that is it.
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
                stage = stage_for(self._stage(task.stage, request), request, tracker, task.label)
                self._forget_all_but_late(task.stage, seed)
                if attempt and (made := self._made_before(task, stage, arm, seed)) is not None:
                    return made
                record = tune_once(stage, arm, seed) if task.kind == "tuning" else stage.run(arm, seed)
                tracker.flush()
                record = dataclasses.replace(record, run_id=tracker.run_id(f"{task.label or arm.label} seed={seed}"))
            except Exception as error:  # a fault of a plugin, or ours: of this trial, not of the sweep
                if (cause := origin(error)) is not error:
                    raise cause from error
                known = error.problems if isinstance(error, AdaptkitError) else (HINT,) if lacks_memory(error) else ()
                reason = "; ".join(known or (located(error),))
                return failed(task, reason)
        # A trial that is not on record was not made: nobody could compare it.
        return record if tracker.fault is None else failed(task, tracker.fault)

    def _made_before(self, task: Task, stage: Stage, arm: Arm, seed: int) -> RunSummary | None:
        """Return the record of a task's run that finished before its worker was lost; end those that did not."""
        params = stage.experiment.request.run_params(arm, seed) | stage.experiment.backbone_facts
        key = trial_key(task.kind, params, stage.experiment.domains.fingerprint, stage.base.fingerprint)
        end_dead(self._store, self._place.parent, key)
        found = finished_run(self._store, self._place.parent, key)
        if found is None:
            return None
        run_id, metrics = found
        return RunSummary(arm.strategy, task.label, arm.options, arm.lr, seed, "finished", run_id, metrics, ())

    def _forget_all_but_late(self, stage: int, seed: int) -> None:
        """Drop views and features of seeds that were not run of late: a sweep goes seed by seed, and there are many."""
        self._seeds.pop((stage, seed), None)
        self._seeds[stage, seed] = None
        while len(self._seeds) > KEPT_SEEDS:
            old_stage, old_seed = next(iter(self._seeds))
            del self._seeds[old_stage, old_seed]
            self._stages[old_stage].inputs.forget(old_seed)

    def _stage(self, number: int, request: Request) -> Stage:
        if number not in self._stages:
            material = self._materials[number]
            self._stages[number] = open_material(
                material, request, self._plugins, self._seat, self._place.feature_cache
            )
        return self._stages[number]


class _Epochs:
    """Tell a task's epochs."""

    def __init__(self, task: Task, tell: Tell) -> None:
        self._task = task
        self._tell = tell

    @hookimpl
    def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
        """Tell this epoch."""
        self._tell(EpochEnded(self._task, epoch))


def request_of(task: Task, plugins: Plugins) -> Request:
    """Return the checked request that a task's params stand for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the sweep has told them
        return resolve([Layer(task.params)], plugins)


def failed(task: Task, reason: str) -> RunSummary:
    """Return the record of a task that failed before its run had one."""
    params = task.params
    options = {key.removeprefix("strategy."): value for key, value in params.items() if key.startswith("strategy.")}
    strategy, seed, lr = str(params["strategy"]), int(params["seed"]), float(params["lr"])
    return RunSummary(strategy, task.label, options, lr, seed, "failed", None, {}, (), reason)
