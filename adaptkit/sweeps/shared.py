"""Shared inputs of the trials of a sweep or a tuning: compute them once, and rebuild the stage in each worker.

`obtain_bases` trains or loads the bases. `make_shared_inputs` computes the outputs of a base and the features of its
frozen layers once, and engines send them to workers. `open_shared_inputs` makes a stage from them on the device of a
worker, and `stage_for` adapts the stage to one trial. `sweep_lock` prevents concurrent execution of the same sweep.
"""

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
from adaptkit.experiment.base import TrackedBase, base_warnings, obtain_base
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.experiment.stage import Stage, open_stage
from adaptkit.experiment.tuning_run import blinded
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.request import Request
from adaptkit.system.core_sharing import Seat
from adaptkit.system.folders import cache_folder
from adaptkit.tracking.store import Store
from adaptkit.tracking.tracker import Tracker
from adaptkit.training.frozen.features import Value

if TYPE_CHECKING:
    from adaptkit.data.domains import Domains

CPU = torch.device("cpu")


@dataclass(frozen=True)
class SharedInputs:
    """The images, the base, its outputs and the features of frozen layers; all tensors are on the CPU.

    The source images are not included, because the base is already trained.
    """

    domains: Domains
    source_images: int
    base: TrackedBase
    base_logits: Mapping[str, Tensor]
    zero_shot_over: Mapping[float, float]
    features: Mapping[tuple[str, str], Value]
    wanted: frozenset[str]


def make_shared_inputs(
    experiment: Experiment, base: TrackedBase, *, plugins: Plugins, seat: Seat, feature_cache: bool
) -> SharedInputs:
    """Compute the logits of the base on the test sets, and the features of the frozen layers for all strategies."""
    stage = open_stage(
        experiment, base.base, base_run_id=base.run_id, plugins=plugins, seat=seat, feature_cache=feature_cache
    )
    logits = stage.base_logits
    store = stage.inputs.store
    features = store.of(test.images.name for test in stage.inputs.tests.values())
    return SharedInputs(
        domains=dataclasses.replace(experiment.domains, source=experiment.domains.source.take(NOTHING)),
        source_images=experiment.plan.source_images,
        base=base,
        base_logits={name: value.cpu() for name, value in logits.items()},
        zero_shot_over=stage.zero_shot,
        features={key: Value(value.tensor.to(CPU), value.seconds) for key, value in features.items()},
        wanted=store.wanted,
    )


def without_tests(inputs: SharedInputs) -> SharedInputs:
    """Return the inputs without the test images and the values computed from them, for the trials of a tuning."""
    return dataclasses.replace(inputs, domains=blinded(inputs.domains), base_logits={}, features={}, wanted=frozenset())


def open_shared_inputs(
    inputs: SharedInputs, request: Request, *, plugins: Plugins, seat: Seat, feature_cache: bool
) -> Stage:
    """Return the stage for trials of this request, on the device of this process."""
    experiment = prepare(request, domains=inputs.domains)
    plan = dataclasses.replace(experiment.plan, source_images=inputs.source_images)
    experiment = dataclasses.replace(experiment, plan=plan)
    stage = open_stage(
        experiment,
        inputs.base.base,
        base_run_id=inputs.base.run_id,
        plugins=plugins,
        seat=seat,
        feature_cache=feature_cache,
    )
    device = experiment.device
    if stage.inputs.reuse:
        stage.inputs.store.wanted |= inputs.wanted
        stage.inputs.store.take(
            {key: Value(value.tensor.to(device), value.seconds) for key, value in inputs.features.items()}
        )
    logits = {name: value.to(device) for name, value in inputs.base_logits.items()}
    return dataclasses.replace(stage, known_logits=logits, known_zero_shot=inputs.zero_shot_over)


def stage_for(stage: Stage, request: Request, *, tracker: Tracker | None, label: str | None) -> Stage:
    """Return a copy of the stage for one trial: its strategy, its training settings and its tracker."""
    current = stage.experiment.request.settings
    request = request.with_settings(
        device=current.device, precision=current.precision, split=current.split, image_size=current.image_size
    )
    plan = dataclasses.replace(stage.experiment.plan, epochs=request.settings.epochs, seeds=request.settings.seed)
    experiment = dataclasses.replace(stage.experiment, request=request, plan=plan)
    inputs = dataclasses.replace(stage.inputs, experiment=experiment)
    return dataclasses.replace(stage, experiment=experiment, inputs=inputs, tracker=tracker, label=label)


def use_threads(count: int | None) -> None:
    """Limit torch to this number of threads, so that parallel processes share the cores; None changes nothing."""
    if count is not None:
        torch.set_num_threads(count)


def obtain_bases(
    experiments: Sequence[Experiment],
    *,
    plugins: Plugins,
    store: Store,
    refresh_base: bool,
    notice: Callable[[str], None],
) -> list[TrackedBase]:
    """Train or load the base of each experiment, and return it with its run.

    Raises TrackingLost if the store does not have the base.
    """
    with Tracker(store) as tracker, plugins.watching(tracker, "tracker"):
        bases: list[TrackedBase] = []
        obtained: set[str] = set()
        for number, experiment in enumerate(experiments, start=1):
            refresh = refresh_base and experiment.base_key not in obtained
            is_new = experiment.clean is not None and experiment.base_key not in obtained
            obtained.add(experiment.base_key)
            if is_new and (refresh or not experiment.plan.base_cached):
                which = f" {number} of {len(experiments)}" if len(experiments) > 1 else ""
                notice(f"Base{which}: {experiment.request.settings.backbone} is being trained on the source")
            tracked = obtain_base(experiment, plugins, tracker=tracker, refresh=refresh, notice=notice)
            if not tracked.cached:  # otherwise the warnings are among the notices
                for warning in base_warnings(experiment, tracked.base):
                    notice(f"Warning: the base: {warning}")
            tracker.flush()
            run_id = tracked.run_id or tracker.find_base(tracked.base.fingerprint)
            bases.append(dataclasses.replace(tracked, run_id=run_id))
    if tracker.fault is not None:
        raise TrackingLost(tracker.fault)
    return bases


def key_of(parts: Iterable[str]) -> str:
    """Return the key of a sweep of these trials, independent of their order."""
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


@contextmanager
def sweep_lock(store: Store, key: str) -> Iterator[None]:
    """Lock a sweep during the block; raise BadInput if another process on this machine has locked it."""
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
