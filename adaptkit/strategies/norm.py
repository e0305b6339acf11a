"""Train the normalization layers only.

See Frankle et al., 2020, arXiv:2003.00152 for BatchNorm, and Zhao et al., 2023, arXiv:2312.11420 for LayerNorm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Norm:
    """Train only the scales and shifts of normalization layers.

    The running statistics of BatchNorm layers stay those of the base; `--bn adapt` updates them.
    """

    name: ClassVar[str] = "norm"
    lr: ClassVar[dict[str, float]] = {"plain": 0.005, "batch_norm": 0.007, "transformer": 0.001}

    train_head: bool = field(default=False, metadata={"help": "train the last classifier layer too"})

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of the normalization layers; raise BadInput for a model without any."""
        from adaptkit.backbones.layers import head_parameters
        from adaptkit.backbones.structure import NORMS

        layers = [module for module in model.modules() if isinstance(module, NORMS)]
        trained = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
        if not trained:
            raise BadInput(f"strategy norm: {type(model).__name__} has no normalization layer with parameters")
        if self.train_head:
            trained += head_parameters(model)
        return list(dict.fromkeys(trained))


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `norm`."""
    return [Norm]
