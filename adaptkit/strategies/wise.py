"""Train everything, then average with the base (WiSE-FT; Wortsman et al., 2022, arXiv:2109.01903)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass
class WiSE:
    """Train every parameter, then average the weights with those of the base.

    The average keeps more of the source accuracy. It needs a base whose head is trained, that is, a source.
    """

    name: ClassVar[str] = "wise"
    lr: ClassVar[dict[str, float]] = {"plain": 0.0015, "batch_norm": 0.001, "transformer": 0.0001}
    #: a new head, as without a source, has no weights to average with
    needs_source: ClassVar[bool] = True

    alpha: Annotated[float, Field(gt=0, le=1)] = field(
        default=0.5, metadata={"help": "share of the trained weights in the average"}
    )

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Return every parameter."""
        return list(model.parameters())

    def finish(self, model: nn.Module, base: nn.Module) -> None:
        """Average the weights, and the running statistics of normalization layers, with those of the base."""
        before = base.state_dict()
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(before[name], 1 - self.alpha)


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `wise`."""
    return [WiSE]
