"""Linear probing: train the last classifier layer, freeze the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


class Head:
    """Train the last classifier layer only."""

    name = "head"
    lr = 5e-3

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of `model.head`, or of the last linear layer in it."""
        from adaptkit.backbones.structure import find_head

        return list(find_head(model.head).parameters())  # type: ignore[arg-type]


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `head`."""
    return [Head]
