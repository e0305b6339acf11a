"""The notebook's CNN: two convolutions, two linear layers; 421,642 parameters for 28x28 grey images and 10 classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


class SmallCNN:
    """Two convolutions and two linear layers, for any channels and size."""

    name = "small_cnn"

    def build(self, channels: int, size: int, classes: int) -> nn.Module:
        """Return the model, freshly initialised."""
        from adaptkit.backbones.small_cnn_layers import SmallCNNModel

        return SmallCNNModel(channels, size, classes)


@hookimpl
def adaptkit_backbones() -> list[type]:
    """Offer `small_cnn`."""
    return [SmallCNN]
