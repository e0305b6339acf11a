"""A small CNN of two convolutions and two linear layers.

It has 421,642 parameters for grey images of 28x28 pixels and 10 classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


class SmallCNN:
    """Two convolutions and two linear layers, for any image size."""

    name = "small_cnn"

    def build(self, channels: int, size: int, classes: int) -> nn.Module:
        """Return the model with new weights."""
        from adaptkit.backbones.small_cnn_layers import SmallCNNModel

        return SmallCNNModel(channels, size, classes)


@hookimpl
def adaptkit_backbones() -> list[type]:
    """Return the backbone `small_cnn`."""
    return [SmallCNN]
