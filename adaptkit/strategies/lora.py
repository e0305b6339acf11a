"""LoRA (Hu et al., 2021, arXiv:2106.09685): train a low-rank update of each frozen layer.

Its variants are options: rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732), DoRA (Liu et al., 2024, arXiv:2402.09353)
and LoRA+ (Hayou et al., 2024, arXiv:2402.12354).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.strategies.lora_layers import LoRALayer


@dataclass
class LoRA:
    """Train a low-rank update `alpha / rank * B A` of each chosen layer."""

    name: ClassVar[str] = "lora"
    lr: ClassVar[dict[str, float]] = {"plain": 0.005, "batch_norm": 0.001, "transformer": 0.001}

    rank: Annotated[int, Field(ge=1)] = field(default=8, metadata={"help": "rank of the update", "tune": "2..32/log"})
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = field(
        default=16.0, metadata={"help": "the update is scaled by alpha / rank"}
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = field(
        default=0.0, metadata={"help": "dropout on the update's input"}
    )
    targets: str = field(
        default="auto",
        metadata={
            "help": "auto, linear, conv or all; or types such as Linear and patterns of names such as classifier.*. "
            "auto is linear if the model has linear layers in addition to its head, else all"
        },
    )
    rslora: bool = field(default=False, metadata={"help": "scale the update by alpha / sqrt(rank) (rsLoRA)"})
    dora: bool = field(default=False, metadata={"help": "train the norm of each output's weights separately (DoRA)"})
    plus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = field(
        default=1.0,
        metadata={"help": "LoRA+: multiply --lr by this for matrix B; with 16, choose a lower --lr"},
    )
    train_head: bool = field(
        default=False, metadata={"help": "train the last classifier layer itself instead of an update of it"}
    )
    bias: Literal["none", "lora_only", "all"] = field(
        default="none", metadata={"help": "biases to train too: none, lora_only (of the chosen layers) or all"}
    )

    def adapt(self, model: nn.Module) -> list[nn.Parameter] | list[dict[str, Any]]:
        """Wrap the chosen layers and return the trained parameters; raise BadInput for targets that match no layer."""
        from adaptkit.backbones.layers import head_parameters
        from adaptkit.backbones.structure import replace_layer
        from adaptkit.strategies.lora_layers import choose

        # Collected before layers are wrapped, which changes names.
        biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
        head = head_parameters(model) if self.train_head else []
        adapted: list[nn.Parameter] = []
        ups: list[nn.Parameter] = []
        own_biases: list[nn.Parameter] = []
        choice = choose(model, self.targets, train_head=self.train_head, dropout=self.dropout)
        for name, layer in choice.layers.items():
            wrapped = self._wrap(layer, own_forward=name in choice.own_forward)
            replace_layer(model, layer, wrapped)
            adapted += [new for name, new in wrapped.named_parameters() if not name.startswith("base_layer.")]
            ups += wrapped.lora_B.parameters()
            own_biases += [bias for name, bias in wrapped.base_layer.named_parameters() if name == "bias"]
        adapted += head
        adapted += {"none": [], "lora_only": own_biases, "all": biases}[self.bias]
        adapted = list(dict.fromkeys(adapted))
        if self.plus == 1:
            return adapted
        faster = {id(parameter) for parameter in ups}
        others = [parameter for parameter in adapted if id(parameter) not in faster]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": ups, "lr_ratio": self.plus}]
        return groups

    def notices(self, model: nn.Module) -> list[str]:
        """Return notices about layers that are left out, and about updates that are too large for their layer.

        Raises BadInput as `adapt` does.
        """
        from adaptkit.strategies.lora_layers import choose, remarks

        choice = choose(model, self.targets, train_head=self.train_head, dropout=self.dropout)
        return remarks(choice, self.rank, self.dora)

    def merge(self, model: nn.Module) -> None:
        """Add each update to its layer's weight, and restore the plain layer."""
        from adaptkit.backbones.structure import replace_layer
        from adaptkit.strategies.lora_layers import LoRALayer

        for module in list(model.modules()):
            if isinstance(module, LoRALayer):
                replace_layer(model, module, module.merged())

    def _wrap(self, layer: nn.Linear | nn.Conv2d, *, own_forward: bool) -> LoRALayer:
        from torch import nn

        from adaptkit.strategies import lora_layers as layers

        if own_forward:
            weight = layers.DoRAWeight if self.dora else layers.LoRAWeight
            return weight(layer, self.rank, self.alpha, rslora=self.rslora)
        if isinstance(layer, nn.Linear):
            linear = layers.DoRALinear if self.dora else layers.LoRALinear
            return linear(layer, self.rank, self.alpha, dropout=self.dropout, rslora=self.rslora)
        convolution = layers.DoRAConv2d if self.dora else layers.LoRAConv2d
        return convolution(layer, self.rank, self.alpha, dropout=self.dropout, rslora=self.rslora)


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategy `lora`."""
    return [LoRA]
