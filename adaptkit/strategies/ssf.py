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
    lr: ClassVar[dict[str, float]] = {"plain": 0.02, "batch_norm": 0.003, "transformer": 0.001}

    train_head: bool = field(
        default=False, metadata={"help": "train the last classifier layer itself instead of scaling it"}
    )

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Wrap the layers and return their scales and shifts; raise BadInput for a model without such layers."""
        from adaptkit.backbones.layers import head_parameters
        from adaptkit.backbones.structure import NORMS, replace_layer
        from adaptkit.strategies.ssf_layers import SSFLayer, SSFNorm, choose

        trained = head_parameters(model) if self.train_head else []
        layers = choose(model, train_head=self.train_head).layers
        for layer in layers.values():
            other = SSFNorm(layer) if isinstance(layer, NORMS) else SSFLayer(layer)  # type: ignore[arg-type]
            replace_layer(model, layer, other)
            trained += other.parameters(recurse=False)
        if not layers:
            raise BadInput(f"strategy ssf: {type(model).__name__} has no layer to scale and shift")
        return trained

    def notices(self, model: nn.Module) -> list[str]:
        """Return a notice about layers that are left out."""
        from adaptkit.backbones.layers import coverage
        from adaptkit.strategies.ssf_layers import choose

        choice = choose(model, train_head=self.train_head)
        return coverage("ssf", len(choice.layers), choice.left_out)

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
