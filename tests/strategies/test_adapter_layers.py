"""The layers of `norm`, `ssf` and `adapter` follow the formulas of their papers on all kinds of layers and blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adaptkit.backbones.structure import with_head
from adaptkit.errors import BadInput
from adaptkit.strategies.adapter import Adapter
from adaptkit.strategies.adapter_layers import AdaptedBlock, Bottleneck
from adaptkit.strategies.lora import LoRA
from adaptkit.strategies.norm import Norm
from adaptkit.strategies.ssf import SSF
from adaptkit.strategies.ssf_layers import SSFLayer, SSFNorm
from adaptkit.testing.models import base
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt


def test_norm_trains_every_normalization_layer() -> None:
    class Own(nn.LayerNorm):
        pass

    norms = [
        nn.BatchNorm1d(3),
        nn.BatchNorm3d(3),
        nn.InstanceNorm2d(3, affine=True),
        nn.InstanceNorm2d(3),
        nn.GroupNorm(1, 3),
        nn.RMSNorm(3),
        Own(3, bias=False),
    ]
    model = with_head(nn.Sequential(nn.Conv2d(1, 3, 1), *norms, nn.Linear(3, 2)))
    adapt(model, Norm(), init_seed=0)
    expected = [*(f"{n}.{key}" for n in (1, 2, 3, 5) for key in ("weight", "bias")), "6.weight", "7.weight"]
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == expected
    adapt(model, Norm(train_head=True), init_seed=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [*expected, "8.weight", "8.bias"]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("layer", "shape", "spread"),
    [
        (nn.Linear(6, 4), (2, 3, 6), (4,)),
        (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5), (4, 1, 1)),
        (nn.Conv2d(6, 4, 3, bias=False), (2, 6, 5, 5), (4, 1, 1)),
        (nn.BatchNorm2d(6), (2, 6, 5, 5), (6, 1, 1)),
        (nn.BatchNorm1d(6), (2, 6), (6,)),
        (nn.GroupNorm(2, 6), (2, 6, 5, 5), (6, 1, 1)),
        (nn.LayerNorm(6), (2, 3, 6), (6,)),
        (nn.LayerNorm((3, 6)), (2, 3, 6), (3, 6)),
        (nn.RMSNorm(6), (2, 3, 6), (6,)),
    ],
)
def test_ssf_formula(layer: nn.Module, shape: tuple[int, ...], spread: tuple[int, ...]) -> None:
    x = drawn(*shape)
    layer.eval()
    plain = layer(x)
    wrapped: Any = SSFLayer(layer) if isinstance(layer, nn.Linear | nn.Conv2d) else SSFNorm(layer)
    assert torch.equal(wrapped(x), plain)
    nn.init.normal_(wrapped.scale)
    expected = plain * wrapped.scale.view(spread)
    assert (wrapped.shift is None) == (getattr(layer, "bias", None) is None)
    if wrapped.shift is not None:
        nn.init.normal_(wrapped.shift)
        expected = expected + wrapped.shift.view(spread)
    torch.testing.assert_close(wrapped(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wrapped.merged()(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(x), plain)


@pytest.mark.parametrize("name", ["residual", "convolutions", "transformer"])
def test_adapted_model_can_be_traced(name: str) -> None:
    model, x = base(name), drawn(2, 3, 12, 12)
    adapt(model, Adapter(), init_seed=0)
    for parameter in model.parameters():
        parameter.data.add_(0.1)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


class Attention(nn.Module):
    """Transformer layers of torch, one of them used twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.again(self.first(self.encoder(x)).relu()).mean(1))
        return logits


@pytest.mark.parametrize("strategy", [LoRA(targets="all"), LoRA(targets="all", dora=True), SSF(), Adapter()], ids=str)
def test_shared_layers_and_torch_fast_paths(strategy: Any) -> None:
    with RandomStream(3):
        model = Attention().eval()
    x, names = drawn(2, 5, 8), [name for name, _ in model.named_parameters()]
    plain = model(x)
    adapt(model, strategy, init_seed=0)
    assert model.first is model.again and type(model.encoder.layers[0].self_attn.out_proj).__mro__[1] is nn.Linear
    torch.testing.assert_close(model(x), plain, rtol=1e-5, atol=1e-6)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(drawn(*parameter.shape), alpha=0.1)
    slow = model(x)
    with torch.no_grad():  # torch's encoder uses its fast path here, if it is enabled
        torch.testing.assert_close(model(x), slow)
    assert not torch.allclose(slow, plain, atol=1e-3)
    if hasattr(strategy, "merge"):
        strategy.merge(model)
        assert [name for name, _ in model.named_parameters()] == names and model.first is model.again
        torch.testing.assert_close(model(x), slow, rtol=1e-5, atol=1e-5)


def test_adapter_follows_its_block() -> None:
    bottleneck = Bottleneck(6, True, width=2, after="stem")
    for parameter in bottleneck.parameters():
        nn.init.normal_(parameter)

    def expected(tokens: torch.Tensor) -> torch.Tensor:
        return tokens + bottleneck.up(nn.functional.gelu(bottleneck.down(tokens)))

    maps = drawn(2, 6, 5, 4)
    torch.testing.assert_close(bottleneck(maps), expected(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    for tokens in (drawn(2, 7, 6), drawn(2, 6), drawn(2, 5, 4, 6)):  # from a convolution with flattened feature maps
        torch.testing.assert_close(bottleneck(tokens), expected(tokens))
    with pytest.raises(BadInput, match=r"the output of stem is \[2, 5\], but its last layer has 6 channels"):
        bottleneck(drawn(2, 5))
    attention, x = nn.MultiheadAttention(6, 2, batch_first=True), drawn(2, 7, 6)
    block = AdaptedBlock(attention, bottleneck)
    (ours, weights), (plain, theirs) = block(x, x, x), attention(x, x, x)
    torch.testing.assert_close(ours, expected(plain))
    assert torch.equal(weights, theirs) and block.num_heads == 2
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = block.nothing
