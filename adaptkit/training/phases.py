"""Divide the steps of a training into the phases of a strategy, each with an optimizer of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from adaptkit.training.trainable import PHASE, Stretch, set_train_mode

#: fraction of the steps of a phase in which the schedule `cosine` raises the learning rate
WARM_UP = 0.1


def cosine_factor(step: int, total: int) -> float:
    """Return the multiple of the learning rate in a step; the first step has the number 1.

    It rises linearly over the first tenth of the steps, and then follows half a cosine from 1 to almost 0 (Loshchilov
    and Hutter, 2017, without restarts).
    """
    warm = max(1, math.ceil(WARM_UP * total))
    if step <= warm:
        return step / warm
    return (1 + math.cos(math.pi * (step - warm) / (total - warm + 1))) / 2


@dataclass(frozen=True)
class Part:
    """A phase of one training: its optimizer groups, and its steps from after `first` to `last`."""

    groups: tuple[dict[str, Any], ...]
    first: int
    last: int
    lr: float | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained in this phase."""
        return [parameter for group in self.groups for parameter in group["params"]]


def divided(groups: Sequence[dict[str, Any]], total: int) -> list[Part]:
    """Return the phases of a training of `total` steps, by the shares that its groups declare."""
    stretches = list(dict.fromkeys(group.get(PHASE, Stretch()) for group in groups))
    whole, before, parts = sum(stretch.share for stretch in stretches), 0.0, []
    for stretch in stretches:
        mine = tuple(
            {key: value for key, value in group.items() if key != PHASE}
            for group in groups
            if group.get(PHASE, Stretch()) == stretch
        )
        first, before = round(total * before / whole), before + stretch.share
        parts.append(Part(mine, first, round(total * before / whole), stretch.lr))
    return parts


def begin(model: nn.Module, part: Part, *, adapt_statistics: bool) -> None:
    """Train only the parameters of a phase from now on."""
    trained = {id(parameter) for parameter in part.parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    set_train_mode(model, adapt_statistics)


def end(parts: Sequence[Part]) -> None:
    """Mark the parameters of all phases as trained."""
    for part in parts:
        for parameter in part.parameters:
            parameter.requires_grad_(True)


def follow_schedule(optimizer: Optimizer, rates: Sequence[float], factor: float) -> None:
    """Set the learning rate of each group to its rate times a factor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def clip(parameters: Sequence[nn.Parameter], norm: float | None) -> None:
    """Scale the gradient down to this norm, if it is larger."""
    if norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, norm)
