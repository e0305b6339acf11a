"""LoRA's layers follow the formulas of their papers, start at the base, and save few tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from adaptkit.strategies.lora import LoRA
from adaptkit.strategies.lora_layers import Decomposed, DoRAConv2d, DoRALinear, LoRAConv2d, LoRALayer, LoRALinear
from adaptkit.testing import models
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt


def lora_layer(dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> LoRALinear:
    """Return a layer with an update that is not zero and a frozen base."""
    with RandomStream(4):
        layer = LoRALinear(nn.Linear(6, 5, dtype=dtype), rank=2, alpha=3, dropout=dropout)
        nn.init.normal_(layer.lora_B.weight)
    layer.base_layer.requires_grad_(False)
    return layer


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=dtype)


def formula(layer: LoRALinear, x: torch.Tensor) -> torch.Tensor:
    """Return W x + b + alpha / rank B A x, as the paper writes it."""
    result: torch.Tensor = layer.base_layer(x) + 3 / 2 * x @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    return result


@pytest.mark.parametrize("shape", [(6,), (4, 6), (3, 4, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_formula_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, near: float) -> None:
    layer = lora_layer(dtype)
    trained = (layer.lora_A.weight, layer.lora_B.weight)
    results = []
    for function in (layer, lambda x: formula(layer, x)):
        x = images(*shape, dtype=dtype).requires_grad_()
        y = function(x)
        assert y.shape == (*shape[:-1], 5)
        results.append((y, *torch.autograd.grad((y * images(*y.shape, dtype=dtype)).sum(), (x, *trained))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=near, atol=near)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_starts_at_its_base(bias: bool) -> None:
    base = nn.Linear(6, 5, bias=bias)
    layer = LoRALinear(base, rank=2, alpha=3, dropout=0.0)
    for x in (images(6), images(4, 6), images(3, 4, 6), images(6, 4, 3).permute(2, 1, 0), images(0, 6)):
        assert torch.equal(layer(x), base(x))


def test_merged_layer_has_the_same_output() -> None:
    layer = lora_layer()
    before = copy.deepcopy(layer.state_dict())
    merged = layer.merged()
    x = images(3, 4, 6)
    assert type(merged) is nn.Linear and (merged(x) - layer(x)).abs().max() < 1e-5
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_dropout_acts_on_the_update_in_training() -> None:
    layer, x = lora_layer(dropout=0.5), images(4, 6)
    torch.testing.assert_close(layer.eval()(x), formula(layer, x), rtol=1e-6, atol=1e-6)
    layer.train()
    with RandomStream(9):
        trained = layer(x)
    with RandomStream(9):
        dropped = nn.functional.dropout(x, 0.5)
    expected = layer.base_layer(x) + formula(layer, dropped) - layer.base_layer(dropped)
    torch.testing.assert_close(trained, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(trained, formula(layer, x))


def test_training_under_autocast() -> None:
    layer, x = lora_layer(), images(3, 4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and (y.float() - formula(layer, x)).abs().max() < 0.1
    assert layer.lora_A.weight.grad.dtype == layer.lora_B.weight.grad.dtype == torch.float32  # type: ignore[union-attr]


def test_tensors_saved_for_backward() -> None:
    layer, x = lora_layer(), images(4, 6)
    own = {parameter.data_ptr() for parameter in layer.parameters()}
    kept: dict[int, tuple[int, ...]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    assert sorted(kept.values()) == [(4, 2), (4, 6)]


def test_layer_can_be_traced_and_copied() -> None:
    layer, x = lora_layer(), images(3, 4, 6)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


CONVOLUTIONS = [
    nn.Conv2d(6, 4, 3),
    nn.Conv2d(6, 4, 1, bias=False),
    nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    nn.Conv2d(6, 4, 3, padding="same", dilation=2),
    nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="circular", stride=2),
    nn.Conv2d(6, 4, 3, padding=1, groups=2),
    nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=6, padding_mode="replicate"),
]


def changed(layer: LoRALayer) -> LoRALayer:
    """Return a layer with an update that is not zero and changed magnitudes."""
    with RandomStream(4):
        nn.init.normal_(layer.lora_B.get_parameter("weight"))
        if isinstance(layer, Decomposed):
            layer.lora_magnitude_vector.weight.data *= torch.rand(()) + 1
    return layer


@pytest.mark.parametrize("base", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("kind", [LoRAConv2d, DoRAConv2d])
def test_convolution_equals_dense_update(base: nn.Conv2d, kind: type[LoRAConv2d]) -> None:
    layer, x = kind(base, rank=2, alpha=3, dropout=0.0), images(2, 6, 9, 8)
    assert torch.equal(layer(x), base(x))
    changed(layer)
    weight = base.weight.detach().clone()
    rank, width = 1 if base.groups > 1 else 2, base.out_channels // base.groups
    for out in range(base.out_channels):
        for r in range(rank):
            filters = layer.lora_A.weight[out // width * rank + r]
            weight[out] += 3 / 2 * layer.lora_B.weight[out, r, 0, 0] * filters.detach()
    if kind is DoRAConv2d:
        magnitudes = layer.lora_magnitude_vector.weight.detach()  # type: ignore[union-attr]
        assert magnitudes.shape == (1, base.out_channels, 1, 1)
        weight *= magnitudes.view(-1, 1, 1, 1) / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    dense = copy.deepcopy(base)
    dense.weight.data = weight
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.merged()(x), dense(x), rtol=1e-5, atol=1e-5)


def test_rank_of_a_grouped_convolution() -> None:
    shapes = [
        (tuple(layer.lora_A.weight.shape), tuple(layer.lora_B.weight.shape))
        for rank, groups in ((8, 2), (3, 2), (8, 12))
        for layer in [LoRAConv2d(nn.Conv2d(12, 24, 3, groups=groups), rank, alpha=1, dropout=0.0)]
    ]
    assert shapes == [
        ((8, 6, 3, 3), (24, 4, 1, 1)),
        ((4, 6, 3, 3), (24, 2, 1, 1)),
        ((12, 1, 3, 3), (24, 1, 1, 1)),
    ]


@pytest.mark.parametrize("bias", [True, False])
def test_dora_formula_and_gradient(bias: bool) -> None:
    base = nn.Linear(6, 5, bias=bias)
    base.weight.data[2] = 0  # an output with zero weights has no direction
    layer, x = DoRALinear(base, rank=2, alpha=3, dropout=0.0), images(3, 4, 6)
    assert torch.equal(layer(x), base(x)) and layer.lora_magnitude_vector.weight.shape == (5,)
    changed(layer)
    magnitude, (down, up) = layer.lora_magnitude_vector.weight, (layer.lora_A.weight, layer.lora_B.weight)
    weight = base.weight.detach() + 3 / 2 * up @ down
    scaled = magnitude / weight.detach().norm(dim=1)  # section 4.3: the length is a constant
    expected = nn.functional.linear(x, scaled[:, None] * weight, base.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.merged()(x), expected, rtol=1e-5, atol=1e-5)
    trained = (magnitude, down, up)
    gradients = [torch.autograd.grad(y.square().sum(), trained) for y in (layer(x), expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 4, 3)], ids=str)
def test_rslora_scaling(layer: nn.Linear | nn.Conv2d) -> None:
    wrapped = LoRA(rank=4, alpha=3, rslora=True)._wrap(layer, own_forward=False)
    assert wrapped.scaling == 3 / 2


def test_dora_dropout() -> None:
    layer, x = DoRALinear(nn.Linear(6, 5), rank=2, alpha=3, dropout=0.5), images(4, 6)
    changed(layer).train()
    with RandomStream(9):
        ours = layer(x)
    with RandomStream(9):
        dropped = nn.functional.dropout(x, 0.5)
    expected = layer.base_layer(x) + layer.merged()(dropped) - layer.base_layer(dropped)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.eval()(x), layer.merged()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}, {"rslora": True, "dora": True}], ids=str)
def test_peft_gives_the_same_logits(options: dict[str, bool]) -> None:
    peft: Any = pytest.importorskip("peft")
    ours, theirs = models.base("residual"), models.base("residual")
    adapt(ours, LoRA(rank=4, targets="all", **options), init_seed=0)  # type: ignore[arg-type]
    names = [name for name, module in ours.named_modules() if isinstance(module, LoRALayer)]
    for name in names:
        changed(ours.get_submodule(name))  # type: ignore[arg-type]
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=names, use_dora="dora" in options, use_rslora="rslora" in options
    )
    model = peft.get_peft_model(theirs, config)
    state = {key.replace(".default", ""): value for key, value in model.base_model.model.state_dict().items()}
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    for key, value in ours.state_dict().items():
        state[key].copy_(value)
    pixels = images(5, 3, 12, 12)
    torch.testing.assert_close(ours.eval()(pixels), model.eval()(pixels), rtol=1e-5, atol=1e-5)
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, model)]
    assert trained[0] == trained[1] > 0
