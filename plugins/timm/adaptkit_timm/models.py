"""Build timm models that resize and normalise their images and have an attribute `head`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torch.nn import functional

from adaptkit import BadInput
from adaptkit.backbones.structure import start_near_zero
from adaptkit_timm.configs import architecture_of, arguments_of, find_config
from adaptkit_timm.weights import load_weights


@dataclass(frozen=True)
class InputPlan:
    """Plan for resizing images `[n, channels, size, size]` in 0..1 to `pixels` (height, width) and normalising them."""

    name: str
    config: PretrainedCfg
    channels: int
    size: int
    pixels: tuple[int, int]

    @classmethod
    def of(cls, name: str, wanted: str, channels: int, size: int) -> InputPlan:
        """Return the plan for a model, its option `size` and the images. Raises BadInput for an unknown model."""
        config = find_config(name)
        sides = {"model": tuple(config.input_size[-2:]), "data": (size, size)}
        return cls(name, config, channels, size, sides.get(str(wanted)) or (int(wanted), int(wanted)))

    @property
    def model_channels(self) -> int:
        """Return the input channels of the model. Grey images are expanded; other images keep their channels."""
        return int(self.config.input_size[0]) if self.channels == 1 else self.channels

    @property
    def mean(self) -> list[float]:
        """Return the mean of each channel. timm's values are repeated if there are more channels."""
        return self._each(self.config.mean)

    @property
    def std(self) -> list[float]:
        """Return the standard deviation of each channel."""
        return self._each(self.config.std)

    def described(self) -> dict[str, str | int | float]:
        """Return the plan as run parameters."""
        height, width = self.pixels
        return {
            "channels": self.model_channels,
            "input_size": height if height == width else f"{height}x{width}",
            "mean": ",".join(f"{value:g}" for value in self.mean),
            "std": ",".join(f"{value:g}" for value in self.std),
        }

    def _each(self, values: tuple[float, ...]) -> list[float]:
        return [float(values[place % len(values)]) for place in range(self.model_channels)]


def build_model(plan: InputPlan, weights: str, classes: int, weights_by: str = "name") -> nn.Module:
    """Return timm's model with these weights and number of classes. Raises BadInput if it cannot be built."""
    title = f"backbone timm:{plan.name}"
    loaded = load_weights(plan.name, plan.config, weights, weights_by)
    settings: dict[str, Any] = {**arguments_of(plan.name), "num_classes": classes, "in_chans": plan.model_channels}
    if plan.config.fixed_input_size:
        settings["img_size"] = plan.pixels

    def create(**more: Any) -> nn.Module:
        overlay = loaded.overlay() if loaded else None
        return timm.create_model(
            architecture_of(plan.name),
            pretrained=loaded is not None,
            pretrained_cfg_overlay=overlay,
            **settings,
            **more,
        )

    try:
        model = create()
        if getattr(model, "dynamic_img_size", False):
            # A dynamic size would prevent tracing of frozen layers. It is not needed: all images have the same size.
            model = create(dynamic_img_size=False)
    except Exception as error:  # models raise many types for settings and weights
        raise BadInput(f"{title}: it cannot be built at {_shown(plan)}: {_in_short(error)}") from error
    # Do not keep a second copy of the weights.
    model.pretrained_cfg.pop("state_dict", None)
    classifier = _classifier(model, title)
    if loaded is None or classes != (loaded.classes or plan.config.num_classes):
        start_near_zero(model.get_submodule(classifier))  # type: ignore[arg-type]
    _prepare(model, plan, classifier)
    _try(model, plan, title)
    return model


def _classifier(model: nn.Module, title: str) -> str:
    """Return the name of the last linear layer of the model's classifier."""
    classifier: Any = model.get_classifier()  # type: ignore[operator]
    layer = classifier[0] if isinstance(classifier, tuple) else classifier  # distilled models have two
    linear = [part for part in layer.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise BadInput(f"{title}: its classifier must be a linear layer, got {type(layer).__name__}")
    return next(name for name, part in model.named_modules() if part is linear[-1])


def _prepare(model: nn.Module, plan: InputPlan, classifier: str) -> None:
    """Add preprocessing to the model. Its class becomes a subclass, so that state_dict keys stay the same."""
    for name, values in (("input_mean", plan.mean), ("input_std", plan.std)):
        # The buffers are not persistent, so that files of weights keep timm's format.
        model.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
    model.resized_to = plan.pixels if plan.pixels != (plan.size, plan.size) else None  # type: ignore[assignment]
    model.classifier_name = classifier  # type: ignore[assignment]
    model.__class__ = _prepared(type(model), headed=not hasattr(model, "head"))


@functools.cache
def _prepared(cls: type[nn.Module], headed: bool) -> type[nn.Module]:
    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _rebuild, (cls, headed), self.__dict__

    members: dict[str, Any] = {
        "forward": _forward,
        "timm_forward": cls.forward,
        "extra_repr": _extra_repr,
        "__reduce_ex__": reduce,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    if headed:
        members["head"] = property(lambda self: self.get_submodule(self.classifier_name))
    return type(cls.__name__, (cls,), members)


def _rebuild(cls: type[nn.Module], headed: bool) -> nn.Module:
    prepared = _prepared(cls, headed)
    return prepared.__new__(prepared)


def _forward(self: Any, x: Tensor) -> Tensor:
    """Return the logits of images in 0..1. Broadcasting with the mean expands grey images."""
    if self.resized_to is not None:
        x = functional.interpolate(x, self.resized_to, mode="bilinear", antialias=True)
    logits: Tensor = self.timm_forward((x - self.input_mean) / self.input_std)
    return logits


def _extra_repr(self: Any) -> str:
    # Part of the recipe of a base, which distinguishes models with different preprocessing and the same weights.
    mean, std = (buffer.flatten().tolist() for buffer in (self.input_mean, self.input_std))
    return f"resized_to={self.resized_to}, mean={mean}, std={std}"


def _try(model: nn.Module, plan: InputPlan, title: str) -> None:
    """Run the model once on an image of this size. Raises BadInput if that fails, for example if it is too small."""
    was_training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()(torch.zeros(1, plan.channels, plan.size, plan.size))
    except Exception as error:  # layers raise many types
        raise BadInput(f"{title}: it fails at {_shown(plan)}: {_in_short(error)}; set backbone.size") from error
    finally:
        model.train(was_training)


def _shown(plan: InputPlan) -> str:
    height, width = plan.pixels
    return f"{height}x{width} pixels with {plan.model_channels} channels"


def _in_short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
