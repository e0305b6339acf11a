"""Small models of several architectures for the checks of strategies; they train in milliseconds."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from adaptkit.backbones.small_cnn_layers import SmallCNNModel
from adaptkit.backbones.structure import with_head
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain_passes
from adaptkit.training.seeding import RandomStream

SIZE, CLASSES, IMAGES = 12, 4, 16


class Residual(nn.Module):
    """A residual network with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(ResidualBlock(8, 8, 1), ResidualBlock(8, 12, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        features = self.blocks(self.norm(self.stem(x)).relu())
        logits: Tensor = self.fc(self.pool(features).flatten(1))
        return logits


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps of the block."""
        inner = self.first_norm(self.first(x)).relu()
        outer: Tensor = self.second_norm(self.second(inner)) + self.shortcut(x)
        return outer.relu()


class Convolutions(nn.Sequential):
    """Convolutions of every kind: strided, grouped, depth-wise, dilated, with reflect and circular padding."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=2),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="circular"),
            nn.Conv2d(8, 12, (3, 2), padding=2, dilation=2, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, CLASSES),
        )


class Transformer(nn.Module):
    """A vision transformer with LayerNorm, one layer for queries, keys and values, and parameters outside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 10, 16) * 0.02)
        self.blocks = nn.Sequential(TransformerBlock(), TransformerBlock())
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


class TransformerBlock(nn.Module):
    """Attention with two heads, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of the block."""
        images, tokens, width = x.shape
        queries, keys, values = self.qkv(self.norm1(x)).view(images, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values)
        x = x + self.proj(attended.transpose(1, 2).reshape(images, tokens, width))
        deeper: Tensor = self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return x + deeper


class Standardized(nn.Conv2d):
    """A convolution with a forward pass of its own: it standardizes its weight, and pads to keep the size of its input.

    Weight standardization is that of Qiao et al., 2019, arXiv:1903.10520.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps."""
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = centred / (centred.std((1, 2, 3), keepdim=True) + 1e-5)
        padded = nn.functional.pad(x, (1, 1, 1, 1))
        return nn.functional.conv2d(padded, weight, self.bias, self.stride)


class ChannelsLast(nn.Module):
    """Linear layers on inputs `[n, h, w, channels]`, after a convolution with a forward pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Standardized(3, 8, 3, stride=2)
        self.norm = nn.LayerNorm(8)
        self.expand, self.reduce = nn.Linear(8, 16), nn.Linear(16, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        features = self.stem(x).permute(0, 2, 3, 1)
        features = features + self.reduce(nn.functional.gelu(self.expand(self.norm(features))))
        logits: Tensor = self.fc(features.mean((1, 2)))
        return logits


class Entangled(nn.Module):
    """Layers that share a weight, a layer whose weight is read instead of called, and two heads that are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.read, self.mix = nn.Linear(8, 12), nn.Linear(12, 10)
        self.head, self.head_dist = nn.Linear(10, CLASSES), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        features = nn.functional.gelu(self.stem(x)).mean((2, 3))
        features = features + self.second(nn.functional.gelu(self.first(features)))
        features = nn.functional.gelu(nn.functional.linear(features, self.read.weight, self.read.bias))
        features = nn.functional.gelu(self.mix(features))
        logits: Tensor = (self.head(features) + self.head_dist(features)) / 2
        return logits


def _cnn() -> nn.Module:
    return SmallCNNModel(1, SIZE, CLASSES)


#: name -> a function that returns an untrained model, and the number of channels
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "cnn": (_cnn, 1),
    "residual": (Residual, 3),
    "convolutions": (Convolutions, 3),
    "transformer": (Transformer, 3),
    "channels-last": (ChannelsLast, 3),
    "entangled": (Entangled, 3),
}


@functools.cache
def images(channels: int) -> tuple[Tensor, Tensor]:
    """Return float images `[n, channels, size, size]` in 0..1 and their labels, int64 `[n]`; always the same."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    pixels = torch.rand(IMAGES, channels, SIZE, SIZE, generator=generator)
    # Each class is bright in a different quarter, so that it can be learned.
    for label in range(CLASSES):
        row, column = divmod(label, 2)
        half = SIZE // 2
        pixels[labels == label, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 1
    return pixels / 2, labels


def base(name: str) -> nn.Module:
    """Return a fresh copy of the trained model of this name: a base, in evaluation mode."""
    return copy.deepcopy(_trained(name))


@functools.cache
def _trained(name: str) -> nn.Module:
    make, channels = MODELS[name]
    with RandomStream(0):
        model = with_head(make(), (channels, SIZE))
    pixels, labels = images(channels)
    recipe = Recipe(epochs=2, batch_size=8, lr=1e-2, order_seed=0)
    passes = plain_passes(model, lambda epoch: pixels, labels=labels, test=(pixels, labels))
    for _ in fit(model, [{"params": list(model.parameters())}], passes, recipe=recipe):
        pass
    return model.eval()
