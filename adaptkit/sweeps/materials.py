"""What all trials of one stage share: data, base, what the base says, and features; made once, sent to whoever runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adaptkit.cache import features_allowed
from adaptkit.data.partition import NOTHING
from adaptkit.experiment.adaptation import Stage
from adaptkit.experiment.base import Base
from adaptkit.experiment.feeding import Feeding
from adaptkit.experiment.preparation import Experiment, prepare
from adaptkit.experiment.sharing import Seat
from adaptkit.experiment.validation import blinded
from adaptkit.plugins import Plugins
from adaptkit.request import Request
from adaptkit.training.features import Value

if TYPE_CHECKING:
    from adaptkit.data.domains import Domains
    from adaptkit.tracking.tracker import Tracker

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Material:
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
) -> Material:
    """Compute what the base makes of the test sets, and what the frozen layers of every strategy do."""
    stage = _stage(experiment, base, base_run_id, plugins, seat, None, feature_cache)
    logits = stage.base_logits
    store = stage.feeding.store
    features = store.of(test.images.name for test in stage.feeding.tests.values())
    return Material(
        domains=dataclasses.replace(experiment.domains, source=experiment.domains.source.take(NOTHING)),
        source_images=experiment.plan.source_images,
        base=base,
        base_run_id=base_run_id,
        base_logits={name: value.cpu() for name, value in logits.items()},
        zero_shot_over=stage.zero_shot_over,
        features={key: Value(value.tensor.to(CPU), value.seconds) for key, value in features.items()},
        wanted=store.wanted,
    )


def without_tests(material: Material) -> Material:
    """Return what tuning needs of a material: whoever is given it cannot look at the test images."""
    return dataclasses.replace(
        material, domains=blinded(material.domains), base_logits={}, features={}, wanted=frozenset()
    )


def open_material(material: Material, request: Request, plugins: Plugins, seat: Seat, feature_cache: bool) -> Stage:
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
    feeding = Feeding.of(experiment, reuse=feature_cache and features_allowed())
    return Stage(experiment, plugins, seat, tracker, feeding, base, base_run_id, model)


def use_threads(count: int | None) -> None:
    """Compute with so many threads, if the number is given, so that processes beside each other have cores enough."""
    if count is not None:
        torch.set_num_threads(count)
