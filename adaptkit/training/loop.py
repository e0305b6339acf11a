"""The training loop."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from adaptkit.errors import RunFailed
from adaptkit.events import Epoch
from adaptkit.seeds import derive_seed
from adaptkit.training.checkpoints import Checkpoint, Keep, Training
from adaptkit.training.evaluation import autocast, deterministic, predict, share_right
from adaptkit.training.passes import Fed, Passes
from adaptkit.training.recomputation import find_blocks, recomputed
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import set_train_mode

#: what `torch.optim.Optimizer` marks, of what is needed to build and step one
MARKED = ("add_param_group", "zero_grad", "step")
KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adam": (Adam, {}),
    "adamw": (AdamW, {}),
    "sgd": (SGD, {"momentum": 0.9}),
}


def make(name: str, groups: Iterable[dict[str, Any]], **options: Any) -> Optimizer:
    """Return the optimizer of this name over parameter groups, with `torch.optim`'s options such as `lr` and `fused`.

    Its steps are those of `torch.optim`, bit for bit.
    """
    kind, defaults = KINDS[name]
    optimizer: Optimizer = unmarked(kind)(list(groups), **(defaults | options))
    return optimizer


def unmarked(kind: type[Optimizer]) -> type[Any]:
    """Return a subclass whose methods are those inside the marks; where there are no marks, the methods themselves."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in MARKED}
    # The mark of `step` also turns gradients off.
    methods["step"] = torch.no_grad()(methods["step"])
    return type(kind.__name__, (kind,), methods)


T = TypeVar("T")
F = TypeVar("F", bound=Fed)

#: the name of the images held back from a tuning run, whose loss is kept too
VALIDATION = "validation"


@dataclass(frozen=True)
class Recipe:
    """How to train: `order_seed` decides the batches and every random draw of the model's layers.

    With `adapt_statistics`, the running statistics of frozen layers move, too. With `checkpointing`, what blocks of a
    whole model keep for the backward pass is computed again there.
    """

    epochs: int
    batch_size: int
    lr: float
    order_seed: int
    optimizer: str = "adam"
    weight_decay: float = 0.0
    precision: str = "fp32"
    adapt_statistics: bool = False
    checkpointing: bool = False
    lr_option: str = "--lr "


def fit(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    passes: Passes,
    labels: Tensor,
    recipe: Recipe,
    step_ended: Callable[[nn.Module, int], None] | None = None,
    start: Checkpoint | None = None,
    keep: Keep | None = None,
) -> Iterator[Epoch]:
    """Train the parameters in `groups`, evaluate, and yield the record of each epoch.

    `passes` gives an epoch's training images, with int64 `labels` `[n]`, and the test sets. `seconds` covers training,
    evaluation and making what they read; what was made before is charged at what it took. Training goes on
    from the checkpoint `start`, whose epochs are not yielded again; `keep` is given each epoch's before that epoch is
    yielded, which costs the epoch nothing. Raises RunFailed when the loss is not finite.
    """
    device = labels.device
    optimizer = make_optimizer(groups, recipe, device)
    stream = RandomStream(recipe.order_seed)
    clock = _Clock()
    training_state = Training(model, optimizer, stream) if start is not None or keep is not None else None
    epochs: list[Epoch] = []
    step = 0
    if training_state is not None and start is not None:
        training_state.restore(start)
        epochs, step = list(start.epochs), start.step
    cumulative = epochs[-1].cumulative_seconds if epochs else 0.0
    for number in range(len(epochs) + 1, recipe.epochs + 1):
        clock.restart()
        set_train_mode(model, recipe.adapt_statistics)
        blocks = find_blocks(model) if recipe.checkpointing else []
        with stream, deterministic():
            fed = clock.charged(passes.training, number)
            loss_sum = torch.zeros((), device=device)
            right = torch.zeros((), device=device, dtype=torch.int64)
            order = batch_order(len(labels), recipe, number).split(recipe.batch_size)
            for batch, given in zip(order, fed.batches(order), strict=True):
                optimizer.zero_grad(set_to_none=True)
                truth = labels[batch.to(device)]
                with autocast(device, recipe.precision), recomputed(blocks):
                    logits = fed.network(*given)
                    loss = nn.functional.cross_entropy(logits.float(), truth)
                loss.backward()
                loss_sum += loss.detach() * len(batch)
                right += (logits.detach().argmax(1) == truth).sum()
                optimizer.step()
                step += 1
                if step_ended is not None:
                    step_ended(model, step)
            loss_value = loss_sum.item() / len(labels)
            train_accuracy = right.item() / len(labels)
            training = clock.seconds()
            _check_finite(loss_value, groups, number, recipe)
            model.eval()
            accuracies, losses = {}, {}
            for name, test in passes.tests.items():
                logits = predict(clock.charged(passes.testing, name), recipe.precision)
                accuracies[name] = share_right(logits, test.labels)
                if name == VALIDATION:
                    losses[name] = nn.functional.cross_entropy(logits, test.labels).item()
        seconds = clock.seconds()
        cumulative += seconds
        epochs.append(
            Epoch(
                number=number,
                loss=loss_value,
                train_accuracy=train_accuracy,
                test_accuracy=accuracies.get("clean"),
                shifted_accuracy=accuracies.get("shifted"),
                seconds=seconds,
                evaluation_seconds=seconds - training,
                cumulative_seconds=cumulative,
                validation_accuracy=accuracies.get(VALIDATION),
                validation_loss=losses.get(VALIDATION),
            )
        )
        if training_state is not None and keep is not None:
            keep(training_state.capture(epochs, step))
        yield epochs[-1]


class _Clock:
    """Measure an epoch, with what others have computed for it charged at what it took them."""

    def restart(self) -> None:
        self._start, self._owed = time.perf_counter(), 0.0

    def charged(self, make: Callable[[T], F], argument: T) -> F:
        """Return what `make(argument)` gives, and count its `seconds` instead of the time that this call takes."""
        start = time.perf_counter()
        fed = make(argument)
        self._owed += fed.seconds - (time.perf_counter() - start)
        return fed

    def seconds(self) -> float:
        return time.perf_counter() - self._start + self._owed


def _check_finite(loss: float, groups: Sequence[dict[str, Any]], epoch: int, recipe: Recipe) -> None:
    advice = f"a lower learning rate may help: {recipe.lr_option}{recipe.lr / 10:g}"
    if not math.isfinite(loss):
        raise RunFailed(f"the loss is not finite in epoch {epoch}; {advice}")
    finite = [torch.isfinite(parameter).all() for group in groups for parameter in group["params"]]
    if not bool(torch.stack(finite).all()):
        raise RunFailed(f"the weights are not finite after epoch {epoch}; {advice}")


def batch_order(images: int, recipe: Recipe, epoch: int) -> Tensor:
    """Return the order in which an epoch visits the training images: by order seed and epoch alone."""
    generator = torch.Generator().manual_seed(derive_seed(recipe.order_seed, f"order {epoch}"))
    return torch.randperm(images, generator=generator)


def make_optimizer(groups: Sequence[dict[str, Any]], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over these groups; a group's own settings go before the recipe's."""
    options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": device.type in ("cpu", "cuda")}
    return make(recipe.optimizer, [_settled(group, recipe.lr) for group in groups], **options)


def _settled(group: dict[str, Any], lr: float) -> dict[str, Any]:
    """Return a group with its learning rate, where it says how many times the run's that is (`lr_ratio`)."""
    if "lr_ratio" not in group:
        return group
    rest = {key: value for key, value in group.items() if key != "lr_ratio"}
    return rest | {"lr": group.get("lr", lr) * group["lr_ratio"]}
