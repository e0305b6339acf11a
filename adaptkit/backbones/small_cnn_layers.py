"""The layers of the backbone `small_cnn`."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCNNModel(nn.Module):
    """Map float images `[n, channels, size, size]` to logits `[n, classes]`."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        # Pooling before ReLU gives the same result, as both are monotonic, and is faster.
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * (size // 4) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
