"""Strategies on several architectures: parameter counts, models that do not fit, and conformance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adaptkit.backbones.small_cnn_layers import SmallCNNModel
from adaptkit.backbones.structure import find_stages, with_head
from adaptkit.errors import BadInput
from adaptkit.strategies.adapter import Adapter
from adaptkit.strategies.lora import LoRA
from adaptkit.strategies.norm import Norm
from adaptkit.strategies.partial import Partial
from adaptkit.strategies.ssf import SSF
from adaptkit.testing import checks
from adaptkit.testing.models import base
from adaptkit.training.loop import Recipe, make_optimizer
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt, count

#: strategies with options; tests/testing covers their defaults
METHODS: list[tuple[type[Any], dict[str, Any]]] = [
    (SSF, {"train_head": True}),
    (Adapter, {"width": 3}),
    (Partial, {"stages": 2}),
    (LoRA, {"targets": "conv", "rank": 4, "rslora": True, "plus": 16.0, "bias": "lora_only"}),
    (LoRA, {"targets": "all", "dora": True, "dropout": 0.2, "bias": "all", "train_head": True}),
]

CHECKS = [
    pytest.param(check, id=f"{cls.name} {' '.join(f'{key}={value}' for key, value in options.items())} on {check}")
    for cls, options in METHODS
    for check in checks(cls, options=options)
]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check: Any) -> None:
    check()


def cnn() -> nn.Module:
    with RandomStream(1):
        return with_head(SmallCNNModel(1, 28, 10))


CNN_COUNTS = [
    (SSF(), 468, 468),  # a scale and a shift for 32 + 64 + 128 + 10 channels
    (SSF(train_head=True), 1_738, 448),
    (Adapter(), 3_832, 3_832),
    (Adapter(width=4), 2_028, 2_028),
    (Adapter(train_head=True), 5_122, 3_832),
    (Partial(), 402_826, 0),
    (Partial(stages=2), 421_322, 0),
    (Partial(stages=3), 421_642, 0),
    (LoRA(), 27_216, 27_216),
    (LoRA(rslora=True), 27_216, 27_216),
    (LoRA(plus=16), 27_216, 27_216),
    (LoRA(targets="linear"), 27_216, 27_216),
    (LoRA(targets="Conv2d"), 3_144, 3_144),
    (LoRA(targets="conv"), 3_144, 3_144),
    (LoRA(targets="all"), 30_360, 30_360),
    (LoRA(dora=True), 27_354, 27_354),
    (LoRA(targets="all", dora=True), 30_594, 30_594),
    (LoRA(train_head=True), 27_402, 26_112),
    (LoRA(bias="lora_only"), 27_354, 27_216),
    (LoRA(bias="all"), 27_450, 27_216),
    (LoRA(bias="all", train_head=True), 27_626, 26_112),
]


@pytest.mark.parametrize(("strategy", "trained", "added"), CNN_COUNTS, ids=lambda value: str(value))
def test_counts_on_the_small_cnn(strategy: Any, trained: int, added: int) -> None:
    model = cnn()
    adapt(model, strategy, init_seed=0)
    counts = count(model)
    assert (counts.trainable, counts.total) == (trained, 421_642 + added)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("residual", {"norm": 96, "ssf": 164, "adapter": 500, "partial": 2_356}),
        ("convolutions", {"norm": 16, "ssf": 84, "adapter": 644, "partial": 772}),
        ("transformer", {"norm": 160, "ssf": 648, "adapter": 840, "partial": 2_324}),
    ],
)
def test_counts_on_other_architectures(name: str, counts: dict[str, int]) -> None:
    trained = {}
    for cls in (Norm, SSF, Adapter, Partial):
        model = base(name)
        adapt(model, cls(), init_seed=0)
        trained[cls.name] = count(model).trainable
    assert trained == counts


class Wrapped(nn.Module):
    """A network inside another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before, self.inner = nn.BatchNorm2d(3), inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(self.before(x))
        return logits


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (cnn(), [["features.0"], ["features.3"], ["classifier.1"]]),
        (base("residual"), [["stem", "norm"], ["blocks.0"], ["blocks.1"]]),
        (base("convolutions"), [["0"], ["2", "3"], ["5"], ["6"]]),
        (base("transformer"), [["patch_embed"], ["blocks.0"], ["blocks.1", "norm"]]),
        (
            with_head(Wrapped(base("residual"))),
            [["before", "inner.stem", "inner.norm"], ["inner.blocks.0"], ["inner.blocks.1"]],
        ),
        (with_head(nn.Sequential(nn.Flatten(), nn.Linear(9, 2))), []),
    ],
)
def test_stages_of_a_model(model: nn.Module, names: list[list[str]]) -> None:
    assert [[name for name, _ in stage.parts] for stage in find_stages(model)] == names


def test_strategy_that_does_not_fit_the_model() -> None:
    bare = with_head(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)))
    for strategy, model, problem in [
        (Norm(), cnn(), "strategy norm: SmallCNNModel has no normalization layer with parameters"),
        (Adapter(), bare, "strategy adapter: Sequential has no block to add an adapter to"),
        (SSF(train_head=True), bare, "strategy ssf: Sequential has no layer to scale and shift"),
        (
            Partial(stages=4),
            cnn(),
            "partial.stages: 4 is more than the 3 stages of SmallCNNModel (features.0, features.3, classifier.1)",
        ),
        (LoRA(targets="conv"), bare, "lora.targets: the model has no Conv2d layer to adapt"),
        (
            LoRA(targets="MaxPool2d"),
            cnn(),
            "lora.targets: 'MaxPool2d' matches no Linear or Conv2d layer that LoRA can adapt "
            "(features.1 is a MaxPool2d; features.4 is a MaxPool2d)",
        ),
        (
            LoRA(targets="classifier.3", train_head=True),
            cnn(),
            "lora.targets: 'classifier.3' matches no Linear or Conv2d layer that LoRA can adapt "
            "(classifier.3 is the head, which is trained itself)",
        ),
    ]:
        with pytest.raises(BadInput) as caught:
            adapt(model, strategy, init_seed=0)  # type: ignore[arg-type]
        assert caught.value.problems == (problem,)


def test_lr_ratio_reaches_the_optimizer() -> None:
    model = cnn()
    groups = adapt(model, LoRA(plus=16, targets="classifier.*", train_head=True), init_seed=0)
    optimizer = make_optimizer(groups, Recipe(epochs=1, batch_size=1, lr=1e-3, order_seed=0), torch.device("cpu"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["lr"]: [names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups}
    assert found == {
        1e-3: ["classifier.1.lora_A.weight", "classifier.3.weight", "classifier.3.bias"],
        16e-3: ["classifier.1.lora_B.weight"],
    }
    assert all("lr_ratio" not in group for group in optimizer.param_groups)
