"""Full fine-tuning: train every parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


class Full:
    """Train every parameter, from the base's weights."""

    name = "full"
    lr: ClassVar[dict[str, float]] = {"plain": 0.0015, "batch_norm": 0.001, "transformer": 0.0001}

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Return every parameter."""
        return list(model.parameters())


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `full`."""
    return [Full]
