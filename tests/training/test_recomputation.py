"""Recomputed blocks give the same bits and need less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.experiments import TINY, TINY_SETTINGS
from support.fabrication import fabricate
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18

import adaptkit
from adaptkit.backbones.small_cnn_layers import SmallCNNModel
from adaptkit.backbones.structure import with_head
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.memory import step_bytes
from adaptkit.training.passes import plain_passes
from adaptkit.training.recomputation import find_blocks, recomputed

IMAGES, LABELS = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4


def vit() -> nn.Module:
    return VisionTransformer(64, 8, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64, dropout=0.1, num_classes=4)


MODELS: dict[str, tuple[Callable[[], nn.Module], int, type[nn.Module]]] = {
    "resnet18": (lambda: resnet18(num_classes=4), 8, nn.BatchNorm2d),
    "vit": (vit, 4, nn.Dropout),
}


class Residual(nn.Module):
    """A grey model of two blocks of several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.out = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out(x.mean((2, 3)))
        return logits


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_recomputation_gives_the_same_bits_in_less_memory(name: str) -> None:
    make, blocks, kind = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = with_head(make())
    assert len(find_blocks(model)) == blocks
    # The blocks have running statistics and dropout, which a second forward pass must not change or draw again.
    assert any(isinstance(layer, kind) for block in find_blocks(model) for layer in block.modules())
    states, losses, sizes = [], [], []
    for twice in (False, True):
        own, recipe = copy.deepcopy(model), Recipe(epochs=2, batch_size=8, lr=1e-3, order_seed=0, checkpointing=twice)
        sizes.append(step_bytes(own, IMAGES[:8], LABELS[:8], recipe=recipe))
        passes = plain_passes(own, lambda epoch: IMAGES, labels=LABELS, test=(IMAGES, LABELS))
        losses.append([epoch.loss for epoch in fit(own, [{"params": list(own.parameters())}], passes, recipe=recipe)])
        states.append(own.state_dict())
        assert not any("forward" in vars(layer) for layer in own.modules())
    assert losses[0] == losses[1]
    assert [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])] == []
    if name == "resnet18":
        assert states[1]["layer1.0.bn1.num_batches_tracked"] == 6  # two epochs of three batches
    held = 16 * sum(parameter.numel() for parameter in model.parameters())  # weights, gradients, Adam's two
    assert held < sizes[1] < sizes[0]
    assert sizes[1] - held < 0.8 * (sizes[0] - held)


def test_block_runs_again_in_the_backward_pass() -> None:
    model, calls = with_head(Residual()), []
    blocks = find_blocks(model)
    assert blocks == list(model.blocks)  # type: ignore[arg-type]
    # A hook of a layer in the block, since the block itself is called once.
    blocks[0].layers[0].register_forward_pre_hook(lambda *_: calls.append("again"))  # type: ignore[index,union-attr]
    with recomputed(blocks):
        loss = model(torch.rand(2, 1, 8, 8)).sum()
    assert calls == ["again"]
    loss.backward()
    assert calls == ["again", "again"]


def test_single_layers_are_not_recomputed() -> None:
    assert find_blocks(with_head(SmallCNNModel(1, 28, 10))) == []


def test_notice_for_a_backbone_without_blocks(cli: Any) -> None:
    result = cli("run", "-s", "head", *TINY, "--set", "checkpointing=true", "--no-track", "--dry-run")
    lines = [line for line in result.stdout.splitlines() if line.startswith("Note")]
    assert lines == [
        "Note: checkpointing: backbone small_cnn has no blocks of several layers: no effect"
    ]  # fmt: skip


@pytest.mark.slow
def test_recomputed_run_has_the_same_results() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual()
    runs = {}
    for twice in (False, True):
        settings = TINY_SETTINGS | {"checkpointing": twice}
        outcome = adaptkit.run(
            ["full", "lora", "head"], backbone=model, settings=settings, track=False, refresh_base=True
        )
        assert outcome.failed == ()
        runs[twice] = (outcome.base.fingerprint, {run.strategy: run.metrics for run in outcome.runs})
    assert runs[True][0] == runs[False][0]
    for strategy, metrics in runs[True][1].items():
        plainly = runs[False][1][strategy]
        differing = {key for key in metrics if not key.startswith("time/") and metrics[key] != plainly[key]}
        assert differing <= {"memory/peak_bytes"}
        if strategy == "full":
            assert metrics["memory/peak_bytes"] < plainly["memory/peak_bytes"]


@pytest.mark.slow
def test_recomputation_does_not_change_the_comparison(store: Any) -> None:
    uri = f"sqlite:///{store}"
    for seed, given in ((0, None), (1, {"checkpointing": "False"}), (2, {"checkpointing": "True"})):
        fabricate(uri, "full", seed, [seed], params=given)
        fabricate(uri, "head", seed, range(20 + seed))
    (comparison,) = adaptkit.compare(tracking_uri=uri)
    assert [(arm.name, [run.seed for run in arm.runs]) for arm in comparison.arms] == [
        ("full", [0, 1, 2]),
        ("head", [0, 1, 2]),
    ]
