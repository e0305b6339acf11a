"""Adapters (Houlsby et al., 2019, arXiv:1902.00751): train a bottleneck after each frozen block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Adapter:
    """Train a small bottleneck after each block; freeze the rest.

    A bottleneck has two layers and a residual connection. For feature maps, its layers are 1x1 convolutions.
    """

    name: ClassVar[str] = "adapter"
    lr: ClassVar[dict[str, float]] = {"plain": 0.02, "batch_norm": 0.003, "transformer": 0.001}

    width: Annotated[int, Field(ge=1)] = field(
        default=8, metadata={"help": "channels inside each bottleneck", "tune": "2..32/log"}
    )
    train_head: bool = field(default=False, metadata={"help": "train the last classifier layer too"})

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Add a bottleneck after each block, and return the parameters of the bottlenecks.

        Raises BadInput for a model without blocks.
        """
        from adaptkit.backbones.layers import head_parameters
        from adaptkit.backbones.structure import replace_layer
        from adaptkit.strategies.adapter_layers import AdaptedBlock, Bottleneck, choose

        head = head_parameters(model) if self.train_head else []
        trained: list[nn.Parameter] = []
        for stage, channels in choose(model).stages:
            bottleneck = Bottleneck(*channels, width=self.width, after=stage.name)
            replace_layer(model, stage.last, AdaptedBlock(stage.last, bottleneck))
            trained += bottleneck.parameters()
        if not trained:
            raise BadInput(f"strategy adapter: {type(model).__name__} has no block to add an adapter to")
        return trained + head

    def notices(self, model: nn.Module) -> list[str]:
        """Return a notice about blocks that are left out."""
        from adaptkit.backbones.layers import coverage
        from adaptkit.strategies.adapter_layers import choose

        choice = choose(model)
        return coverage("adapter", len(choice.stages), choice.left_out, what="blocks")


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `adapter`."""
    return [Adapter]
