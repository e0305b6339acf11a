"""Find the layers to adapt in a model, and classify them."""

from __future__ import annotations

from collections import Counter

from adaptkit.backbones.layers import called_layers, reasons_against
from adaptkit.backbones.structure import NORMS
from adaptkit.errors import BadInput
from torch import nn

TYPES: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv": (nn.Conv2d,),
    "all": (nn.Linear, nn.Conv2d),
    "norm": NORMS,
}
WORDS = {"linear": "linear layer", "conv": "Conv2d layer", "all": "linear or Conv2d layer", "norm": "norm layer"}


def find_layers(model: nn.Module, targets: str, heads: list[nn.Module], strategy: str) -> dict[str, nn.Module]:
    """Return the layers to adapt by full name, without these heads.

    Raises BadInput if there are none, or if a layer is used twice.
    """
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    layers = {
        name: layer for name, layer in called_layers(model, TYPES[targets]).items() if _is_candidate(layer, heads)
    }
    if not layers:
        raise BadInput(f"{strategy}: the model has no {WORDS[targets]} to adapt")
    shared = [name for name, layer in layers.items() if places[id(layer)] > 1]
    if shared:
        raise BadInput(f"{strategy} cannot adapt a layer that the model uses in two places: {', '.join(shared[:3])}")
    return layers


def find_left_out(model: nn.Module, targets: str, heads: list[nn.Module]) -> dict[str, str]:
    """Return, by name, the layers of the chosen types that cannot be adapted, each with the reason."""
    reasons = reasons_against(model, TYPES[targets])
    return {name: reason for name, reason in reasons.items() if _is_candidate(model.get_submodule(name), heads)}


def _is_candidate(layer: nn.Module, heads: list[nn.Module]) -> bool:
    return layer not in heads and getattr(layer, "weight", None) is not None


def sorts(layer: nn.Module) -> list[str]:
    """Return the kinds of a layer, as in messages. To adapt the layer, a PEFT type must support all of them."""
    if isinstance(layer, NORMS):
        return ["norm layers"]
    if isinstance(layer, nn.Linear):
        return ["linear layers" if layer.bias is not None else "linear layers without bias"]
    assert isinstance(layer, nn.Conv2d)
    kinds = ["1x1 convolutions"]
    if layer.kernel_size != (1, 1):
        pairs = [layer.kernel_size, layer.stride, layer.dilation]
        if not isinstance(layer.padding, str):
            pairs.append(layer.padding)
        even = all(height == width for height, width in pairs)
        kinds = ["square convolutions" if even else "non-square convolutions"]
    if layer.bias is None:
        kinds.append("convolutions without bias")
    if layer.dilation != (1, 1):
        kinds.append("dilated convolutions")
    if layer.groups > 1:
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        kinds.append("depth-wise convolutions" if depthwise else "grouped convolutions")
    if isinstance(layer.padding, str):
        kinds.append("convolutions with string padding")
    if layer.padding_mode != "zeros":
        kinds.append("convolutions with non-default padding mode")
    return kinds


def widths(layer: nn.Module) -> tuple[int, int]:
    """Return the input and output width of the weight of a layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.weight[0].numel(), layer.out_channels
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight.shape[-1], weight.shape[0]
