"""SSF (Lian et al., 2022, arXiv:2210.08823): scale and shift the output of each frozen layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass
class SSF:
    """Train a scale and a shift for each output channel of the layers.

    Linear, convolution and normalization layers are scaled and shifted.
    """

    name: ClassVar[str] = "ssf"
    lr: ClassVar[float] = 5e-3

    train_head: bool = field(
        default=False, metadata={"help": "train the last classifier layer itself instead of scaling it"}
    )

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Wrap the layers and return their scales and shifts; raise BadInput for a model without such layers."""
        from torch import nn

        from adaptkit.backbones.structure import NORMS, called_layers, replace_layer
        from adaptkit.strategies.ssf_layers import SSFLayer, SSFNorm

        head = model.head
        assert isinstance(head, nn.Module)
        head_parts = {id(module) for module in head.modules()} if self.train_head else set()
        trained = list(head.parameters()) if self.train_head else []
        wrapped = 0
        for layer in called_layers(model, (nn.Linear, nn.Conv2d, *NORMS)).values():
            if id(layer) not in head_parts and layer.weight is not None:
                other = SSFNorm(layer) if isinstance(layer, NORMS) else SSFLayer(layer)  # type: ignore[arg-type]
                replace_layer(model, layer, other)
                trained += other.parameters(recurse=False)
                wrapped += 1
        if not wrapped:
            raise BadInput(f"strategy ssf: {type(model).__name__} has no layer to scale and shift")
        return trained

    def merge(self, model: nn.Module) -> None:
        """Merge each scale and shift into its layer's weight and bias, and restore the plain layer."""
        from adaptkit.backbones.structure import replace_layer
        from adaptkit.strategies.ssf_layers import SSFLayer, SSFNorm

        for module in list(model.modules()):
            if isinstance(module, SSFLayer | SSFNorm):
                replace_layer(model, module, module.merged())


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `ssf`."""
    return [SSF]
