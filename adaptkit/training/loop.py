"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.contracts import Epoch
from adaptkit.errors import RunFailed
from adaptkit.seeds import derive_seed
from adaptkit.training.evaluation import accuracy, autocast, deterministic
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import set_train_mode

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, **options),
}


@dataclass(frozen=True)
class Recipe:
    """How to train: `order_seed` decides the batches and every random draw of the model's layers."""

    epochs: int
    batch_size: int
    lr: float
    order_seed: int
    optimizer: str = "adam"
    weight_decay: float = 0.0
    precision: str = "fp32"
    lr_option: str = "--lr "


@dataclass(frozen=True)
class Evaluation:
    """Test images on the model's device: the clean ones and, where they are evaluated each epoch, the shifted."""

    clean: tuple[Tensor, Tensor]
    shifted: tuple[Tensor, Tensor] | None = None


def fit(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    views: Callable[[int], Tensor],
    labels: Tensor,
    recipe: Recipe,
    tests: Evaluation,
    step_ended: Callable[[nn.Module, int], None] | None = None,
) -> Iterator[Epoch]:
    """Train the parameters in `groups`, evaluate, and yield the record of each epoch.

    `views(number)` gives that epoch's training images, float `[n, c, h, w]`, and `labels` int64 `[n]`.
    `seconds` covers making the views, training and evaluation. Raises RunFailed when the loss is not finite.
    """
    device = labels.device
    optimizer = make_optimizer(groups, recipe, device)
    stream = RandomStream(recipe.order_seed)
    cumulative, step = 0.0, 0
    for number in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        with stream, deterministic():
            pixels = views(number).to(device)
            set_train_mode(model)
            loss_sum = torch.zeros((), device=device)
            right = torch.zeros((), device=device, dtype=torch.int64)
            for batch in batch_order(len(labels), recipe, number).split(recipe.batch_size):
                indices = batch.to(device)
                truth = labels[indices]
                optimizer.zero_grad(set_to_none=True)
                with autocast(device, recipe.precision):
                    logits = model(pixels[indices])
                    loss = nn.functional.cross_entropy(logits.float(), truth)
                loss.backward()
                optimizer.step()
                step += 1
                if step_ended is not None:
                    step_ended(model, step)
                loss_sum += loss.detach() * len(batch)
                right += (logits.detach().argmax(1) == truth).sum()
            loss_value = loss_sum.item() / len(labels)
            trained_at = time.perf_counter()
            if not math.isfinite(loss_value):
                raise RunFailed(
                    f"the loss is not finite in epoch {number}; "
                    f"a lower learning rate may help: {recipe.lr_option}{recipe.lr / 10:g}"
                )
            if not all(bool(torch.isfinite(p).all()) for group in groups for p in group["params"]):
                raise RunFailed(
                    f"the weights are not finite after epoch {number}; "
                    f"a lower learning rate may help: {recipe.lr_option}{recipe.lr / 10:g}"
                )
            clean = accuracy(model, *tests.clean, recipe.precision)
            shifted = accuracy(model, *tests.shifted, recipe.precision) if tests.shifted else None
        now = time.perf_counter()
        cumulative += now - start
        yield Epoch(
            number=number,
            loss=loss_value,
            train_accuracy=right.item() / len(labels),
            test_accuracy=clean,
            shifted_accuracy=shifted,
            seconds=now - start,
            evaluation_seconds=now - trained_at,
            cumulative_seconds=cumulative,
        )


def batch_order(images: int, recipe: Recipe, epoch: int) -> Tensor:
    """Return the order in which an epoch visits the training images: by order seed and epoch alone."""
    generator = torch.Generator().manual_seed(derive_seed(recipe.order_seed, f"order {epoch}"))
    return torch.randperm(images, generator=generator)


def make_optimizer(groups: Sequence[dict[str, Any]], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over these groups; a group's own settings go before the recipe's."""
    options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": device.type in ("cpu", "cuda")}
    return OPTIMIZERS[recipe.optimizer](list(groups), **options)
