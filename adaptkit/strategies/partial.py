"""Train some stages of a model, freeze the others (Yosinski et al., 2014, arXiv:1411.1792).

For the choice of stages for a kind of shift see Lee et al., 2022, arXiv:2210.11466.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Partial:
    """Train the last or the first stages and the head, from the base's weights."""

    name: ClassVar[str] = "partial"
    lr: ClassVar[dict[str, float]] = {"plain": 0.001, "batch_norm": 0.001, "transformer": 0.0001}

    stages: Annotated[int, Field(ge=1)] | Literal["last", "first"] = field(
        default=1,
        metadata={"help": "number of the last stages; or last or first, with their `number`", "tune": "1,2,3"},
    )
    number: Annotated[int, Field(ge=1)] = field(
        default=1,
        metadata={"help": "number of stages with stages=last or stages=first (for shifts of the pixels)"},
    )

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of the stages and the head; raise BadInput if there are fewer stages."""
        from adaptkit.backbones.structure import find_stages

        stages = find_stages(model)
        count = self.stages if isinstance(self.stages, int) else self.number
        if count > len(stages):
            names = ", ".join(stage.name for stage in stages) or "none"
            raise BadInput(
                f"partial.stages: {count} is more than the {len(stages)} stages of {type(model).__name__} ({names})"
            )
        chosen = stages[:count] if self.stages == "first" else stages[-count:]
        trained = [parameter for stage in chosen for parameter in stage.parameters()]
        return list(dict.fromkeys([*trained, *model.head.parameters()]))  # type: ignore[union-attr]


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `partial`."""
    return [Partial]
