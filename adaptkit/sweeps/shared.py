"""What all trials of one stage share: data, base, what the base says, and features; made once, sent to whoever runs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from adaptkit.data.split import NOTHING
from adaptkit.errors import BadInput, TrackingLost
from adaptkit.experiment.adaptation import Stage
from adaptkit.experiment.base import obtain_base
from adaptkit.experiment.base_cache import Base
from adaptkit.experiment.inputs import ModelInputs
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.experiment.tuning_run import blinded
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.request import Request
from adaptkit.system.core_sharing import Seat
from adaptkit.system.folders import cache_folder, features_allowed
from adaptkit.tracking.store import Store
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
    stage = _stage(experiment, base, base_run_id, plugins, seat, None, feature_cache)
    logits = stage.base_logits
    store = stage.feeding.store
    features = store.of(test.images.name for test in stage.feeding.tests.values())
    return SharedInputs(
        domains=dataclasses.replace(experiment.domains, source=experiment.domains.source.take(NOTHING)),
        source_images=experiment.plan.source_images,
        base=base,
        base_run_id=base_run_id,
        base_logits={name: value.cpu() for name, value in logits.items()},
        zero_shot_over=stage.zero_shot_over,
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
    stage = _stage(experiment, material.base, material.base_run_id, plugins, seat, None, feature_cache)
    device = experiment.device
    if stage.feeding.reuse:
        stage.feeding.store.wanted |= material.wanted
        stage.feeding.store.take(
            {key: Value(value.tensor.to(device), value.seconds) for key, value in material.features.items()}
        )
    known = {name: value.to(device) for name, value in material.base_logits.items()}
    return dataclasses.replace(stage, known_logits=known, known_over=material.zero_shot_over)


def stage_for(stage: Stage, request: Request, tracker: Tracker | None, label: str | None) -> Stage:
    """Return the stage for one trial: of another strategy, with other settings of training, reported elsewhere."""
    here = stage.experiment.request.settings
    found = {"device": here.device, "precision": here.precision, "split": here.split, "image_size": here.image_size}
    request = dataclasses.replace(request, settings=request.settings.model_copy(update=found))
    plan = dataclasses.replace(stage.experiment.plan, epochs=request.settings.epochs, seeds=request.settings.seed)
    experiment = dataclasses.replace(stage.experiment, request=request, plan=plan)
    feeding = dataclasses.replace(stage.feeding, experiment=experiment)
    return dataclasses.replace(stage, experiment=experiment, feeding=feeding, tracker=tracker, label=label)


def _stage(
    experiment: Experiment,
    base: Base,
    base_run_id: str | None,
    plugins: Plugins,
    seat: Seat,
    tracker: Tracker | None,
    feature_cache: bool,
) -> Stage:
    model = experiment.place(base.build(experiment.request, experiment.domains))
    feeding = ModelInputs.of(experiment, reuse=feature_cache and features_allowed())
    return Stage(experiment, plugins, seat, tracker, feeding, base, base_run_id, model)


def use_threads(count: int | None) -> None:
    """Compute with so many threads, if the number is given, so that processes beside each other have cores enough."""
    if count is not None:
        torch.set_num_threads(count)


@dataclass(frozen=True)
class TrackedBase:
    """The base of a stage and the id of its run in the store."""

    base: Base
    run_id: str | None


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
            base, run_id, _ = obtain_base(experiment, plugins, tracker, refresh_base, notice)
            tracker.flush()
            found.append(TrackedBase(base, run_id or tracker.find_base(base.fingerprint)))
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
