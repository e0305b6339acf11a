"""Check a request against real data and a real model before anything is trained."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.contracts import Reading
from adaptkit.data.domains import Domains, TestSet, load_domains
from adaptkit.data.pixels import held
from adaptkit.data.split import draw
from adaptkit.data.views import Views, views_of
from adaptkit.errors import BadInput, located
from adaptkit.experiment.base_cache import build_model, recipe_key, stored_base
from adaptkit.experiment.outcome import ArmPlan, Plan
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm, Request
from adaptkit.settings.severities import written
from adaptkit.system.hardware import find_device, find_precision, precision_notices, require_one_process
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain
from adaptkit.training.recomputation import find_blocks
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import Origin, adapt, count, set_train_mode


def can_be_adapted(untouched: nn.Module, arm: Arm) -> bool:
    """Tell whether a strategy with these options takes this model, which is left alone."""
    try:
        adapt(copy.deepcopy(untouched), arm.create(), 0, arm.new_head)
    except BadInput:
        return False
    return True


def find_memory_format(request: Request, domains: Domains, images: Tensor) -> torch.memory_format:
    """Return the layout in which convolutions are fastest, or torch's own for a model that cannot take it.

    Raises BadInput for a backbone that fails in either.
    """
    name = request.settings.backbone
    try:
        model = build_model(request, domains)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"backbone {name}: build() raises {located(error)}") from error
    try:
        try_model(model.to(memory_format=torch.channels_last), images)
        return torch.channels_last
    except Exception:  # `x.view(len(x), -1)` after a convolution, for one
        model.to(memory_format=torch.contiguous_format)
    try:
        try_model(model, images)
    except Exception as error:
        raise BadInput(f"backbone {name} fails for images {list(images.shape[1:])}: {located(error)}") from error
    return torch.contiguous_format


def try_severities(request: Request, domains: Domains) -> None:
    """Make two images at each severity; raise BadInput for a shift that fails at one."""
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


@torch.no_grad()
def try_model(model: nn.Module, images: Tensor) -> None:
    """Run a model on some images as it is run in evaluation."""
    with RandomStream(0):
        model.eval()(images.clone())


#: side, in pixels, of pictures that have no size of their own, for a backbone that asks for none
IMAGE_SIZE = 64


@dataclass(frozen=True)
class Experiment:
    """A checked request with its data on the device and its plan; every strategy has been tried on the model."""

    request: Request
    domains: Domains
    device: torch.device
    clean: tuple[Views, Tensor] | None
    shifted: tuple[Views, Tensor]
    base_key: str
    plan: Plan
    memory_format: torch.memory_format

    @functools.cached_property
    def backbone_facts(self) -> dict[str, Any]:
        """Return what the backbone says of itself, under params' names."""
        return self.request.backbone_facts(self.domains.channels, self.domains.size)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Return how pictures become what the model sees, in the words of its files."""
        facts = self.backbone_facts
        normalised = {
            key: [float(value) for value in str(facts[f"backbone.{key}"]).split(",")]
            if f"backbone.{key}" in facts
            else None
            for key in ("mean", "std")
        }
        return {
            "channels": self.domains.channels,
            "size": self.domains.size,
            "resize": "shorter side, then centre crop",
            "interpolation": "bilinear",
            "range": [0, 1],
            **normalised,
        }

    @property
    def tests(self) -> dict[str, tuple[Views, Tensor]]:
        """Return the images and labels of each test set by name, on the device."""
        clean = {} if self.clean is None else {"clean": self.clean}
        return clean | {"shifted": self.shifted}

    def some(self, count: int) -> Tensor:
        """Return the first test images, as many as that or fewer."""
        return (self.clean or self.shifted)[0][:count]

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the experiment's device, in place, in the memory layout that suits it."""
        return model.to(self.device).to(memory_format=self.memory_format)


def prepare(request: Request, *, refresh_base: bool = False, domains: Domains | None = None) -> Experiment:
    """Load the data, unless they are given, and try every strategy on the untrained model.

    Raises BadInput, for all strategies at once, before anything is trained or tracked.
    """
    require_one_process()
    device = find_device(request.settings.device)
    precision = find_precision(request.settings.precision, device)
    found: dict[str, Any] = {"device": device.type, "precision": precision}
    request = dataclasses.replace(request, settings=request.settings.model_copy(update=found))
    domains = domains or load_data(request)
    found = {"split": domains.split, "image_size": domains.size}
    request = dataclasses.replace(request, settings=request.settings.model_copy(update=found))
    settings = request.settings
    few = domains.shifted_test.pixels[:2]
    memory_format = find_memory_format(request, domains, few)
    arms: list[ArmPlan] = []
    problems: list[str] = []
    cause: Exception | None = None
    notices = [*domains.notices, *_notices(request), *precision_notices(precision, device)]
    untouched = build_model(request, domains)
    for arm in request.arms:
        try:
            strategy, model = arm.create(), copy.deepcopy(untouched)
            told = getattr(strategy, "notices", None)
            lines = told(model) if told is not None else ()
            notices += [line if line.startswith(f"{arm.strategy}: ") else f"{arm.strategy}: {line}" for line in lines]
            origin = Origin.of(model)
            adapt(model, strategy, derive_seed(settings.seed[0], "init"), arm.new_head)
            try_model(model, few)
            set_train_mode(model, settings.bn == "adapt")
            counts, shares = count(model), origin.shares(model)
            arms.append(
                ArmPlan(
                    strategy=arm.strategy,
                    label=arm.label,
                    options=arm.options,
                    lr=arm.lr,
                    parameters=counts.total,
                    trainable=counts.trainable,
                    head=shares.head,
                    adapter=shares.adapter,
                    base=shares.base,
                )
            )
        except BadInput as error:
            own = (f"strategy {arm.strategy}", f"{arm.strategy}.", f"{arm.strategy} ")
            problems += [
                line if line.startswith(own) else f"strategy {arm.strategy}: {line}" for line in error.problems
            ]
        except Exception as error:
            cause = error
            problems.append(f"strategy {arm.strategy} cannot be tried: {located(error)}")
    if problems:
        raise BadInput(*dict.fromkeys(problems)) from cause
    try_severities(request, domains)
    if settings.checkpointing and not find_blocks(untouched):
        notices.append(f"checkpointing: backbone {settings.backbone} has no blocks of several layers, nothing changes")
    key = recipe_key(request, domains)
    plan = Plan(
        dataset=settings.dataset or "none",
        target=settings.target or settings.dataset or "none",
        shift=request.shift_text,
        backbone=settings.backbone,
        device=device.type,
        precision=precision,
        source_images=len(domains.source),
        pool_images=len(domains.pool),
        shots=settings.shots,
        drawn_images=len(draw_target(request, domains, settings.seed[0])),
        clean_test_images=len(domains.clean_test or ()),
        shifted_test_images=len(domains.shifted_test.labels),
        classes=domains.classes,
        base_cached=not refresh_base and stored_base(key) is not None,
        arms=tuple(arms),
        seeds=settings.seed,
        epochs=settings.epochs,
        notices=tuple(notices),
    )
    return Experiment(
        request,
        domains,
        device,
        None if domains.clean_test is None else _moved(domains.clean_test, device),
        _moved(domains.shifted_test, device),
        key,
        plan,
        memory_format,
    )


def load_data(request: Request) -> Domains:
    """Load the images that a request asks for; raise BadInput when they cannot be had."""
    settings = request.settings
    size = settings.image_size or getattr(request.backbone, "image_size", None) or IMAGE_SIZE
    return load_domains(
        request.dataset,
        request.target,
        request.shifts,
        names=(settings.dataset, settings.target),
        shift_text=request.shift_text,
        split=settings.split,
        data_dir=settings.data_dir,
        reading=Reading(size, settings.skip_bad_images),
        image_size=settings.image_size,
    )


def _notices(request: Request) -> list[str]:
    if request.dataset is None and not request.is_pretrained:
        return [f"backbone {request.settings.backbone} has no pretrained weights: the base knows nothing yet"]
    if request.settings.base.mode == "probe" and not request.is_pretrained:
        return ["base.mode=probe: the backbone has no pretrained weights, and only its head will be trained"]
    return []


def draw_target(request: Request, domains: Domains, seed: int) -> Tensor:
    """Return the positions in the pool of the few labelled images of this seed."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "draw"))
    return draw(domains.pool.labels, request.settings.shots, request.settings.split.sampling, generator)


def _moved(test: TestSet, device: torch.device) -> tuple[Views, Tensor]:
    return test.pixels.to(device), test.labels.to(device)


STEPS = 3


def estimate_seconds(experiment: Experiment) -> float:
    """Return the seconds that training and evaluation will take, from a few batches of the base and of each arm.

    Start-up, figures and tracking are not in it; a base that is in the cache costs nothing.
    """
    settings = experiment.request.settings
    runs = sum(run_seconds(experiment, arm, settings.epochs) for arm in experiment.request.arms)
    return base_seconds(experiment) + len(settings.seed) * runs


def base_seconds(experiment: Experiment) -> float:
    """Return the seconds that training the base will take: none if it is in the cache, or is not trained."""
    request, domains = experiment.request, experiment.domains
    if experiment.plan.base_cached or domains.clean_test is None:
        return 0.0
    settings = request.settings.base
    model = experiment.place(build_model(request, domains))
    groups = [{"params": list(model.parameters())}]
    recipe = Recipe(1, settings.batch_size, settings.lr, 0, precision=request.settings.precision)
    step, test = _measure(experiment, model, groups, recipe)
    steps = math.ceil(len(domains.source) / settings.batch_size)
    return settings.epochs * (steps * step + len(domains.clean_test) * test)


def run_seconds(experiment: Experiment, arm: Arm, epochs: int) -> float:
    """Return the seconds that an adaptation run of so many epochs will take, trained and evaluated."""
    request, domains = experiment.request, experiment.domains
    settings = request.settings
    model = build_model(request, domains)
    groups = adapt(model, arm.create(), derive_seed(settings.seed[0], "init"), arm.new_head)
    recipe = Recipe(1, settings.batch_size, arm.lr, 0, settings.optimizer, precision=settings.precision)
    step, test = _measure(experiment, experiment.place(model), groups, recipe)
    tested = len(domains.clean_test or ())
    if settings.evaluate_shifted == "epoch":
        tested += len(domains.shifted_test)
    drawn = len(draw_target(request, domains, settings.seed[0]))
    epoch = math.ceil(drawn / settings.batch_size) * step + tested * test
    return epochs * epoch + len(request.severities) * len(domains.shifted_test) * test


def _measure(
    experiment: Experiment, model: nn.Module, groups: list[dict[str, Any]], recipe: Recipe
) -> tuple[float, float]:
    """Return the seconds of a training step and of evaluating one image."""
    request = experiment.request
    chosen = draw_target(request, experiment.domains, request.settings.seed[0])[: STEPS * recipe.batch_size]
    pixels = held(experiment.domains.pool.take(chosen)).pixels
    labels = experiment.domains.pool.labels[chosen].to(experiment.device)
    images, truth = experiment.clean or experiment.shifted
    some = images[:500], truth[:500]
    shifts = (*request.shifts, *request.augmentations)
    passes = plain(model, lambda number: views_of(pixels, shifts, number), some)
    for _ in range(2):  # the first pass warms up
        epoch = next(fit(model, groups, passes, labels, recipe))
    steps = math.ceil(len(labels) / recipe.batch_size)
    return (epoch.seconds - epoch.evaluation_seconds) / steps, epoch.evaluation_seconds / len(some[1])
