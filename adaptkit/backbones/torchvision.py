"""Classification models of torchvision with published weights, weights from a file, or new weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Torchvision:
    """Classification models of torchvision, pretrained or new.

    The weights are published, from a file, or random.
    """

    name: ClassVar[str] = "torchvision"
    argument: ClassVar[str] = "NAME"

    model: str
    weights: str = field(
        default="default",
        metadata={"help": "default (published), none (new), or a .safetensors, .pth, .pt or .bin file"},
    )

    bands: Literal["none", "first3", "fresh"] = field(
        default="none",
        metadata={
            "help": "pretrained weights for images of many bands: first3 (use the first three), fresh (a new first "
            "layer for all), none (refuse them)"
        },
    )

    def __post_init__(self) -> None:
        try:
            import torchvision.models  # noqa: F401
        except Exception as error:  # of many types, if its compiled part is for another version of torch
            reason = " ".join(str(error).split())
            raise BadInput(
                f"backbone torchvision:{self.model}: torchvision cannot be imported ({reason}); "
                "install the one that matches torch: pip install --force-reinstall torch torchvision"
            ) from None
        from adaptkit.backbones.torchvision_models import check_name, check_source

        check_name(self.model)
        check_source(self.weights)

    def build(self, channels: int, size: int, classes: int) -> nn.Module:
        """Return torchvision's model, which normalises float images in 0..1 and expands grey images to 3 channels.

        Raises BadInput for weights that cannot be loaded, and for images that the model does not support.
        """
        from adaptkit.backbones.torchvision_models import build_model

        return build_model(self.model, self.weights, channels=channels, size=size, classes=classes, bands=self.bands)

    @property
    def image_size(self) -> int:
        """Return the image size for which the published weights are meant."""
        from adaptkit.backbones.torchvision_models import published_size

        return published_size(self.model)

    def described(self, channels: int, size: int) -> Mapping[str, str | int]:
        """Return the model's normalisation and the id of its initial weights, as facts to record with a run."""
        from adaptkit.backbones.torchvision_models import statistics, used_channels, weights_id

        used = used_channels(channels, self.bands)
        mean, std = (",".join(f"{value:g}" for value in values) for values in statistics(self.model, used))
        identity = weights_id(self.model, self.weights)
        return {"input_size": size, "mean": mean, "std": std, "weights_id": identity}


@hookimpl
def adaptkit_backbones() -> list[type]:
    """Return the backbone `torchvision:NAME`."""
    return [Torchvision]
