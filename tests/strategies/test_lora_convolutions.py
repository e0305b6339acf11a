"""LoRA on random convolutions, and the choice of layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptkit.adapters.files import Inherited
from adaptkit.adapters.peft import Update, narrowed, peft_folder, widened
from adaptkit.backbones.small_cnn_layers import SmallCNNModel
from adaptkit.backbones.structure import with_head
from adaptkit.errors import BadInput
from adaptkit.strategies.lora import LoRA
from adaptkit.strategies.lora_layers import DoRAConv2d, LoRAConv2d
from adaptkit.testing.models import base
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt, count

MODES = ("zeros", "reflect", "replicate", "circular")
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw valid arguments of a Conv2d; depth-wise convolutions have groups of one channel."""
    groups = draw(st.integers(1, 4))
    word = draw(st.sampled_from([None, "same", "valid"]))
    return {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": draw(PAIRS),
        "stride": (1, 1) if word == "same" else draw(PAIRS),
        "padding": word or draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": draw(PAIRS),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(MODES)),
    }


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(
    arguments=convolutions(),
    kind=st.sampled_from([LoRAConv2d, DoRAConv2d]),
    rank=st.integers(1, 6),
    alpha=st.floats(0.5, 4),
    rslora=st.booleans(),
)
def test_update_starts_at_zero_and_merges(
    arguments: dict[str, Any], kind: type[LoRAConv2d], rank: int, alpha: float, rslora: bool
) -> None:
    with RandomStream(1):
        plain = nn.Conv2d(**arguments)
        model = nn.Sequential(nn.Identity(), plain)
        keys = list(model.state_dict())
        layer = kind(plain, rank, alpha, dropout=0.0, rslora=rslora)
        model[1] = layer
        x = torch.randn(2, plain.in_channels, 9, 8)
        groups, inner = plain.groups, -(-rank // plain.groups) * plain.groups
        assert layer.lora_A.weight.shape == (inner, plain.in_channels // groups, *plain.kernel_size)
        assert layer.lora_B.weight.shape == (plain.out_channels, inner // groups, 1, 1)
        for name in ("stride", "padding", "dilation", "groups", "padding_mode"):
            assert getattr(layer.lora_A, name) == getattr(plain, name)
        with torch.no_grad():
            assert torch.equal(layer(x), plain(x))
            nn.init.normal_(layer.lora_B.weight)
            if isinstance(layer, DoRAConv2d):
                layer.lora_magnitude_vector.weight *= 1 + torch.rand(1, plain.out_channels, 1, 1)
            unmerged = layer(x)
            weight = plain.weight.clone()
            LoRA().merge(model)
            torch.testing.assert_close(model(x), unmerged, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == keys and type(model[1]) is nn.Conv2d
    assert torch.equal(plain.weight, weight)
    # The same update in the two forms of PEFT: over all channels, and merged.
    down, up = layer.lora_A.weight, layer.lora_B.weight
    wide = widened(down, groups)
    assert wide.shape[1] == plain.in_channels
    assert torch.equal(down, narrowed(wide, groups))  # type: ignore[arg-type]
    magnitude = layer.lora_magnitude_vector.weight if isinstance(layer, DoRAConv2d) else None
    merged = Update(down, up, layer.scaling, magnitude=magnitude).merged(plain.weight)
    torch.testing.assert_close(merged, model[1].weight, rtol=1e-5, atol=1e-6)


class Mobile(nn.Module):
    """A depth-wise separable network whose only linear layer is its head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)  # one channel, one group: not depth-wise
        self.spatial = nn.Conv2d(8, 16, 3, groups=8)
        self.mixing = nn.Conv2d(16, 24, 1)
        self.fc = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.mixing(self.spatial(self.stem(x)).relu()).mean((2, 3)))
        return logits


def adapted(model: nn.Module, **options: Any) -> list[str]:
    adapt(with_head(model), LoRA(**options), init_seed=0)
    return [name.removesuffix(".base_layer") for name, _ in model.named_modules() if name.endswith(".base_layer")]


SECOND = ("1.first", "1.second", "1.shortcut")
CNN = ["features.0", "features.3", "classifier.1", "classifier.3"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["stem", "mixing", "fc"]),
        ({"targets": "all"}, ["stem", "mixing", "fc"]),
        ({"targets": "conv"}, ["stem", "mixing"]),
        ({"targets": "linear"}, ["fc"]),
        ({"train_head": True}, ["stem", "mixing"]),
        ({"targets": "s*,fc"}, ["stem", "fc"]),
    ],
    ids=str,
)
def test_depthwise_convolutions_are_left_out(options: dict[str, Any], names: list[str]) -> None:
    assert adapted(Mobile(), **options) == names


@pytest.mark.parametrize(
    ("model", "options", "names"),
    [
        (SmallCNNModel(1, 28, 10), {}, CNN[2:]),
        (SmallCNNModel(1, 28, 10), {"train_head": True}, CNN[2:3]),
        (SmallCNNModel(1, 28, 10), {"targets": "all"}, CNN),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), {}, ["1"]),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), {}, ["0"]),
        (
            base("residual"),
            {},
            ["stem", *(f"blocks.{part}" for part in ("0.first", "0.second", *SECOND)), "fc"],
        ),
        (
            base("transformer"),
            {},
            [f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("qkv", "proj", "fc1", "fc2")] + ["head"],
        ),
    ],
)
def test_layers_of_auto(model: nn.Module, options: dict[str, Any], names: list[str]) -> None:
    assert adapted(copy.deepcopy(model), **options) == names


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        (
            Mobile(),
            {"targets": "spatial"},
            "lora.targets: 'spatial' matches no Linear or Conv2d layer that LoRA can adapt "
            "(spatial: a depth-wise convolution)",
        ),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2)),
            {"targets": "linear,conv"},
            "lora.targets: 'conv' matches no Linear or Conv2d layer that LoRA can adapt (0: a depth-wise convolution)",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(9, 2)),
            {"train_head": True},
            "lora.targets: the model has no Linear or Conv2d layer to adapt except its head",
        ),
        (
            SmallCNNModel(1, 28, 10),
            {"targets": "autoo"},
            "lora.targets: no layer matches 'autoo'; did you mean 'auto'?",
        ),
    ],
)
def test_targets_without_a_layer(model: nn.Module, options: dict[str, Any], problem: str) -> None:
    for call in (lambda: adapted(model, **options), lambda: LoRA(**options).notices(with_head(model))):
        with pytest.raises(BadInput) as refused:
            call()
        assert refused.value.problems == (problem,)


def test_notices_about_layers_and_large_updates() -> None:
    cnn = with_head(SmallCNNModel(1, 28, 10))
    assert LoRA().notices(cnn) == [] and [*cnn.state_dict()] == [*SmallCNNModel(1, 28, 10).state_dict()]
    kept = "lora: these updates are as large as their layer, or of a higher rank than the layer can have: "
    head = "classifier.3 (2,208 parameters for 1,290, rank 16 of at most 10)"
    assert LoRA(rank=16).notices(cnn) == [kept + head]
    first = "features.0 (656 parameters for 320, rank 16 of at most 9)"
    assert LoRA(rank=16, targets="all").notices(cnn) == [f"{kept}{first}, {head}"]
    assert LoRA(rank=9, targets="classifier.3").notices(cnn) == []
    assert LoRA(rank=9, targets="classifier.3", dora=True).notices(cnn) == []
    mobile = with_head(Mobile())
    assert LoRA(rank=1, targets="all").notices(mobile) == [
        "lora: adapts 3 of 4 layers; not: spatial (a depth-wise convolution)"
    ]
    assert LoRA(rank=1, targets="linear").notices(mobile) == []
    grouped = with_head(nn.Sequential(nn.Conv2d(8, 8, 1, groups=4, bias=False), nn.Flatten(), nn.Linear(8, 8)))
    sizes = "0 (32 parameters for 16, rank 8 of at most 8)"
    assert LoRA(rank=8, targets="conv").notices(grouped) == [kept + sizes.replace(", rank 8 of at most 8", "")]


def test_rank_16_on_the_small_cnn() -> None:
    model = with_head(SmallCNNModel(1, 28, 10))
    adapt(model, LoRA(rank=16), init_seed=0)
    assert count(model).trainable == 54_432


def test_names_in_peft_files() -> None:
    """Loading with PEFT itself is tested in plugins/peft/tests/test_round_trip.py."""
    model = with_head(SmallCNNModel(1, 28, 10))
    tensors = (*model.parameters(), *model.buffers())
    strategy = LoRA(rank=4, targets="features.3,classifier.1", dora=True, train_head=True)
    adapt(model, strategy, init_seed=0)
    plain = SmallCNNModel(1, 28, 10)
    targets = ["features.3", "classifier.1", "classifier.3"]
    files, config = peft_folder(Inherited.of(model, tensors).adapter(model), vars(strategy), targets, base=plain)
    prefix = "base_model.model"
    assert {key: tuple(value.shape) for key, value in files.items()} == {
        f"{prefix}.classifier.1.lora_A.weight": (4, 3136),
        f"{prefix}.classifier.1.lora_B.weight": (128, 4),
        f"{prefix}.classifier.1.lora_magnitude_vector": (128,),
        f"{prefix}.classifier.3.bias": (10,),
        f"{prefix}.classifier.3.weight": (10, 128),
        f"{prefix}.features.3.lora_A.weight": (4, 32, 3, 3),
        f"{prefix}.features.3.lora_B.weight": (64, 4, 1, 1),
        f"{prefix}.features.3.lora_magnitude_vector": (1, 64, 1, 1),
    }
    assert config | {"peft_version": ""} == {
        "peft_type": "LORA",
        "peft_version": "",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
        "r": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": True,
        "init_lora_weights": True,
        "fan_in_fan_out": False,
        "target_modules": ["classifier.1", "features.3"],
        "modules_to_save": ["classifier.3"],
        "rank_pattern": {},
        "alpha_pattern": {},
    }
