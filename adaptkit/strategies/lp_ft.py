"""Train the head first, then everything (LP-FT; Kumar et al., 2022, arXiv:2202.10054)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from adaptkit.contracts import Phase
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass
class LPFT:
    """Train the head first, then everything, so that a poor head does not distort the features."""

    name: ClassVar[str] = "lp-ft"
    lr: ClassVar[dict[str, float]] = {"plain": 0.0015, "batch_norm": 0.001, "transformer": 0.0001}

    share: Annotated[float, Field(gt=0, lt=1)] = field(
        default=0.5, metadata={"help": "share of the steps in which only the head is trained"}
    )
    head_lr: Annotated[float, Field(gt=0)] = field(default=0.01, metadata={"help": "learning rate of these steps"})

    def phases(self, model: nn.Module) -> list[Phase]:
        """Return the phase of the head and that of all parameters."""
        from adaptkit.backbones.layers import head_parameters

        head = Phase(head_parameters(model), share=self.share, lr=self.head_lr)
        return [head, Phase(list(model.parameters()), share=1 - self.share)]


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `lp-ft`."""
    return [LPFT]
