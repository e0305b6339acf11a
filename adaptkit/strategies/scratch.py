"""The control: the same architecture, trained on the target alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


class Scratch:
    """Forget the base: draw new weights and train every parameter (a control)."""

    name = "scratch"
    lr = 1e-3
    starts_at_base = False

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Initialise every layer anew and return every parameter; raise BadInput for layers that cannot be."""
        kept: list[str] = []
        for name, module in model.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()
            else:
                kept += [f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False)]
        if kept:
            raise BadInput(f"strategy scratch: {', '.join(kept)} cannot be initialised anew (no reset_parameters)")
        return list(model.parameters())


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Offer `scratch`."""
    return [Scratch]
