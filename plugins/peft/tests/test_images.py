"""Linear layers of models that give them channel-last images `[n, h, w, channels]`."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from adaptkit.backbones.structure import with_head
from adaptkit.training.trainable import adapt
from torch import Tensor, nn

from adaptkit_peft import catalogue
from adaptkit_peft.strategies import strategy_class

USABLE = [entry for entry in catalogue.read() if not entry.unavailable and "norm layers" not in entry.layers]


class Mixer(nn.Module):
    """A convolution, a linear layer for channel-last images, one for their mean, and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 24, 4, stride=4)
        self.channels = nn.Linear(24, 24)
        self.hidden = nn.Linear(24, 24)
        self.last = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channels(self.patches(x).relu().permute(0, 2, 3, 1)).relu()
        logits: Tensor = self.last(self.hidden(x.mean((1, 2))).relu())
        return logits


@pytest.mark.parametrize("entry", USABLE, ids=lambda entry: entry.type)
def test_every_type(entry: catalogue.Entry) -> None:
    torch.manual_seed(0)
    base = with_head(Mixer())
    images = torch.rand(3, 1, 16, 16)
    model = copy.deepcopy(base)
    strategy = strategy_class(entry)()
    adapt(model, strategy, init_seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model(images).square().mean().backward()
    assert all(p.grad is not None for p in model.channels.parameters() if p.requires_grad)
    adapted = model.eval()(images)
    again = pickle.loads(pickle.dumps(model))(images)
    assert torch.equal(again, adapted) and torch.equal(copy.deepcopy(model)(images), adapted)
    if entry.merges:
        strategy.merge(model)
        torch.testing.assert_close(model(images), adapted, rtol=1e-3, atol=1e-4)
        assert list(model.state_dict()) == list(base.state_dict())
