"""What all trials of one stage share: data, base, what the base says, and features; made once, sent to whoever runs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from adaptkit.comparison.records import Comparisons
from adaptkit.data.split import NOTHING
from adaptkit.errors import BadInput, TrackingLost
from adaptkit.experiment.adaptation import Stage, open_stage
from adaptkit.experiment.base import TrackedBase, obtain_base
from adaptkit.experiment.base_cache import Base
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.experiment.tuning_run import blinded
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.request import Request
from adaptkit.system.core_sharing import Seat
from adaptkit.system.folders import cache_folder
from adaptkit.tracking.store import Store
from adaptkit.tracking.sweeps import close_sweep, open_sweep
from adaptkit.tracking.tracker import Tracker
from adaptkit.training.frozen.features import Value

if TYPE_CHECKING:
    from adaptkit.data.domains import Domains

CPU = torch.device("cpu")


@dataclass(frozen=True)
class SharedInputs:
    """The images, the base and all that is computed of them once for many trials; every tensor is on the CPU.

    The images of the source are left out: the base is trained.
    """

    domains: Domains
    source_images: int
    base: Base
    base_run_id: str | None
    base_logits: Mapping[str, Tensor]
    zero_shot_over: Mapping[float, float]
    features: Mapping[tuple[str, str], Value]
    wanted: frozenset[str]


def make_material(
    experiment: Experiment, base: Base, base_run_id: str | None, plugins: Plugins, seat: Seat, feature_cache: bool
) -> SharedInputs:
    """Compute what the base makes of the test sets, and what the frozen layers of every strategy do."""
    stage = open_stage(
        experiment, base, base_run_id=base_run_id, plugins=plugins, seat=seat, feature_cache=feature_cache
    )
    logits = stage.base_logits
    store = stage.inputs.store
    features = store.of(test.images.name for test in stage.inputs.tests.values())
    return SharedInputs(
        domains=dataclasses.replace(experiment.domains, source=experiment.domains.source.take(NOTHING)),
        source_images=experiment.plan.source_images,
        base=base,
        base_run_id=base_run_id,
        base_logits={name: value.cpu() for name, value in logits.items()},
        zero_shot_over=stage.zero_shot,
        features={key: Value(value.tensor.to(CPU), value.seconds) for key, value in features.items()},
        wanted=store.wanted,
    )


def without_tests(material: SharedInputs) -> SharedInputs:
    """Return what tuning needs of a material: whoever is given it cannot look at the test images."""
    return dataclasses.replace(
        material, domains=blinded(material.domains), base_logits={}, features={}, wanted=frozenset()
    )


def open_material(material: SharedInputs, request: Request, plugins: Plugins, seat: Seat, feature_cache: bool) -> Stage:
    """Return the stage on which trials such as this request are run, on this process's device."""
    experiment = prepare(request, domains=material.domains)
    plan = dataclasses.replace(experiment.plan, source_images=material.source_images)
    experiment = dataclasses.replace(experiment, plan=plan)
    stage = open_stage(
        experiment,
        material.base,
        base_run_id=material.base_run_id,
        plugins=plugins,
        seat=seat,
        feature_cache=feature_cache,
    )
    device = experiment.device
    if stage.inputs.reuse:
        stage.inputs.store.wanted |= material.wanted
        stage.inputs.store.take(
            {key: Value(value.tensor.to(device), value.seconds) for key, value in material.features.items()}
        )
    known = {name: value.to(device) for name, value in material.base_logits.items()}
    return dataclasses.replace(stage, known_logits=known, known_zero_shot=material.zero_shot_over)


def stage_for(stage: Stage, request: Request, tracker: Tracker | None, label: str | None) -> Stage:
    """Return the stage for one trial: of another strategy, with other settings of training, reported elsewhere."""
    here = stage.experiment.request.settings
    request = request.with_settings(
        device=here.device, precision=here.precision, split=here.split, image_size=here.image_size
    )
    plan = dataclasses.replace(stage.experiment.plan, epochs=request.settings.epochs, seeds=request.settings.seed)
    experiment = dataclasses.replace(stage.experiment, request=request, plan=plan)
    inputs = dataclasses.replace(stage.inputs, experiment=experiment)
    return dataclasses.replace(stage, experiment=experiment, inputs=inputs, tracker=tracker, label=label)


def use_threads(count: int | None) -> None:
    """Compute with so many threads, if the number is given, so that processes beside each other have cores enough."""
    if count is not None:
        torch.set_num_threads(count)


def obtain_bases(
    experiments: Sequence[Experiment],
    plugins: Plugins,
    store: Store,
    refresh_base: bool,
    notice: Callable[[str], None],
) -> list[TrackedBase]:
    """Return the base of each experiment, trained now or earlier, with its run; raise TrackingLost without a store."""
    with Tracker(store) as tracker, plugins.watching(tracker, "tracker"):
        found = []
        for number, experiment in enumerate(experiments, start=1):
            is_trained = experiment.clean is not None
            if is_trained and (refresh_base or not experiment.plan.base_cached):
                which = f" {number} of {len(experiments)}" if len(experiments) > 1 else ""
                notice(f"Base{which}: {experiment.request.settings.backbone} is being trained on the source")
            tracked = obtain_base(experiment, plugins, tracker=tracker, refresh=refresh_base, notice=notice)
            tracker.flush()
            run_id = tracked.run_id or tracker.find_base(tracked.base.fingerprint)
            found.append(dataclasses.replace(tracked, run_id=run_id))
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
class ParentRun:
    """The run that groups others, until it is closed with what they say."""

    run_id: str
    store: Store
    is_closed: bool = False

    def close(self, status: str, findings: Comparisons | None = None, files: Sequence[Path] = ()) -> None:
        """End the run, if it has not been ended yet, with what those it groups say, and files."""
        if not self.is_closed:
            self.is_closed = True
            close_sweep(self.store, self.run_id, status, findings, files)


@contextmanager
def grouped(
    store: Store, key: str, name: str, params: Mapping[str, object], tags: Mapping[str, str] | None = None
) -> Iterator[ParentRun]:
    """Lend the run that groups those of a sweep; it ends as what became of it, whatever happens."""
    group = ParentRun(open_sweep(store, key, name, params, tags or {}), store)
    try:
        yield group
    except BaseException as error:
        group.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    group.close("FINISHED")
