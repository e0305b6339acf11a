"""The control: train the same architecture on the target only, without the base's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


class Scratch:
    """Train every parameter from new random weights (a control)."""

    name = "scratch"
    lr: ClassVar[dict[str, float]] = {"plain": 0.01, "batch_norm": 0.005, "transformer": 0.001}
    starts_at_base = False

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Initialise every layer again and return every parameter; raise BadInput if a layer does not support that."""
        kept: list[str] = []
        for name, module in model.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()
            else:
                kept += [f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False)]
        if kept:
            raise BadInput(f"strategy scratch: {', '.join(kept)} cannot be initialised again (no reset_parameters)")
        return list(model.parameters())


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `scratch`."""
    return [Scratch]
