"""A strategy on a small model: adapt it, train it, and compute its logits."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.adapters.files import Inherited, fit_adapter
from adaptkit.backbones.structure import find_kind, replace_layer
from adaptkit.contracts import Strategy
from adaptkit.errors import BadInput
from adaptkit.events import Epoch
from adaptkit.experiment.stage import AdaptedModel
from adaptkit.experiment.training import finish
from adaptkit.plugins.components import is_fitted
from adaptkit.settings.request import default_lr
from adaptkit.testing import models
from adaptkit.testing.outcomes import CheckFailed, NotTried, described, tensors, watched
from adaptkit.training.checkpoints import Checkpoint
from adaptkit.training.evaluation import whole
from adaptkit.training.fitted import Examples, fit_head, fitted_head, head_examples, stand_in
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain_passes
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import Origin, adapt

#: numbers of epochs: two batches each, and long enough for strategies that change something after some steps
EPOCHS, LONG, BATCH = 2, 20, 8
ORDER_SEED = 2
#: tolerance for logits that differ only in the order of sums
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Trial:
    """A strategy, created by `create()`, and the name of the model for its checks."""

    create: Callable[[], Strategy]
    model: str

    @functools.cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """Return the images and labels."""
        return models.images(models.MODELS[self.model][1])

    def base(self) -> nn.Module:
        """Return a fresh base."""
        return models.base(self.model)

    def adapted(self) -> AdaptedModel:
        """Return an adapted copy of the base; raise NotTried if that fails."""
        try:
            with watched():
                return self.adapted_or_raise()
        except Refused as error:
            raise NotTried(f"it does not fit this model: {described(error)}") from None
        except Exception as error:
            raise NotTried(f"{method_of(self.create())}() fails") from error

    def adapted_or_raise(self) -> AdaptedModel:
        """Return an adapted copy of the base; raise Refused if the strategy does not support this model."""
        return self._adapted()

    def _adapted(self, examples: Examples | None = None) -> AdaptedModel:
        model = self.base()
        tensors = (*model.parameters(), *model.buffers())
        strategy = self.create()
        origin = Origin.of(model, strategy)
        if is_fitted(strategy):
            try:
                fitted_head(model)
            except BadInput as error:
                raise Refused(*error.problems) from None
        groups = adapt(model, _Refusing(strategy), init_seed=1, examples=examples)  # type: ignore[arg-type]  # it has the interface of a strategy
        return AdaptedModel(
            model=model,
            groups=groups,
            inherited=Inherited.of(model, tensors),
            origin=origin,
            strategy=strategy,
        )

    def trained(self) -> AdaptedModel:
        """Return an adapted model after a training; raise NotTried if that fails."""
        adapted = self.adapted()
        self.train(adapted)
        return adapted

    def train(self, adapted: AdaptedModel) -> None:
        """Train an adapted model; raise NotTried if that fails, because the check `trains` reports it."""
        try:
            with watched():
                self.train_or_raise(adapted)
        except Exception as error:
            raise NotTried("training fails") from error

    def long_training(self) -> LongTraining:
        """Return a long training, for checks that only read it; raise NotTried if it fails."""
        found = long_training(self)
        if found.error is not None:
            raise NotTried("training fails") from found.error
        return found

    def train_or_raise(self, adapted: AdaptedModel, epochs: int = EPOCHS) -> None:
        """Train an adapted model for a few steps, like an experiment; fit its head if the strategy does that."""
        if is_fitted(adapted.strategy):
            fitted, name = self._adapted(self.examples()).model, fitted_head(self.base())
            # The layer itself, with any state outside of its tensors.
            replace_layer(adapted.model, adapted.model.get_submodule(name), fitted.get_submodule(name))
            fit_adapter(fitted.state_dict(), adapted.model)
            return
        for _ in self._epochs(adapted, epochs):
            pass
        if hasattr(adapted.strategy, "finish"):
            finish(adapted, self.base(), seed=ORDER_SEED)

    def _epochs(self, adapted: AdaptedModel, epochs: int, **more: Any) -> Iterator[Epoch]:
        pixels, labels = self.data
        rate = default_lr(type(adapted.strategy), find_kind(adapted.model))
        recipe = Recipe(epochs=epochs, batch_size=BATCH, lr=rate, order_seed=ORDER_SEED)
        passes = plain_passes(adapted.model, lambda epoch: pixels, labels=labels, test=(pixels, labels))
        return fit(adapted.model, adapted.groups, passes, recipe=recipe, strategy=adapted.strategy, **more)

    def interrupted(self) -> tuple[AdaptedModel, AdaptedModel]:
        """Return a model after a training, and one whose training resumed after the first of its epochs.

        Raises NotTried if the training fails, and CheckFailed if it cannot resume.
        """
        kept: list[Checkpoint | str] = []
        whole, resumed = self.adapted(), self.adapted()
        try:
            with watched():
                for _ in self._epochs(whole, EPOCHS, keep=lambda checkpoint: kept.append(copy.deepcopy(checkpoint))):
                    pass
        except Exception as error:
            raise NotTried("training fails") from error
        if isinstance(kept[0], str):
            raise CheckFailed(f"its training cannot be interrupted: {kept[0]}")
        try:
            with watched():
                for _ in self._epochs(resumed, EPOCHS, start=kept[0]):
                    pass
        except Exception as error:
            raise CheckFailed(f"its training does not resume: {described(error)}") from error
        return whole, resumed

    def examples(self) -> Examples:
        """Return what the head of the base receives for the images."""
        pixels, labels = self.data
        base = self.base()
        return head_examples(base, whole(base, pixels), labels, precision="fp32", balanced=False)

    def logits(self, model: nn.Module) -> Tensor:
        """Return the logits of a model in evaluation mode, with the same random numbers each time.

        Raises NotTried if the model fails, because another check reports it.
        """
        model.eval()
        try:
            with RandomStream(3), torch.no_grad():
                logits: Tensor = model(self.data[0].clone())
        except Exception as error:
            raise NotTried("the adapted model gives no logits") from error
        return logits


@dataclass(frozen=True)
class LongTraining:
    """An adapted model after a long training, its parameters and buffers before, and the error that ended it."""

    adapted: AdaptedModel
    before: Mapping[str, Tensor]
    error: Exception | None = None

    def changed(self, names: Iterable[str]) -> list[str]:
        """Return those of the names whose parameter or buffer is not as before."""
        now = tensors(self.adapted.model)
        return [name for name in names if name not in now or not torch.equal(now[name], self.before[name])]


# The checks of a strategy take turns on the models.
@functools.lru_cache(maxsize=len(models.MODELS))
def long_training(trial: Trial) -> LongTraining:
    """Return a long training of a strategy on a model, which the checks share: they must only read it."""
    adapted = trial.adapted()
    before = {name: tensor.detach().clone() for name, tensor in tensors(adapted.model).items()}
    try:
        with watched():
            trial.train_or_raise(adapted, LONG)
    except Exception as error:
        return LongTraining(adapted, before, error)
    return LongTraining(adapted, before)


class Refused(BadInput):
    """The strategy does not support a model; the message is from the strategy."""


class _Refusing:
    """Wrap a strategy, so that errors of the strategy can be distinguished from errors of adaptkit about it."""

    def __init__(self, strategy: Strategy) -> None:
        self.name = strategy.name
        key = method_of(strategy)
        method = getattr(strategy, key)

        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            try:
                returned = method(*arguments, **options)
                return list(returned) if isinstance(returned, Iterator) else returned
            except BadInput as error:
                raise Refused(*error.problems) from None

        setattr(self, key, call)


def apply(strategy: Strategy, model: nn.Module) -> None:
    """Call the method of a strategy that changes a model."""
    if is_fitted(strategy):
        fit_head(model, strategy, stand_in(model), title=strategy.name)
    else:
        getattr(strategy, method_of(strategy))(model)


def method_of(strategy: object) -> str:
    """Return the name of the method by which a strategy chooses what is trained."""
    return next((name for name in ("fit", "phases") if callable(getattr(strategy, name, None))), "adapt")


def declared(adapted: AdaptedModel) -> list[nn.Parameter]:
    """Return the parameters that the strategy trains or fits."""
    if is_fitted(adapted.strategy):
        return [parameter for parameter in adapted.model.parameters() if parameter.requires_grad]
    return list(dict.fromkeys(parameter for group in adapted.groups for parameter in group["params"]))
