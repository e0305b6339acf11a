"""Models of timm (PyTorch Image Models; Wightman, 2019) as backbones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from adaptkit import hookimpl

if TYPE_CHECKING:
    from torch import nn


def _size(value: Any) -> str:
    text = str(value)
    if text in ("model", "data") or (text.isdecimal() and int(text) > 0):
        return text
    raise ValueError(f"must be model, data or a number of pixels, not {value!r}")


@dataclass
class Timm:
    """Models of timm (PyTorch Image Models), pretrained or new.

    The weights are pretrained, from a file, or random.
    """

    name: ClassVar[str] = "timm"
    argument: ClassVar[str] = "MODEL"

    model: str
    weights: str = field(
        default="pretrained",
        metadata={"help": "pretrained (or default), none, or a .safetensors, .pth, .pt or .bin file"},
    )
    size: Annotated[str, BeforeValidator(_size)] = field(
        default="data",
        metadata={"help": "image size: data (no resizing), model (that of the pretraining) or a number of pixels"},
    )
    weights_by: Literal["name", "position"] = field(
        default="name",
        metadata={"help": "assign the tensors of a file by name, or by position if their names fit nothing"},
    )

    def __post_init__(self) -> None:
        """Raise BadInput, with the nearest name, if timm has no such model."""
        from adaptkit_timm.configs import find_config

        find_config(self.model)

    def build(self, channels: int, size: int, classes: int) -> nn.Module:
        """Return a timm model for float images `[n, channels, size, size]` in 0..1, which it resizes and normalises.

        Raises BadInput if the model or weights do not exist, do not fit, or do not support such images.
        """
        from adaptkit_timm.models import InputPlan, build_model

        plan = InputPlan.of(self.model, self.size, channels=channels, size=size)
        return build_model(plan, self.weights, classes, self.weights_by)

    @property
    def image_size(self) -> int:
        """Return the size at which images without a fixed size are read."""
        from adaptkit_timm.configs import find_config

        # With size=data, use the size of the pretraining.
        size = str(self.size)
        return int(size) if size.isdecimal() else max(find_config(self.model).input_size[-2:])

    def described(self, channels: int, size: int) -> Mapping[str, str | int | float]:
        """Describe the preprocessing of such images and the initial weights."""
        from adaptkit_timm.models import InputPlan
        from adaptkit_timm.weights import weights_id

        plan = InputPlan.of(self.model, self.size, channels=channels, size=size)
        return {**plan.described(), "weights_id": weights_id(plan.name, plan.config, self.weights)}


@hookimpl
def adaptkit_backbones() -> list[type]:
    """Return the backbone `timm:MODEL`."""
    return [Timm]
