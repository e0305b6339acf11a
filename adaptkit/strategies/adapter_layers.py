"""The layers of the strategy `adapter`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from adaptkit.backbones.layers import NOT_CALLED, is_called
from adaptkit.backbones.structure import NORMS, Stage, find_stages
from adaptkit.errors import BadInput


def output_channels(block: nn.Module) -> tuple[int, bool] | None:
    """Return the number of output channels of a block, and whether they are the first dimension of its output.

    Both are determined from the last layer. Returns None if the block has no layer with known channels.
    """
    for layer in reversed(list(block.modules())):
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return layer.out_channels, True
        if isinstance(layer, nn.Linear):
            return layer.out_features, False
        if isinstance(layer, NORMS):
            if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
                return layer.normalized_shape[-1], False
            return int(getattr(layer, "num_features", None) or layer.num_channels), True  # type: ignore[arg-type]
    return None


@dataclass(frozen=True)
class Choice:
    """The stages to adapt, each with the channels of its output, and the names of others, with the reasons."""

    stages: tuple[tuple[Stage, tuple[int, bool]], ...]
    left_out: Mapping[str, str]


def choose(model: nn.Module) -> Choice:
    """Return the stages of a model after which a bottleneck can be put."""
    stages, left_out = [], {}
    for stage in find_stages(model):
        channels = output_channels(stage.last)
        if channels is None:
            left_out[stage.name] = "the number of its output channels is not known"
        elif not is_called(model, stage.last):
            left_out[stage.name] = NOT_CALLED
        else:
            stages.append((stage, channels))
    return Choice(tuple(stages), left_out)


class Bottleneck(nn.Module):
    """Add `up(gelu(down(x)))` to x, separately for each token or position of a feature map; `up` starts at zero.

    `channels_first` is used only if the first and the last dimension both have the size of the channels. `after` is the
    name of the block, for error messages.
    """

    def __init__(self, channels: int, channels_first: bool, width: int, after: str) -> None:
        super().__init__()
        self.down = nn.Linear(channels, width)
        self.up = nn.Linear(width, channels)
        self.channels_first, self.after = channels_first, after
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with the bottleneck's output added: `[n, channels, h, w]`, or `[..., channels]`."""
        down, up = self.down, self.up
        return through(
            x,
            down.weight,
            down_bias=down.bias,
            up=up.weight,
            up_bias=up.bias,
            channels_first=self.channels_first,
            after=self.after,
        )


@fx.wrap
def through(
    x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, channels_first: bool, after: str
) -> Tensor:
    """Return x plus the output of a bottleneck. A separate function, because tracers cannot branch on the shape of x.

    Raises BadInput if x does not have the number of channels that the bottleneck expects.
    """
    channels = down.shape[1]
    first, last = x.ndim == 4 and x.shape[1] == channels, x.shape[-1] == channels
    if first and (channels_first or not last):
        inner = functional.gelu(functional.conv2d(x, down[:, :, None, None], down_bias))
        return x + functional.conv2d(inner, up[:, :, None, None], up_bias)
    if last:
        return x + functional.linear(functional.gelu(functional.linear(x, down, down_bias)), up, up_bias)
    raise BadInput(
        f"strategy adapter: the output of {after} is {list(x.shape)}, but its last layer has {channels} channels; "
        "such a block cannot be adapted"
    )


class AdaptedBlock(nn.Module):
    """A frozen block with a bottleneck after it, and with the attributes of the block."""

    def __init__(self, base_layer: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        like = next(base_layer.parameters())
        self.base_layer = base_layer
        self.adapter = adapter.to(like.device, like.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the adapted output of the block; if it has several outputs, the first one is adapted."""
        output = self.base_layer(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.adapter(output[0]), *output[1:])
        return self.adapter(output)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block, because models read attributes of their blocks."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
        return getattr(super().__getattr__("base_layer"), name)
