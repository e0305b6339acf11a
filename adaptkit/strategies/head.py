"""Linear probing: train the last classifier layer, freeze the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


class Head:
    """Train the last classifier layer only."""

    name = "head"
    lr: ClassVar[dict[str, float]] = {"plain": 0.01, "batch_norm": 0.01, "transformer": 0.01}

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of the last linear layer, or of all classifiers if a model combines several."""
        from adaptkit.backbones.layers import head_parameters

        return head_parameters(model)


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `head`."""
    return [Head]
