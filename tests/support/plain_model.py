"""A small model of a user."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Two layers before a classifier, with BatchNorm and Dropout; grey images of any size."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.pool = nn.AdaptiveAvgPool2d(4)
            self.hidden = nn.Linear(4 * 16, 8)
            self.dropout = nn.Dropout(0.3)
            self.out = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        features = self.pool(self.norm(self.conv(x)).relu()).flatten(1)
        logits: Tensor = self.out(self.dropout(self.hidden(features).relu()))
        return logits
