"""Train a model: optimizers, the training loop, and the record of each epoch."""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from adaptkit.contracts import Step
from adaptkit.errors import RunFailed
from adaptkit.events import Epoch
from adaptkit.seeds import derive_seed
from adaptkit.training.checkpoints import Checkpoint, Keep, TrainingState
from adaptkit.training.evaluation import autocast, deterministic, predict
from adaptkit.training.fitted import Examples, fitted_bytes, head_examples, outputs
from adaptkit.training.objective import accuracy, balanced_weights, loss_of, predict_classes
from adaptkit.training.passes import PLAIN_VIEWS, Passes, TrainingData
from adaptkit.training.phases import Part, begin, clip, cosine_factor, divided, end, follow_schedule
from adaptkit.training.recomputation import find_blocks, recomputed
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import set_train_mode

#: optimizer methods that `torch.optim` wraps for its profiler
PROFILED = ("add_param_group", "zero_grad", "step")
KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adam": (Adam, {}),
    "adamw": (AdamW, {}),
    "sgd": (SGD, {"momentum": 0.9}),
}


def make(name: str, groups: Iterable[dict[str, Any]], **options: Any) -> Optimizer:
    """Return the optimizer of this name over parameter groups, with options of `torch.optim` such as `lr` and `fused`.

    Its steps give the same bits as those of `torch.optim`.
    """
    kind, defaults = KINDS[name]
    optimizer: Optimizer = unprofiled(kind)(list(groups), **(defaults | options))
    return optimizer


def unprofiled(kind: type[Optimizer]) -> type[Any]:
    """Return a subclass of an optimizer without the profiler's wrappers around its methods, which cost time."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in PROFILED}
    # The wrapper of `step` also turns gradients off.
    methods["step"] = torch.no_grad()(methods["step"])
    return type(kind.__name__, (kind,), methods)


T = TypeVar("T")
F = TypeVar("F", bound=TrainingData)

#: name of the held-back images of a tuning run; the loss on them is recorded too
VALIDATION = "validation"
#: learning rate that the advice after a loss that is not finite does not exceed
LARGEST_ADVISED = 0.01
#: test set -> the field of `Epoch` with its accuracy
SCORES = {"clean": "test_accuracy", "shifted": "shifted_accuracy", VALIDATION: "validation_accuracy"}


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one training.

    `order_seed` decides the order of the images and every random draw of the model's layers. `adapt_statistics` also
    updates the running statistics of frozen layers. `checkpointing` recomputes activations of a whole model's blocks
    in the backward pass instead of storing them. With `balanced`, all classes of the training images count equally in
    the loss. `schedule` changes the learning rate over the steps: `cosine` or `constant`. Gradients whose norm is
    above `clip` are scaled down to it. `lr_option` is the command-line option that sets `lr`, for messages.
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
    balanced: bool = False
    schedule: str = "constant"
    clip: float | None = None
    lr_option: str = "--lr "


def fit(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    passes: Passes,
    *,
    recipe: Recipe,
    strategy: object = None,
    start: Checkpoint | None = None,
    keep: Keep | None = None,
) -> Iterator[Epoch]:
    """Train the parameters in `groups`; evaluate after each epoch, and yield its record.

    `passes` holds the training images with their labels, and the test sets. The `strategy` can have members `loss`,
    `batch` and `step_ended`; its groups can belong to several phases. Training resumes from the checkpoint `start`; its
    epochs are not yielded again. `keep` receives the checkpoint of each epoch before the epoch is yielded; the time
    that this takes is not measured. Raises RunFailed when the loss or a weight is not finite.
    """
    order = split_batches(torch.arange(len(passes.labels)), recipe.batch_size)
    parts = divided(groups, recipe.epochs * len(order))
    trainer = _Trainer(model, parts, recipe, passes.labels.device, strategy)
    stream = RandomStream(recipe.order_seed)
    state = TrainingState(model, stream, strategy) if start is not None or keep is not None else None
    epochs: list[Epoch] = []
    if state is not None and start is not None:
        trainer.go_to(max(1, start.step))
        state.restore(start, trainer.optimizer)
        epochs += start.epochs
    for number in range(len(epochs) + 1, recipe.epochs + 1):
        clock = Clock()
        with stream, deterministic():
            loss, train_accuracy, step = _train_epoch(trainer, passes, number=number, clock=clock)
            training_seconds = clock.seconds()
            _check_finite(loss, groups, epoch=number, recipe=recipe)
            model.eval()
            scores = evaluate(passes, recipe.precision, clock)
        seconds = clock.seconds()
        epoch = Epoch(
            number=number,
            loss=loss,
            train_accuracy=train_accuracy,
            seconds=seconds,
            evaluation_seconds=seconds - training_seconds,
            cumulative_seconds=seconds + (epochs[-1].cumulative_seconds if epochs else 0.0),
            **scores,
        )
        epochs.append(epoch)
        if state is not None and keep is not None:
            keep(state.capture(epochs, step, trainer.optimizer))
        yield epoch


class _Trainer:
    """Make the steps of a training: in each phase with its own optimizer, schedule and trained parameters."""

    def __init__(
        self, model: nn.Module, parts: Sequence[Part], recipe: Recipe, device: torch.device, strategy: object
    ) -> None:
        self.model, self.recipe, self.device = model, recipe, device
        self.loss: Any = getattr(strategy, "loss", None)
        self.batch: Any = getattr(strategy, "batch", None)
        self.step_ended: Any = getattr(strategy, "step_ended", None)
        self.title = f"strategy {getattr(strategy, 'name', '')}"
        self._parts = [part for part in parts if part.last > part.first] or list(parts[-1:])
        self._entered: Part | None = None
        self.go_to(1)

    @property
    def total(self) -> int:
        """Return the number of all steps."""
        return self._parts[-1].last

    def start_epoch(self) -> None:
        """Put the model into the modes of training."""
        if len(self._parts) > 1 and self._entered is not None:
            begin(self.model, self._entered, adapt_statistics=self.recipe.adapt_statistics)
        else:
            set_train_mode(self.model, self.recipe.adapt_statistics)

    def end_epoch(self) -> None:
        """Mark the parameters of all phases as trained, since all of them are saved."""
        if len(self._parts) > 1:
            end(self._parts)

    def go_to(self, step: int) -> bool:
        """Enter the phase of a step; return whether it is another phase, which begins with a new optimizer."""
        part = next((part for part in self._parts if step <= part.last), self._parts[-1])
        if part is self._entered:
            return False
        self._entered, self._trained = part, part.parameters
        recipe = self.recipe if part.lr is None else dataclasses.replace(self.recipe, lr=part.lr)
        self.optimizer = make_optimizer(part.groups, recipe, self.device)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        return True

    def step(self, number: int) -> None:
        """Change the weights by the gradients of a step."""
        assert self._entered is not None
        clip(self._trained, self.recipe.clip)
        if self.recipe.schedule == "cosine":
            first, last = self._entered.first, self._entered.last
            follow_schedule(self.optimizer, self._rates, cosine_factor(number - first, last - first))
        self.optimizer.step()

    def changed(self, inputs: tuple[Tensor, ...], truth: Tensor, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the images and labels that the strategy makes of a batch."""
        if self.batch is None:
            return inputs, truth
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.order_seed, f"batch {step}"))
        images, labels = self.batch(inputs[0], truth, generator)
        if not (isinstance(images, Tensor) and isinstance(labels, Tensor) and len(images) == len(labels)):
            raise RunFailed(f"{self.title}: batch() must return as many images as labels, both as tensors")
        return (images,), labels

    def loss_of(self, inputs: tuple[Tensor, ...], labels: Tensor, logits: Tensor, weights: Tensor | None) -> Tensor:
        """Return the loss of a batch: that of the strategy, or the cross-entropy."""
        if self.loss is None:
            return loss_of(logits, labels, weights)
        loss = self.loss(self.model, inputs[0], labels, logits)
        if not (isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad):
            raise RunFailed(f"{self.title}: loss() must return a scalar tensor with a gradient")
        return loss


def _train_epoch(trainer: _Trainer, passes: Passes, *, number: int, clock: Clock) -> tuple[float, float, int]:
    """Train for one epoch; return the mean loss, the training accuracy, and the number of steps since the start."""
    labels, recipe = passes.labels, trainer.recipe
    device = labels.device
    trainer.start_epoch()
    blocks = find_blocks(trainer.model) if recipe.checkpointing else []
    weights = balanced_weights(labels) if recipe.balanced else None
    data = clock.charged(passes.training, number)
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    order = split_batches(batch_order(len(labels), recipe, number), recipe.batch_size)
    batches = zip(order, data.batches(order), strict=True)
    for step, (batch, inputs) in enumerate(batches, start=(number - 1) * len(order) + 1):
        if trainer.go_to(step):
            trainer.start_epoch()
        trainer.optimizer.zero_grad(set_to_none=True)
        rows = batch.to(device)
        truth = labels[rows]
        inputs, targets = trainer.changed(inputs, truth, step)
        with autocast(device, recipe.precision), recomputed(blocks):
            logits = data.network(*inputs)
            loss = trainer.loss_of(inputs, targets, logits, None if weights is None else weights[rows])
        loss.backward()
        loss_sum += loss.detach() * len(batch)
        correct += (predict_classes(logits.detach()) == truth).sum()
        trainer.step(step)
        if trainer.step_ended is not None:
            trainer.step_ended(trainer.model, Step(step, trainer.total, number))
    trainer.end_epoch()
    return loss_sum.item() / len(labels), correct.item() / len(labels), number * len(order)


def evaluate(passes: Passes, precision: str, clock: Clock) -> dict[str, Any]:
    """Return the fields of `Epoch` that the test sets give; the model must be in evaluation mode."""
    scores: dict[str, Any] = {"test_accuracy": None, "shifted_accuracy": None}
    for name, test in passes.tests.items():
        logits = predict(clock.charged(passes.testing, name), precision)
        scores[SCORES[name]] = accuracy(logits, test.labels)
        if name == VALIDATION:
            scores["validation_loss"] = loss_of(logits, test.labels).item()
    return scores


def fit_once(
    put: Callable[[Examples], nn.Module],
    probe: nn.Module,
    *,
    frozen: Passes,
    after: Callable[[nn.Module], Passes],
    precision: str,
    balanced: bool,
) -> tuple[Passes, Epoch, int]:
    """Fit a head to features once; return the passes of its model, the record of the only epoch, and its memory.

    `probe` is the base in evaluation mode, and `frozen` are its passes. `put` returns a model with a head that is
    fitted to examples, and `after` the passes of this model. The memory is that of model and features, in bytes.
    """
    clock = Clock()
    with deterministic():
        data, labels = clock.charged(frozen.training, PLAIN_VIEWS), frozen.labels
        examples = head_examples(probe, data, labels, precision=precision, balanced=balanced)
        model = put(examples).eval()
        training_seconds = clock.seconds()
        passes = after(model)
        logits = outputs(passes.training(PLAIN_VIEWS), labels, precision)
        scores = evaluate(passes, precision, clock)
    seconds = clock.seconds()
    epoch = Epoch(
        number=1,
        loss=loss_of(logits, labels, balanced_weights(labels) if balanced else None).item(),
        train_accuracy=accuracy(logits, labels),
        seconds=seconds,
        evaluation_seconds=seconds - training_seconds,
        cumulative_seconds=seconds,
        **scores,
    )
    return passes, epoch, fitted_bytes(model, examples)


class Clock:
    """Measure the time of an epoch; inputs from another run count with the time that they took to compute there."""

    def __init__(self) -> None:
        self._start, self._owed = time.perf_counter(), 0.0

    def charged(self, make: Callable[[T], F], argument: T) -> F:
        """Return `make(argument)`, and count its `seconds` instead of the duration of this call."""
        start = time.perf_counter()
        result = make(argument)
        self._owed += result.seconds - (time.perf_counter() - start)
        return result

    def seconds(self) -> float:
        """Return the seconds until now."""
        return time.perf_counter() - self._start + self._owed


def _check_finite(loss: float, groups: Sequence[dict[str, Any]], *, epoch: int, recipe: Recipe) -> None:
    advice = f"a lower learning rate may help: {recipe.lr_option}{min(recipe.lr / 10, LARGEST_ADVISED):g}"
    if not math.isfinite(loss):
        raise RunFailed(f"the loss is not finite in epoch {epoch}; {advice}")
    finite = [torch.isfinite(parameter).all() for group in groups for parameter in group["params"]]
    if not bool(torch.stack(finite).all()):
        raise RunFailed(f"the weights are not finite after epoch {epoch}; {advice}")


def batch_order(images: int, recipe: Recipe, epoch: int) -> Tensor:
    """Return the order of the training images in an epoch; it depends on the order seed and the epoch only."""
    generator = torch.Generator().manual_seed(derive_seed(recipe.order_seed, f"order {epoch}"))
    return torch.randperm(images, generator=generator)


def split_batches(order: Tensor, size: int) -> list[Tensor]:
    """Divide image indices into batches; a last batch of one image joins the one before.

    BatchNorm cannot compute the statistics of a single value.
    """
    *whole, last = order.split(size)
    if whole and len(last) == 1:
        return [*whole[:-1], torch.cat([whole[-1], last])]
    return [*whole, last]


def make_optimizer(groups: Sequence[dict[str, Any]], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over these groups; options of a group take precedence over the recipe."""
    options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": device.type in ("cpu", "cuda")}
    return make(recipe.optimizer, [_with_lr(group, recipe.lr) for group in groups], **options)


def _with_lr(group: dict[str, Any], lr: float) -> dict[str, Any]:
    """Return a group whose `lr_ratio`, if any, is replaced by a learning rate: the ratio times that of the run."""
    if "lr_ratio" not in group:
        return group
    rest = {key: value for key, value in group.items() if key != "lr_ratio"}
    return rest | {"lr": group.get("lr", lr) * group["lr_ratio"]}
