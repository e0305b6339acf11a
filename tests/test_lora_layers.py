"""LoRA's layer: that it is the paper's formula, starts at its base, and keeps no more than it needs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from adaptkit.strategies.lora_layers import LoRALinear
from adaptkit.training.seeding import RandomStream


def lora_layer(dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> LoRALinear:
    """Return a layer whose update is not zero, its base frozen as `adapt` freezes it."""
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
def test_a_lora_layer_and_its_gradients_follow_the_papers_formula(
    shape: tuple[int, ...], dtype: torch.dtype, near: float
) -> None:
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
def test_a_lora_layer_starts_at_its_base_bit_for_bit_for_any_layout(bias: bool) -> None:
    base = nn.Linear(6, 5, bias=bias)
    layer = LoRALinear(base, rank=2, alpha=3, dropout=0.0)
    for x in (images(6), images(4, 6), images(3, 4, 6), images(6, 4, 3).permute(2, 1, 0), images(0, 6)):
        assert torch.equal(layer(x), base(x))


def test_a_merged_lora_layer_gives_the_wrapped_layers_output_and_leaves_it_alone() -> None:
    layer = lora_layer()
    before = copy.deepcopy(layer.state_dict())
    merged = layer.merged()
    x = images(3, 4, 6)
    assert type(merged) is nn.Linear and (merged(x) - layer(x)).abs().max() < 1e-5
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_lora_dropout_acts_on_the_updates_input_and_in_training_only() -> None:
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


def test_a_lora_layer_trains_in_bfloat16_under_autocast() -> None:
    layer, x = lora_layer(), images(3, 4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and (y.float() - formula(layer, x)).abs().max() < 0.1
    assert layer.lora_A.weight.grad.dtype == layer.lora_B.weight.grad.dtype == torch.float32  # type: ignore[union-attr]


def test_a_lora_layer_keeps_for_backward_only_its_input_and_the_projection() -> None:
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


def test_a_lora_layer_can_be_traced_and_copied() -> None:
    layer, x = lora_layer(), images(3, 4, 6)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
