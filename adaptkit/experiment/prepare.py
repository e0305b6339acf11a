"""Prepare an experiment: check a request against its data and the untrained model, and plan the runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.backbones.structure import BY_SOURCE, MEAN, STD, find_kind
from adaptkit.comparison.scores import OF_THE_WORST
from adaptkit.contracts import Reading
from adaptkit.data.domains import Domains, TestSet, load_domains
from adaptkit.data.protocols import (
    DRAWS,
    PROPORTIONAL,
    Fit,
    Wanted,
    class_counts,
    disjoint_draw,
    fold_fits,
    fold_numbers,
    given_fit,
    inner_division,
    most_shots,
    overlapping_draw,
)
from adaptkit.data.split import FOLDS, GIVEN
from adaptkit.data.views import Views
from adaptkit.errors import BadInput, listed, located
from adaptkit.experiment.base_cache import build_model, recipe_key, standardization, usable_base
from adaptkit.experiment.outcome import ArmPlan, Plan
from adaptkit.experiment.preflight import find_memory_format, find_sample, try_backbone, try_strategies
from adaptkit.settings.request import OVERLAPPING, Request, steps_per_epoch
from adaptkit.settings.severities import written
from adaptkit.system.hardware import find_device, find_precision, precision_notices, require_one_process
from adaptkit.training.recomputation import find_blocks
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import count

#: seeds of a target with its own test part, if the user sets none
GIVEN_SEEDS = (0, 1, 2)
#: a class with fewer evaluated images is named in the plan
FEW = 10
#: default side in pixels of images in a folder, for a backbone without an `image_size`
IMAGE_SIZE = 64


@dataclass(frozen=True)
class Experiment:
    """A checked request with its data on the device, and the plan of its runs."""

    request: Request
    domains: Domains
    device: torch.device
    clean: tuple[Views, Tensor] | None
    shifted: tuple[Views, Tensor]
    base_key: str
    plan: Plan
    memory_format: torch.memory_format
    #: the kind of backbone, and the smallest number of training images of a fit, on which defaults depend
    kind: str
    fewest_images: int

    @functools.cached_property
    def backbone_facts(self) -> dict[str, Any]:
        """Return facts about the backbone under the names of run parameters."""
        return self.request.backbone_facts(self.domains.channels, self.domains.size)

    def preprocessing(self, base: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return how images are turned into the model's input, as model files record it.

        `base` holds the weights and buffers of the base, and in them the statistics of the source.
        """
        facts, normalised = self.backbone_facts, {}
        standardize = standardization(self.request, self.domains)
        for key, name in (("mean", MEAN), ("std", STD)):
            values = [float(value) for value in str(facts.get(f"backbone.{key}", "")).split(",") if value]
            if standardize == BY_SOURCE:
                values = base[name].flatten().tolist()
            normalised[key] = values or None
        return {
            "channels": self.domains.channels,
            "size": self.domains.size,
            "resize": "shorter side, then centre crop",
            "interpolation": "bilinear",
            "range": [0, 1],
            **normalised,
            "standardize": standardize,
        }

    def settled(self, request: Request) -> Request:
        """Return another request for the same data and backbone, with the defaults that depend on them."""
        return request.settled(kind=self.kind, images=self.fewest_images, source_images=len(self.domains.source))

    @property
    def tests(self) -> dict[str, tuple[Views, Tensor]]:
        """Return the images and labels of each test set by name, on the device."""
        clean = {} if self.clean is None else {"clean": self.clean}
        return clean | {"shifted": self.shifted}

    def first_images(self, count: int) -> Tensor:
        """Return the first `count` test images, or all if there are fewer."""
        return (self.clean or self.shifted)[0][:count]

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model, in place, to the device and the memory format of the experiment."""
        return model.to(self.device).to(memory_format=self.memory_format)


def prepare(request: Request, *, refresh_base: bool = False, domains: Domains | None = None) -> Experiment:
    """Check a request against its data and the untrained model, before anything is trained or tracked.

    `domains` are the images, if they are loaded already. Raises BadInput with the problems of all strategies.
    """
    require_one_process()
    device = find_device(request.settings.device)
    precision = find_precision(request.settings.precision, device)
    request = request.with_settings(device=device.type, precision=precision)
    domains = domains or load_data(request)
    request = request.with_settings(split=domains.split, image_size=domains.size, **domains.protocol.params)
    is_given = domains.protocol.name == GIVEN or domains.protocol.by is not None
    if is_given and "seed" not in request.explicit:
        request = request.with_settings(seed=GIVEN_SEEDS)
    metrics, why = choose_metrics(request.settings.metric, domains.shifted_test.labels, len(domains.classes))
    if "worst_group_accuracy" in metrics and domains.labels.groups is None:
        raise BadInput("metric worst_group_accuracy: these images have no groups; set split.group or folder.group")
    request = request.with_settings(metric=metrics)
    fits = find_fits(request, domains, request.settings.seed[0])  # raises BadInput for a division that is not possible
    if request.settings.tuning.trials:
        for fit in fits:
            inner_division(domains.labels.at(fit.train), seed=0)  # likewise
    sample = find_sample(domains)
    memory_format = find_memory_format(request, domains, sample.images)
    model = build_model(request, domains)
    kind = find_kind(model)
    fewest = min(len(fit.train) for fit in fits)
    request = request.settled(kind=kind, images=fewest, source_images=len(domains.source))
    new_head = domains.clean_test is None
    backbone_notices = try_backbone(model, sample, name=request.settings.backbone, new_head=new_head)
    trials = try_strategies(request, model, sample, images=round(sum(len(fit.train) for fit in fits) / len(fits)))
    try_severities(request, domains)
    notices = (
        *domains.notices,
        *([why] if why else []),
        *base_notices(request),
        *backbone_notices,
        *precision_notices(precision, device),
        *(notice for trial in trials for notice in trial.notices),
        *checkpointing_notices(request, model),
        *unused_notices(request),
        *few_evaluated(domains),
    )
    base_key = recipe_key(request, domains)
    base_cached = not refresh_base and usable_base(base_key, request, domains) is not None
    arms = tuple(trial.plan for trial in trials)
    return Experiment(
        request=request,
        domains=domains,
        device=device,
        clean=None if domains.clean_test is None else _on_device(domains.clean_test, device),
        shifted=_on_device(domains.shifted_test, device),
        base_key=base_key,
        plan=make_plan(
            request,
            domains,
            fits=fits,
            arms=arms,
            parameters=count(model).total,
            notices=notices,
            base_cached=base_cached,
        ),
        memory_format=memory_format,
        kind=kind,
        fewest_images=fewest,
    )


#: a largest class with more than this multiple of the images of the smallest makes accuracy misleading
UNEQUAL = 3


def choose_metrics(wanted: tuple[str, ...], labels: Tensor, classes: int) -> tuple[tuple[str, ...], str]:
    """Return the metrics of the comparison, the deciding one first, and a notice if they were chosen by the labels.

    `labels` are those of the evaluated target images.
    """
    counts = labels.bincount(minlength=classes)
    largest, smallest = int(counts.max()), int(counts.min())
    if wanted or largest <= UNEQUAL * smallest:
        return wanted or ("accuracy",), ""
    return ("balanced_accuracy", "accuracy"), (
        f"metric: balanced_accuracy decides, because the largest class has {largest:,} evaluated images and the "
        f"smallest {smallest:,}; to change this, set --metric accuracy"
    )


def load_data(request: Request) -> Domains:
    """Load the images of a request; raise BadInput if that fails."""
    settings = request.settings
    size = settings.image_size or getattr(request.backbone, "image_size", None) or IMAGE_SIZE
    return load_domains(
        request.dataset,
        request.target,
        request.shifts,
        names=(settings.dataset, settings.target),
        wanted_classes=settings.classes,
        shift_text=request.shift_text,
        split=settings.split,
        data_dir=settings.data_dir,
        reading=Reading(size, settings.skip_bad_images, columns=settings.table.chosen, group=settings.folder.group),
        image_size=settings.image_size,
        wanted=Wanted(settings.protocol, folds=settings.folds, shots=settings.shots, explicit=request.explicit),
    )


def try_severities(request: Request, domains: Domains) -> None:
    """Make two images at each severity; raise BadInput for a shift that fails at one of them."""
    problems = []
    for severity, shifts in request.severities.items():
        try:
            with RandomStream(0):
                domains.few_under(shifts)
        except Exception as error:
            reasons = error.problems if isinstance(error, BadInput) else (located(error),)
            problems += [f"severity {written(severity)}: {reason}" for reason in reasons]
    if problems:
        raise BadInput(*problems)


def base_notices(request: Request) -> list[str]:
    """Return notices about a base without pretrained weights that needs them."""
    if request.has_untrained_base:
        return [f"backbone {request.settings.backbone} has no pretrained weights: the base is untrained"]
    if request.settings.base.mode == "probe" and not request.is_pretrained:
        return ["base.mode=probe: the backbone has no pretrained weights, and only its head will be trained"]
    return []


def few_evaluated(domains: Domains) -> list[str]:
    """Return a notice about classes with too few evaluated images for a verdict about them, if there are any."""
    counts = zip(domains.classes, class_counts(domains.shifted_test.labels, domains.classes), strict=True)
    few = [f"{name!r} ({count})" for name, count in counts if count < FEW]
    return [f"evaluation: {listed(few)}: fewer than {FEW} images, so results for them are uncertain"] if few else []


def unused_notices(request: Request) -> list[str]:
    """Return notices about a sampling that the protocol does not use, and a metric that gives no verdicts."""
    settings, notices = request.settings, []
    protocol = settings.protocol
    if settings.split.sampling == PROPORTIONAL and protocol not in (DRAWS, OVERLAPPING):
        notices.append(f"split.sampling: the protocol {protocol} draws no images, so proportional changes nothing")
    if settings.metric and settings.metric[0] in OF_THE_WORST:
        notices.append(
            f"metric {settings.metric[0]}: the error of this metric cannot be measured, so no pair gets a verdict; "
            "name another metric first to get verdicts"
        )
    return notices


def checkpointing_notices(request: Request, model: nn.Module) -> list[str]:
    """Return a notice if activation checkpointing is asked for and has no effect on this model."""
    if request.settings.checkpointing and not find_blocks(model):
        return [f"checkpointing: backbone {request.settings.backbone} has no blocks of several layers: no effect"]
    return []


def make_plan(
    request: Request,
    domains: Domains,
    *,
    fits: Sequence[Fit],
    arms: tuple[ArmPlan, ...],
    parameters: int,
    notices: tuple[str, ...],
    base_cached: bool,
) -> Plan:
    """Return the plan of a checked request, as users see it."""
    settings = request.settings
    drawn = round(sum(len(fit.train) for fit in fits) / len(fits))
    evaluated = class_counts(domains.shifted_test.labels, domains.classes)
    trained = [class_counts(domains.labels.numbers[fit.train], domains.classes) for fit in fits]
    return Plan(
        dataset=settings.dataset or "none",
        target=settings.target or settings.dataset or "none",
        shift=request.shift_text,
        backbone=settings.backbone,
        device=settings.device,
        precision=settings.precision,
        source_images=len(domains.source),
        pool_images=len(domains.pool),
        shots=settings.shots,
        drawn_images=drawn,
        clean_test_images=len(domains.clean_test or ()),
        shifted_test_images=len(domains.shifted_test.labels),
        classes=domains.classes,
        base_cached=base_cached,
        arms=arms,
        seeds=settings.seed,
        metrics=settings.metric,
        epochs=settings.epochs,
        base_parameters=parameters,
        steps=settings.epochs * steps_per_epoch(drawn, settings.batch_size),
        standardize=standardization(request, domains),
        balanced=settings.class_weights == "balanced",
        base_augment=request.base_augment_text,
        augment=request.augment_text,
        channels=domains.channels,
        size=domains.size,
        computed_size=str(computed) if (computed := _input_size(request, domains)) != domains.size else None,
        notices=notices,
        protocol=domains.protocol.name,
        folds=domains.protocol.folds,
        held_out=domains.protocol.by,
        groups=len(set(domains.labels.groups or ())),
        tuning_trials=settings.tuning.trials,
        training_counts=tuple(round(sum(counts) / len(fits)) for counts in zip(*trained, strict=True)),
        evaluation_counts=evaluated,
        constant_answer=domains.classes[evaluated.index(max(evaluated))],
        constant_accuracy=max(evaluated) / sum(evaluated),
    )


def _input_size(request: Request, domains: Domains) -> Any:
    """Return the side in pixels at which the backbone computes."""
    return request.backbone_facts(domains.channels, domains.size).get("backbone.input_size", domains.size)


def find_fits(request: Request, domains: Domains, seed: int) -> tuple[Fit, ...]:
    """Return the trainings of one run with this seed: one for each fold, or a single one.

    Their positions are those of images in the pool, and of images in the target test set. Raises BadInput for more
    shots than the pool has.
    """
    protocol, labels, shots = domains.protocol, domains.labels, request.settings.shots
    sampling = request.settings.split.sampling
    if protocol.name == GIVEN and shots is not None and shots > (most := int(labels.numbers.bincount().max())):
        raise BadInput(f"shots: {shots:,} images of each class, but no class has more than {most:,}; leave it out")
    if protocol.name == FOLDS:
        assigned = fold_numbers(labels, protocol.folds or 0, seed) if domains.held_out is None else domains.held_out[0]
        return fold_fits(labels, assigned, shots=shots, seed=seed)
    if protocol.name == GIVEN:
        return (given_fit(labels, shots=shots, seed=seed),)
    assert shots is not None
    if protocol.name == OVERLAPPING:
        return (Fit(overlapping_draw(labels.numbers, shots, sampling, seed)),)
    if shots > (most := most_shots(labels.numbers, sampling)):
        if "shots" in request.explicit:
            raise BadInput(
                f"shots: {shots:,} images of each class are more than half of the pool of {len(labels):,}; set at most "
                f"--set shots={most}, {'raise split.pool' if domains.split.pool == len(labels) else 'add images'}, "
                "or use every label with --protocol folds"
            )
        shots = most
    return (Fit(disjoint_draw(labels.numbers, shots, sampling, seed)),)


def draw_target(request: Request, domains: Domains, seed: int) -> Tensor:
    """Return the positions in the pool of all images that a run with this seed trains on, in any of its fits."""
    fits = find_fits(request, domains, seed)
    return fits[0].train if len(fits) == 1 else torch.unique(torch.cat([fit.train for fit in fits]))


def _on_device(test: TestSet, device: torch.device) -> tuple[Views, Tensor]:
    return test.pixels.to(device), test.labels.to(device)
