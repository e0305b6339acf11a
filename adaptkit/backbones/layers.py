"""Find a model's layers by their kind, and put others in their places."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

NORMS: tuple[type[nn.Module], ...] = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)


def called_layers(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Return the layers of these kinds by name, those on whose outputs and weights a strategy can rely.

    Left out are layers whose weights are read without calling them, layers whose weights are computed, and
    convolutions with a forward pass of their own.
    """
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    unsure = {id(layer) for attention in attentions for layer in attention.modules()}
    return {
        name: layer
        for name, layer in model.named_modules()
        if name and isinstance(layer, kinds) and id(layer) not in unsure and _is_plain(layer)
    }


def _is_plain(layer: nn.Module) -> bool:
    own_forward = isinstance(layer, nn.Conv2d) and type(layer).forward is not nn.Conv2d.forward
    return not own_forward and not parametrize.is_parametrized(layer)


def replace_layer(model: nn.Module, layer: nn.Module, other: nn.Module) -> None:
    """Put `other` wherever the model holds this layer: one that is shared stays shared."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is layer:
                setattr(parent, name, other)
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # Its fast path reads the weights of its layers instead of calling them; this turns it off.
                    parent.activation_relu_or_gelu = 0
