"""Try on a few images what an experiment asks for, before anything is trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from adaptkit.data.domains import Domains
from adaptkit.errors import BadInput, located
from adaptkit.experiment.base import build_model
from adaptkit.request import Arm, Request
from adaptkit.severity import written
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt


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
