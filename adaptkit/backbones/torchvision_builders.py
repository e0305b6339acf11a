"""Build a classification model of torchvision for images of some channels and size."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torchvision.models
from torch import nn

from adaptkit.backbones.heads import find_head
from adaptkit.backbones.inputs import normalising
from adaptkit.backbones.layers import replace_layer
from adaptkit.backbones.torchvision_weights import load_file, weights_file
from adaptkit.errors import BadInput, suggestion

#: channels of the images that all weights of torchvision are for
COLOURS = 3


def check_name(name: str) -> None:
    """Raise BadInput, with the nearest name, unless torchvision has a classification model of that name."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = suggestion(name, known)
        # Without a near name the hint would be 80 names.
        hint = hint if hint.startswith("; did") else "; it has, among others, resnet18, mobilenet_v3_small and vit_b_16"
        raise BadInput(f"backbone torchvision:{name}: torchvision has no classification model {name!r}{hint}")


def published_size(name: str) -> int:
    """Return the size in pixels at which torchvision uses its published weights."""
    return int(_transforms(name).crop_size[0])


def statistics(name: str, channels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation by channel of the model; further channels begin anew.

    They are those of the published weights whatever weights there are, so that a model without takes those of a file.
    """
    transforms = _transforms(name)
    count = COLOURS if channels == 1 else channels
    mean, std = (
        [float(values[place % COLOURS]) for place in range(count)] for values in (transforms.mean, transforms.std)
    )
    return mean, std


def build_model(name: str, weights: str, channels: int, size: int, classes: int) -> nn.Module:
    """Return the model with these weights, normalising its images; raise BadInput if it cannot be had."""
    title = f"backbone torchvision:{name}"
    if channels not in (1, COLOURS) and weights != "none":
        raise BadInput(
            f"{title}: pretrained weights are for images of {COLOURS} channels, or of 1, which are expanded, "
            f"not of {channels}; --weights none makes a fresh model for them"
        )
    _require_fit(name, size)
    path = weights_file(name, weights)
    model = _architecture(name, size, classes)
    if path is not None:
        load_file(model, path, f"torchvision:{name}", size)
    if channels not in (1, COLOURS):
        _rebuild_first(model, channels)
    return normalising(model, *statistics(name, channels))


def _transforms(name: str) -> Any:
    # Calling the transforms makes an object with their settings; no weights are read.
    return torchvision.models.get_model_weights(name).DEFAULT.transforms()


def _architecture(name: str, size: int, classes: int) -> nn.Module:
    settings: dict[str, Any] = {"num_classes": classes}
    if name.startswith("vit_"):
        settings["image_size"] = size
    elif name.startswith("maxvit_"):
        settings["input_size"] = (size, size)
    elif name in ("googlenet", "inception_v3"):
        # Without the second and third logits of training. Their weights are for images that are normalised in another
        # way; they convert them, as torchvision lets them, when it gives them their weights.
        settings |= {"aux_logits": False, "init_weights": True, "transform_input": True}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return model


@functools.cache
def _require_fit(name: str, size: int) -> None:
    """Raise BadInput unless the model has a linear head and works on images of this size; no number is computed."""
    title = f"backbone torchvision:{name}"
    advice = f"set another, such as --image-size {published_size(name)}"
    patch = int(name.rpartition("_")[2]) if name.startswith("vit_") else 1
    if size % patch:
        raise BadInput(f"{title}: its images must be a multiple of {patch} pixels a side, not {size}; {advice}")
    try:
        model = _shapes(name, size).eval()
        find_head(model)
        with torch.no_grad():
            model(torch.zeros(1, COLOURS, size, size, device="meta"))
    except BadInput as error:
        raise BadInput(f"{title}: {error}") from None
    except Exception as error:  # whatever a layer does not like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{title}: it does not work on images of {size}x{size} pixels ({reason}); {advice}") from None


def _shapes(name: str, size: int) -> nn.Module:
    """Return the model without memory for its weights."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _architecture(name, size, 2)
        except NotImplementedError:  # RegNet computes its widths by tensors
            return _architecture(name, size, 2).to("meta")


def _rebuild_first(model: nn.Module, channels: int) -> None:
    """Replace the first convolution by a fresh one for so many channels."""
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    fresh = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        first.dilation,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    replace_layer(model, first, fresh)
    if hasattr(model, "transform_input"):
        model.transform_input = False  # type: ignore[assignment]  # it is for red, green and blue
