"""Preflight: try a backbone and its strategies on a few images before anything is trained.

The model runs forward in evaluation and in training, and backward; an adapter with changed weights is merged and
compared. Faults that would end or spoil a run are refused, and others are told as notices. `adaptkit plugins check`
uses the same functions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.backbones.layers import find_usage
from adaptkit.contracts import Strategy
from adaptkit.data.domains import Domains
from adaptkit.errors import BadInput, listed, located
from adaptkit.experiment.base_cache import build_model
from adaptkit.experiment.outcome import ArmPlan
from adaptkit.plugins.components import is_fitted
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import OF_GRADIENTS, Arm, Request
from adaptkit.training.fitted import stand_in, takes_weights
from adaptkit.training.objective import loss_of
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import Origin, adapt, set_train_mode

#: number of images of a preflight
IMAGES = 4
#: largest difference of logits that differ only in the order of sums, relative to the largest logit
TOLERANCE = 1e-4
#: standard deviation of the noise on trained parameters before an adapter is merged
NOISE = 0.05


@dataclass(frozen=True)
class Sample:
    """A few images, float32 `[n, c, h, w]` in 0..1 on the CPU, and the number of classes."""

    images: Tensor
    classes: int

    @property
    def labels(self) -> Tensor:
        """Return a label for each image, int64 `[n]`."""
        return torch.arange(len(self.images)) % self.classes


def find_sample(domains: Domains) -> Sample:
    """Return the first target test images; at least two, since BatchNorm cannot train on one."""
    images = domains.shifted_test.pixels[:IMAGES]
    return Sample(images if len(images) > 1 else torch.cat([images, images]), len(domains.classes))


# What a model does with a few images. The functions raise whatever the model raises.


def evaluated(model: nn.Module, images: Tensor) -> Any:
    """Return the outputs of a model for images in evaluation mode, with the same random numbers each time."""
    with RandomStream(0), torch.no_grad():
        return model.eval()(images.clone())


def output_fault(output: Any, sample: Sample, when: str = "") -> str:
    """Describe what is wrong with the output of a model, or return an empty string for logits `[n, classes]`.

    `when` is put after the description, as in "in training mode".
    """
    expected = [len(sample.images), sample.classes]
    kind = type(output).__name__
    when = f" {when}" if when else ""
    if not isinstance(output, Tensor):
        part = "its attribute `logits`" if hasattr(output, "logits") else "the logits alone"
        part = "its item 'logits'" if isinstance(output, Mapping) and "logits" in output else part
        return f"its forward() gives a {kind}{when}; return {part}, a tensor {expected} for {expected[0]} images"
    if list(output.shape) != expected:
        return f"its output{when} has the shape {list(output.shape)}, not {expected} for {expected[0]} images"
    if not output.is_floating_point():
        return f"its output{when} has the type {output.dtype}, not a floating-point type"
    return ""


def depends_on_batch(model: nn.Module, images: Tensor) -> bool:
    """Check whether the logits of an image in evaluation mode depend on the other images of its batch."""
    together = evaluated(model, images)
    single = torch.cat([evaluated(model, image[None]) for image in images])
    return not near(together, single)


def differs_each_time(model: nn.Module, images: Tensor) -> bool:
    """Check whether a model in evaluation mode gives other logits when it is called again."""
    with RandomStream(0), torch.no_grad():
        first, second = (model.eval()(images.clone()) for _ in range(2))
    return not near(first, second)


def near(ours: Tensor, theirs: Tensor) -> bool:
    """Check whether logits are equal up to rounding; logits that are not finite count as equal."""
    gap, largest = (ours - theirs).abs().max(), theirs.abs().max()
    return not bool(gap > TOLERANCE * largest)


def are_probabilities(output: Tensor) -> bool:
    """Check whether the outputs of a model are probabilities instead of logits: not negative, with sum 1."""
    return bool((output >= 0).all()) and torch.allclose(output.sum(1), torch.ones(len(output)).to(output), atol=1e-4)


def moved_buffers(model: nn.Module, images: Tensor) -> list[str]:
    """Return the names of buffers that a forward pass in evaluation mode changes."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    evaluated(model, images)
    return [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]


def without_gradient(model: nn.Module, sample: Sample) -> list[str]:
    """Return the names of trained parameters that the loss does not depend on, in the current mode of the model."""
    with RandomStream(0):
        loss = loss_of(model(sample.images.clone()), sample.labels)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]


def merge_fault(model: nn.Module, strategy: Strategy, images: Tensor) -> str:
    """Describe what is wrong with `merge` of a strategy, or return an empty string.

    The trained parameters of a copy are changed, and frozen ones that are zero, which would hide a difference. Then
    merging a copy of that must give the same logits, and must not change what it was copied from.
    """
    before = evaluated(model, images)
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            if parameter.requires_grad or not bool(parameter.any()):
                parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator).to(parameter))
    expected = evaluated(changed, images)
    merged = copy.deepcopy(changed)
    strategy.merge(merged)  # type: ignore[attr-defined]
    after = evaluated(merged, images)
    if not near(after, expected):
        return f"after merge() the logits differ by {float((after - expected).abs().max()):.2g}"
    try:
        unchanged = near(evaluated(model, images), before) and near(evaluated(changed, images), expected)
    except Exception as error:
        return f"merge() of a copy breaks the original: {located(error)}"
    return "" if unchanged else "merge() of a copy changes the logits of the original"


def find_memory_format(request: Request, domains: Domains, images: Tensor) -> torch.memory_format:
    """Return channels-last, in which convolutions are fastest, or the default format if the model fails with it.

    Raises BadInput for a backbone that fails with both.
    """
    name = request.settings.backbone
    try:
        model = build_model(request, domains)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"backbone {name}: build() raises {located(error)}") from error
    try:
        evaluated(model.to(memory_format=torch.channels_last), images)
        return torch.channels_last
    except Exception:  # for example `x.view(len(x), -1)` after a convolution
        model.to(memory_format=torch.contiguous_format)
    try:
        evaluated(model, images)
    except Exception as error:
        raise BadInput(f"backbone {name} fails for images {list(images.shape[1:])}: {located(error)}") from error
    return torch.contiguous_format


def try_backbone(model: nn.Module, sample: Sample, *, name: str, new_head: bool) -> list[str]:
    """Check an untrained model on a few images, and return notices for the user; the model is not changed.

    `new_head` states that the head has no pretrained weights and stays as it is until a strategy trains it. Raises
    BadInput for a model that cannot be trained or evaluated.
    """
    title = f"backbone {name}"
    usage = find_usage(model)  # on the model itself, so that the copies for strategies have it too
    model = copy.deepcopy(model)
    images = sample.images
    output = evaluated(model, images)
    if fault := output_fault(output, sample):
        raise BadInput(f"{title}: {fault}")
    if differs_each_time(model, images):
        raise BadInput(f"{title}: in evaluation mode it gives other logits each time")
    notices = []
    if are_probabilities(output):
        notices.append(
            f"{title}: its outputs are probabilities, not logits; does it end in a softmax? Remove it, since the loss "
            "applies one"
        )
    try:
        is_batch_dependent = depends_on_batch(model, images)
    except Exception as error:
        raise BadInput(f"{title} fails for a single image: {located(error)}") from error
    if is_batch_dependent:
        notices.append(
            f"{title}: in evaluation mode the logits of an image depend on the other images of its batch, so the "
            "accuracies hold only for such batches; does a BatchNorm layer have no running statistics?"
        )
    if moved := moved_buffers(model, images):
        notices.append(f"{title}: {listed(moved)} changes in evaluation mode, so results depend on their order")
    if usage is not None:
        notices += _check_head(model, usage.unused, title=title, alone=usage.heads_decide or not new_head)
    _try_training(model, sample, title)
    return notices


def _check_head(model: nn.Module, unused: frozenset[str], *, title: str, alone: bool) -> list[str]:
    """Raise BadInput if the head has no part in the logits, or not the only part; return a notice about the rest."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    head = [names[id(parameter)] for parameter in model.head.parameters()]  # type: ignore[union-attr]
    if set(head) <= unused:
        layer = head[0].rpartition(".")[0]
        raise BadInput(
            f"{title}: the logits do not depend on its last linear layer, {layer}; give the model an attribute `head` "
            "that is its classifier"
        )
    if not alone:
        raise BadInput(
            f"{title}: its new head is not its only classifier, and the other one would stay random; combine them "
            "into one layer, or train a base on a source (--dataset)"
        )
    return [f"{title}: the logits do not depend on {listed(sorted(unused))}, so it is not trained"] if unused else []


def _try_training(model: nn.Module, sample: Sample, title: str) -> None:
    """Raise BadInput if a model has no logits in training mode."""
    try:
        with RandomStream(0):
            output = model.train()(sample.images.clone())
    except Exception as error:
        raise BadInput(f"{title} fails in training mode: {located(error)}") from error
    if fault := output_fault(output, sample, "in training mode"):
        raise BadInput(f"{title}: {fault}")


@dataclass(frozen=True)
class StrategyTrial:
    """A strategy that was tried on the untrained model: its plan, and notices for the user."""

    plan: ArmPlan
    notices: tuple[str, ...]


def try_strategies(
    request: Request, model: nn.Module, sample: Sample, *, images: int | None = None
) -> list[StrategyTrial]:
    """Try every strategy on copies of an untrained model; raise BadInput with the problems of all of them.

    `images` is the number of training images of a fit, which can decide how many values a fitted head stores.
    """
    trials: list[StrategyTrial] = []
    problems: list[str] = []
    cause: Exception | None = None
    for arm in request.arms:
        try:
            trials.append(try_strategy(request, arm, model=copy.deepcopy(model), sample=sample, images=images))
        except BadInput as error:
            problems += _with_strategy(error.problems, arm.strategy)
        except Exception as error:
            cause = error
            problems.append(f"strategy {arm.strategy} cannot be tried: {located(error)}")
    if problems:
        raise BadInput(*dict.fromkeys(problems)) from cause
    return trials


def try_strategy(
    request: Request, arm: Arm, *, model: nn.Module, sample: Sample, images: int | None = None
) -> StrategyTrial:
    """Adapt a model in place, check it on a few images, and count what the strategy trains.

    Raises BadInput for a strategy that cannot be trained, or that merges wrongly.
    """
    settings = request.settings
    strategy = arm.create()
    title = f"strategy {arm.strategy}"
    if arm.new_head and getattr(strategy, "needs_source", False):
        raise BadInput(f"{title}: it needs a base with a trained head; set a source, as in --dataset NAME")
    is_batch_dependent = depends_on_batch(model, sample.images)
    notices_of = getattr(strategy, "notices", None)
    notices = list(notices_of(model)) if notices_of is not None else []
    origin = Origin.of(model, strategy)
    further = _values_per_image(model, arm) * (images - len(stand_in(model).labels)) if images and origin.fitted else 0
    adapt(model, strategy, init_seed=derive_seed(settings.seed[0], "init"), new_head=arm.new_head)
    if fault := output_fault(evaluated(model, sample.images), sample):
        raise BadInput(f"{title}: {fault}")
    if not is_batch_dependent and depends_on_batch(model, sample.images):
        notices.append("in evaluation mode the logits of an image depend on the other images of its batch")
    counts, shares = origin.counts(model), origin.shares(model)
    set_train_mode(model, settings.bn == "adapt")
    if hasattr(strategy, "loss") and settings.class_weights == "balanced":
        notices.append("its own loss takes no class weights")
    if is_fitted(strategy):
        notices += _fitted_notices(request, strategy)
    elif idle := without_gradient(model, sample):
        raise BadInput(
            f"{title}: {len(idle)} of the tensors that it trains have no gradient, since the logits do not depend on "
            f"them: {listed(idle)}"
        )
    if hasattr(strategy, "merge") and (fault := merge_fault(model, strategy, sample.images)):
        raise BadInput(f"{title}: {fault}")
    plan = ArmPlan(
        strategy=arm.strategy,
        label=arm.label,
        options=arm.options,
        lr=arm.lr,
        parameters=counts.total + further,
        trainable=counts.trainable + further,
        head=shares.head + further,
        adapter=shares.adapter,
        base=shares.base,
        searched={key: dimension.text for key, dimension in arm.searched.items()},
    )
    start = f"{arm.strategy}: "
    return StrategyTrial(plan, tuple(line if line.startswith(start) else f"{start}{line}" for line in notices))


def _values_per_image(model: nn.Module, arm: Arm) -> int:
    """Return the number of values that a fitted head stores for each training image: none, or its features."""
    stored = []
    few = len(stand_in(model).labels)
    for images in (few, few + 1):
        copied = copy.deepcopy(model)
        origin = Origin.of(copied, arm.checked)
        adapt(copied, arm.create(), init_seed=0, examples=stand_in(copied, images))
        stored.append(origin.counts(copied).trainable)
    return stored[1] - stored[0]


def _fitted_notices(request: Request, strategy: Strategy) -> list[str]:
    """Return notices about settings that have no effect on a strategy that fits a head."""
    notices = []
    if request.settings.class_weights == "balanced" and not takes_weights(strategy):
        notices.append("its head is fitted without class weights")
    if all(is_fitted(arm.checked) for arm in request.arms):
        unused = [key for key in OF_GRADIENTS if key in request.explicit]
    else:
        unused = [key for key in ("bn", "augment", "checkpointing") if key in request.explicit]
    if unused:
        notices.append(f"no effect of {listed(unused)}: its head is fitted once, without gradient descent")
    return notices


def _with_strategy(problems: Iterable[str], name: str) -> list[str]:
    """Put the strategy's name before problems that do not begin with it."""
    named = (f"strategy {name}", f"{name}.", f"{name} ")
    return [problem if problem.startswith(named) else f"strategy {name}: {problem}" for problem in problems]


def can_be_adapted(model: nn.Module, arm: Arm) -> bool:
    """Check whether a strategy with these options accepts this model; the model is not changed."""
    try:
        adapt(copy.deepcopy(model), arm.create(), init_seed=0, new_head=arm.new_head)
    except BadInput:
        return False
    return True
