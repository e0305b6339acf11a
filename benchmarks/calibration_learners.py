"""Cheap learners for `calibration.py`: each trains many fits at once on stored features, and answers for all images.

The answers of a fit are logits, `[images, classes]`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptkit.backbones.small_cnn_layers import SmallCNNModel
from adaptkit.data.sets.torchvision_sets import read_corpus
from adaptkit.data.shifts import Noise, Rotate, rotated
from adaptkit.data.views import shifted_views
from adaptkit.seeds import derive_seed
from adaptkit.settings.settings import BaseSettings
from adaptkit.strategies.full import Full
from adaptkit.strategies.lora import LoRA
from adaptkit.training.evaluation import predict_logits
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain_passes
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt

CLASSES, SOURCE, SIDE = 10, 2500, 28
#: amounts of the default shift
ANGLE, SIGMA = 45, 0.3
#: principal components of each view of an image, and a constant
FEATURES = 64
#: sizes of groups; the images of a group are one digit at one angle with different noise
GROUP_SIZES = (1, 1, 2, 3, 5, 12)
#: nearest images of a pool among which the nearest training images are looked up
NEIGHBOURS = 50
HIDDEN, CONV, PIXELS = "hidden", "conv", "pixels"


@dataclass(frozen=True)
class Population:
    """Target images: features by view `[images, FEATURES]`, labels, group numbers or None, and the pixels or None."""

    views: Mapping[str, Tensor]
    labels: Tensor
    groups: Tensor | None = None
    pixels: Tensor | None = None

    def take(self, rows: Tensor) -> Population:
        """Return some of the images."""
        return Population(
            {name: features[rows] for name, features in self.views.items()},
            self.labels[rows],
            None if self.groups is None else self.groups[rows],
            None if self.pixels is None else self.pixels[rows],
        )


@dataclass(frozen=True)
class Task:
    """Fits on images: `masks` `[fits, images]` is 1 for training images. Learners draw random numbers from `random`."""

    images: Population
    masks: Tensor
    random: torch.Generator
    kept: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def with_masks(self, masks: Tensor) -> Task:
        """Return the same images with other fits."""
        return replace(self, masks=masks, kept={})

    def moments(self, view: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return numbers `[fits, classes]`, sums `[fits, classes, d]` and second moments `[fits, d, d]` of features."""
        if view not in self.kept:
            x, one_hot = self.images.views[view], self.one_hot()
            by_class = (one_hot[:, :, None] * x[:, None]).flatten(1)
            squares = (x[:, :, None] * x[:, None]).flatten(1)
            sums = (self.masks @ by_class).view(len(self.masks), CLASSES, -1)
            self.kept[view] = self.masks @ one_hot, sums, (self.masks @ squares).view(len(sums), *[x.shape[1]] * 2)
        numbers, sums, squares = self.kept[view]
        return numbers, sums, squares

    def neighbours(self, view: str) -> Tensor:
        """Return the nearest images that train in any fit, nearest first, `[images, NEIGHBOURS]`."""
        name = f"neighbours {view}"
        if name not in self.kept:
            trains = self.masks.any(0).nonzero().flatten()
            x = self.images.views[view]
            distances = torch.cdist(x, x[trains])
            nearest = distances.topk(min(NEIGHBOURS, len(trains)), largest=False).indices
            self.kept[name] = (trains[nearest],)
        return self.kept[name][0]

    def one_hot(self) -> Tensor:
        """Return the labels, `[images, classes]`."""
        return nn.functional.one_hot(self.images.labels, CLASSES).float()

    def linear(self, view: str, weights: Tensor) -> Tensor:
        """Return the outputs of linear models `[fits, d, classes]`, `[fits, images, classes]`."""
        fits, d, classes = weights.shape
        scores = self.images.views[view] @ weights.permute(1, 0, 2).reshape(d, fits * classes)
        return scores.view(-1, fits, classes).transpose(0, 1)


@dataclass(frozen=True)
class Answers:
    """The predicted class of each image and the negative log-likelihood of its true class, `[..., fits, images]`."""

    predicted: Tensor
    losses: Tensor

    @classmethod
    def of(cls, logits: Sequence[Tensor], labels: Tensor) -> Answers:
        """Return the answers of learners from their logits `[fits, images, classes]`."""
        truth = labels[None, :, None]
        losses = [-values.log_softmax(-1).gather(-1, truth.expand(len(values), -1, 1))[..., 0] for values in logits]
        return cls(torch.stack([values.argmax(-1) for values in logits]), torch.stack(losses))

    def split(self, fits: Sequence[int]) -> list[Answers]:
        """Divide the fits into parts of these sizes."""
        parts = zip(self.predicted.split(list(fits), dim=1), self.losses.split(list(fits), dim=1), strict=True)
        return [Answers(*part) for part in parts]

    def at(self, images: slice) -> Answers:
        """Return the answers for some of the images."""
        return Answers(self.predicted[..., images], self.losses[..., images])


Learner = Callable[[Task], Tensor]
#: factor from the outputs of ridge regression, which approximate 0 and 1, to logits
SHARPNESS = 5


def ridge(task: Task, view: str, strength: float | Tensor, kept: Tensor | None = None) -> Tensor:
    """Predict with ridge regression on one-hot labels.

    `strength` is a number, or one for each fit. `kept` `[fits, d]` is 0 for features that a fit does not use.
    """
    numbers, sums, squares = task.moments(view)
    return SHARPNESS * task.linear(view, _ridge(numbers, sums, squares, strength, kept))


def _ridge(numbers: Tensor, sums: Tensor, squares: Tensor, strength: float | Tensor, kept: Tensor | None) -> Tensor:
    """Return the weights of ridge regression, `[fits, d, classes]`."""
    images = numbers.sum(-1)[:, None, None]
    penalty = torch.as_tensor(strength).view(-1, 1, 1) * images
    if kept is not None:
        sums, squares = sums * kept[:, None], squares * kept[:, :, None] * kept[:, None]
    return torch.linalg.solve(squares + penalty * torch.eye(squares.shape[-1]), sums.mT)


def random_ridge(task: Task, view: str, features: int) -> Tensor:
    """Predict with ridge regression on a random subset of the features, another one in each fit."""
    width = task.images.views[view].shape[1]
    ranks = torch.rand(len(task.masks), width, generator=task.random).argsort(1).argsort(1)
    return ridge(task, view, 0.01, (ranks < features).float())


def nearest_mean(task: Task, view: str, projected: int | None = None) -> Tensor:
    """Predict the class with the nearest mean, in a random projection to so many features if that is given."""
    numbers, sums, _ = task.moments(view)
    means = sums / numbers[:, :, None].clamp(min=1)
    seen = means
    if projected is not None:
        random = torch.randn(len(means), means.shape[-1], projected, generator=task.random)
        means = means @ random
        seen = means @ random.mT
    offset = means.square().sum(-1) / 2 + torch.where(numbers > 0, 0.0, math.inf)
    weights = seen.mT.clone()
    weights[:, -1] -= offset  # the last feature is constant 1
    return task.linear(view, weights.nan_to_num(neginf=-1e9))


def discriminant(task: Task, view: str, shrinkage: float) -> Tensor:
    """Predict with linear discriminant analysis; its covariance is shrunk to a multiple of the identity."""
    numbers, sums, squares = task.moments(view)
    means = sums / numbers[:, :, None].clamp(min=1)
    within = (squares - means.mT @ sums) / numbers.sum(-1)[:, None, None]
    scale = within.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    weights = torch.linalg.solve((1 - shrinkage) * within + shrinkage * scale * torch.eye(within.shape[-1]), means.mT)
    offset = (means.mT * weights).sum(1) / 2 + torch.where(numbers > 0, 0.0, 1e9)
    weights[:, -1] -= offset
    return task.linear(view, weights)


def nearest_neighbours(task: Task, view: str, count: int) -> Tensor:
    """Predict the commonest class of the nearest training images."""
    nearest = task.neighbours(view)
    trains = task.masks[:, nearest]  # [fits, images, neighbours]
    votes = (trains * (trains.cumsum(-1) <= count)).transpose(0, 1)
    nearer = 1 - torch.arange(nearest.shape[1]) / 1e4  # ties are decided by distance
    return ((votes * nearer) @ task.one_hot()[nearest] + 0.5).log().transpose(0, 1)


def softmax(task: Task, view: str, *, steps: int, lr: float, times: int = 1, batch: int = 16) -> Tensor:
    """Predict with softmax regression: stochastic gradient descent from random weights, `times` for each fit."""
    x, one_hot = task.images.views[view], task.one_hot()
    masks = task.masks.repeat(times, 1)
    rows = torch.multinomial(masks, steps * batch, replacement=True, generator=task.random)
    weights = 0.1 * torch.randn(len(masks), x.shape[1], CLASSES, generator=task.random)
    for step in rows.split(batch, dim=1):
        inputs = x[step]
        error = (inputs @ weights).softmax(-1) - one_hot[step]
        weights -= lr / batch * (inputs.mT @ error)
    return task.linear(view, weights)


@dataclass(frozen=True)
class Candidates:
    """Settings that a tuning tries, one for each fit and trial `[fits, trials]`."""

    strength: Tensor
    features: Tensor

    @classmethod
    def drawn(cls, fits: int, trials: int, random: torch.Generator) -> Candidates:
        """Draw settings of ridge regression."""
        strength = 10 ** (4 * torch.rand(fits, trials, generator=random) - 3)
        return cls(strength, torch.randint(6, FEATURES, (fits, trials), generator=random))

    def predict(self, task: Task, view: str, trial: Tensor) -> Tensor:
        """Return predictions with one of the trials `[fits]` of each fit."""
        used = self.features.gather(1, trial[:, None])
        kept = torch.arange(FEATURES) < used
        kept[:, -1] = True
        return ridge(task, view, self.strength.gather(1, trial[:, None])[:, 0], kept.float()).argmax(-1)


def tuned(task: Task, view: str, trials: int) -> Tensor:
    """Predict with ridge regression that is tuned in each fit on a random fifth of its training images."""
    held_back = (torch.rand(task.masks.shape, generator=task.random) < 0.2).float()
    inner = task.with_masks(task.masks * (1 - held_back))
    candidates = Candidates.drawn(len(task.masks), trials, task.random)
    right = torch.stack([right_of(inner, candidates, view, n, task.masks * held_back) for n in range(trials)])
    return candidates.predict(task, view, right.argmax(0))


def right_of(task: Task, candidates: Candidates, view: str, trial: int, evaluated: Tensor) -> Tensor:
    """Return the number of evaluated images `[fits, images]` that a trial of each fit predicts correctly."""
    predicted = candidates.predict(task, view, torch.full((len(task.masks),), trial))
    return ((predicted == task.images.labels) * evaluated).sum(1)


#: learners that differ
LEARNERS: dict[str, Learner] = {
    "ridge 0.001": functools.partial(ridge, view=HIDDEN, strength=1e-3),
    "ridge 0.1": functools.partial(ridge, view=HIDDEN, strength=0.1),
    "ridge conv": functools.partial(ridge, view=CONV, strength=0.1),
    "ridge pixels": functools.partial(ridge, view=PIXELS, strength=0.1),
    "means": functools.partial(nearest_mean, view=HIDDEN),
    "means conv": functools.partial(nearest_mean, view=CONV),
    "discriminant 0.1": functools.partial(discriminant, view=HIDDEN, shrinkage=0.1),
    "discriminant 0.5": functools.partial(discriminant, view=HIDDEN, shrinkage=0.5),
    "discriminant conv": functools.partial(discriminant, view=CONV, shrinkage=0.3),
    "1 neighbour": functools.partial(nearest_neighbours, view=HIDDEN, count=1),
    "5 neighbours": functools.partial(nearest_neighbours, view=HIDDEN, count=5),
    "3 neighbours conv": functools.partial(nearest_neighbours, view=CONV, count=3),
    "softmax short": functools.partial(softmax, view=HIDDEN, steps=15, lr=0.1),
    "softmax conv": functools.partial(softmax, view=CONV, steps=60, lr=0.1),
}
#: families of four learners that differ only in their random numbers, so that they are equal in truth
FAMILIES: dict[str, Learner] = {
    "softmax": functools.partial(softmax, view=HIDDEN, steps=40, lr=0.1),
    "random features": functools.partial(random_ridge, view=CONV, features=32),
    "projected means": functools.partial(nearest_mean, view=HIDDEN, projected=12),
}
MEMBERS = 4
FAMILY_NAMES = [f"{name} {number}" for name in FAMILIES for number in range(MEMBERS)]


def learn_families(task: Task) -> Answers:
    """Return the answers of all members of all families, `[FAMILY_NAMES, fits, images]`."""
    return Answers.of([learner(task) for learner in FAMILIES.values() for _ in range(MEMBERS)], task.images.labels)


def learn_all(task: Task) -> Answers:
    """Return the answers of the families and of the other learners, `[learners, fits, images]`."""
    families = [learner(task) for learner in FAMILIES.values() for _ in range(MEMBERS)]
    return Answers.of([*families, *(learner(task) for learner in LEARNERS.values())], task.images.labels)


def fine_tuned(base: nn.Module, strategy: str, task: Task, seeds: Sequence[int]) -> Tensor:
    """Return the logits of adaptkit's own fine-tuning with its default settings, one training for each fit."""
    assert task.images.pixels is not None
    pixels, labels = task.images.pixels, task.images.labels
    logits = []
    for seed, mask in zip(seeds, task.masks, strict=True):
        model = _copy(base)
        chosen = {"full": Full, "lora": LoRA}[strategy]()
        groups = adapt(model, chosen, init_seed=derive_seed(seed, "init"))
        rows = mask.nonzero().flatten()
        train = pixels[rows]
        passes = plain_passes(model, lambda epoch, x=train: x, labels=labels[rows], test=(pixels[:1], labels[:1]))
        recipe = Recipe(epochs=10, batch_size=32, lr=chosen.lr, order_seed=derive_seed(seed, "order"))
        for _ in fit(model, groups, passes, recipe=recipe):
            pass
        model.eval()
        logits.append(predict_logits(model, pixels))
    return torch.stack(logits)


def _copy(base: nn.Module) -> SmallCNNModel:
    model = SmallCNNModel(1, SIDE, CLASSES)
    model.load_state_dict(base.state_dict())
    return model


def make_populations(data_dir: Path, cache: Path) -> tuple[nn.Module, Population, Population]:
    """Return a base and two populations of shifted MNIST: single images, and groups. They are stored in `cache`.

    The base is trained with adaptkit's training loop and default settings. Its source images, which also determine the
    principal components, are not in the populations.
    """
    if cache.exists():
        state, *populations = torch.load(cache, weights_only=True)
    else:
        corpus = read_corpus(data_dir, "MNIST")
        pixels = torch.cat([corpus.train.pixels, corpus.test.pixels])
        labels = torch.cat([corpus.train.labels, corpus.test.labels])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        source, targets = order[:SOURCE], order[SOURCE:]
        base = _trained_base(pixels[source].float() / 255, labels[source])
        to_features = _feature_maps(base, pixels[source].float() / 255)
        single = shifted_views(pixels[targets], [Rotate(ANGLE), Noise(SIGMA)], seed=1)
        random = torch.Generator().manual_seed(2)
        sizes = torch.tensor(GROUP_SIZES).repeat(len(targets) // (2 * sum(GROUP_SIZES)))
        groups = torch.arange(len(sizes)).repeat_interleave(sizes)
        angles = ANGLE * (2 * torch.rand(len(sizes), generator=random, dtype=torch.float64) - 1)
        copies = rotated(pixels[targets[groups]].float() / 255, angles[groups])
        copies = Noise(SIGMA).apply(copies, random)
        populations = [
            (to_features(single), labels[targets], None, (single * 255).round().byte()),
            (to_features(copies), labels[targets[groups]], groups, None),
        ]
        state = base.state_dict()
        torch.save((state, *populations), cache)
    base = SmallCNNModel(1, SIDE, CLASSES)
    base.load_state_dict(state)
    return base, *(Population(*parts) for parts in populations)


def _trained_base(images: Tensor, labels: Tensor) -> SmallCNNModel:
    settings = BaseSettings()
    with RandomStream(derive_seed(settings.seed, "base init")):
        base = SmallCNNModel(1, SIDE, CLASSES)
    passes = plain_passes(base, lambda epoch: images, labels=labels, test=(images[:1], labels[:1]))
    seed = derive_seed(settings.seed, "base order")
    recipe = Recipe(epochs=settings.epochs, batch_size=settings.batch_size, lr=settings.lr, order_seed=seed)
    for _ in fit(base, [{"params": list(base.parameters())}], passes, recipe=recipe):
        pass
    return base.eval()


def _feature_maps(base: SmallCNNModel, source: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a function from images to features by view: principal components of source images, and a constant."""
    layers: dict[str, Callable[[Tensor], Tensor]] = {
        PIXELS: lambda x: x.flatten(1),
        CONV: lambda x: base.features(x).flatten(1),
        HIDDEN: lambda x: base.classifier[:3](base.features(x)),
    }

    @torch.no_grad()
    def apply(images: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([layer(part) for part in images.split(1000)])

    maps = {}
    for name, layer in layers.items():
        values = apply(source, layer)
        mean = values.mean(0)
        _, sizes, axes = torch.svd_lowrank(values - mean, q=FEATURES - 1, niter=4)
        scale = sizes.square().mean().sqrt() / math.sqrt(len(values))
        maps[name] = mean, axes / scale

    def features(images: Tensor) -> dict[str, Tensor]:
        result = {}
        for name, layer in layers.items():
            mean, axes = maps[name]
            values = torch.cat([(apply(part, layer) - mean) @ axes for part in images.split(1000)])
            result[name] = torch.cat([values, torch.ones(len(values), 1)], dim=1)
        return result

    return features
