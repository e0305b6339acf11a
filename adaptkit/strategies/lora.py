"""LoRA (Hu et al., 2021, arXiv:2106.09685): train a low-rank update beside each frozen layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from adaptkit.errors import BadInput, suggestion
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass
class LoRA:
    """Train a low-rank update `alpha / rank * B A` beside each chosen layer."""

    name: ClassVar[str] = "lora"
    lr: ClassVar[float] = 5e-3

    rank: Annotated[int, Field(ge=1)] = field(default=8, metadata={"help": "rank of the update"})
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = field(
        default=16.0, metadata={"help": "the update is scaled by alpha / rank"}
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = field(
        default=0.0, metadata={"help": "dropout on the update's input"}
    )
    targets: str = field(
        default="Linear", metadata={"help": "linear layers: Linear (all), or patterns of names such as classifier.*"}
    )

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Wrap the chosen layers and return their A and B; raise BadInput for targets that fit no layer."""
        from adaptkit.strategies.lora_layers import LoRALinear

        adapted: list[nn.Parameter] = []
        for name in self._targets(model):
            parent, _, child = name.rpartition(".")
            layer = model.get_submodule(name)
            wrapped = LoRALinear(layer, self.rank, self.alpha, self.dropout)  # type: ignore[arg-type]
            setattr(model.get_submodule(parent), child, wrapped)
            adapted += [*wrapped.lora_A.parameters(), *wrapped.lora_B.parameters()]
        return adapted

    def merge(self, model: nn.Module) -> None:
        """Fold each update into its layer's weight and put the plain layer back."""
        from adaptkit.strategies.lora_layers import LoRALinear

        for name, module in list(model.named_modules()):
            if isinstance(module, LoRALinear):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.merged())

    def _targets(self, model: nn.Module) -> list[str]:
        from torch import nn

        modules = {name: module for name, module in model.named_modules() if name}
        chosen: set[str] = set()
        for pattern in (part.strip() for part in self.targets.split(",")):
            hits = [
                name
                for name, module in modules.items()
                if type(module).__name__ == pattern or fnmatchcase(name, pattern)
            ]
            layers = [name for name in hits if isinstance(modules[name], nn.Linear)]
            if not layers and hits:
                kinds = ", ".join(f"{name} is a {type(modules[name]).__name__}" for name in hits[:3])
                raise BadInput(f"lora.targets: {pattern!r} fits no Linear layer ({kinds})")
            if not layers:
                linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
                raise BadInput(f"lora.targets: no layer fits {pattern!r}{suggestion(pattern, {'Linear', *linear})}")
            chosen.update(layers)
        return [name for name in modules if name in chosen]


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Offer `lora`."""
    return [LoRA]
