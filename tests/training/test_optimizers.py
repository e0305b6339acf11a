"""Optimizers give the same bits as PyTorch's, and do not change PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit.training import loop as optimizers

PLAIN: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, **options),
}
OWN = {
    "adam": {"betas": (0.8, 0.99), "eps": 1e-6, "amsgrad": True},
    "adamw": {"betas": (0.8, 0.99), "weight_decay": 0.1, "maximize": True},
    "sgd": {"momentum": 0.5, "nesterov": True},
}


def trained(make: Callable[..., torch.optim.Optimizer], own: dict[str, Any], fused: bool) -> list[Tensor]:
    """Train with some missing gradients; return the weights and the state of the optimizer."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    parameters = [nn.Parameter(random(7, 5)), nn.Parameter(random(7)), nn.Parameter(random(3, 2, 2))]
    # Options of a group take precedence.
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.1, **own}]
    optimizer = make(groups, lr=1e-2, weight_decay=0.01, fused=fused)
    for step in range(6):
        optimizer.zero_grad(set_to_none=True)
        for number, parameter in enumerate(parameters):
            assert parameter.grad is None
            if step != 2 + number:
                parameter.grad = random(*parameter.shape)
        if step == 4:
            optimizer.param_groups[0]["lr"] = 1e-3
        optimizer.step()
    state = [value for slots in optimizer.state.values() for value in slots.values() if isinstance(value, Tensor)]
    return [*(parameter.detach() for parameter in parameters), *state]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_weights_and_state_equal_torch_optim(name: str, fused: bool) -> None:
    ours = trained(lambda groups, **options: optimizers.make(name, groups, **options), OWN[name], fused)
    theirs = trained(PLAIN[name], OWN[name], fused)
    assert len(ours) == len(theirs) == 3 + {"adam": 10, "adamw": 9, "sgd": 3}[name]
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_optimizer_without_profiler_wrappers() -> None:
    class Halving(torch.optim.Optimizer):
        """Halve the weights, in a method without a profiler wrapper."""

        def __init__(self, groups: Any) -> None:
            super().__init__(groups, {})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.5)

    parameter = nn.Parameter(torch.ones(2))
    optimizers.unprofiled(Halving)([{"params": [parameter]}]).step()
    assert parameter.tolist() == [0.5, 0.5] and parameter.requires_grad


@pytest.mark.slow
def test_training_does_not_import_the_compiler() -> None:
    code = """
import sys, torch
from adaptkit.training.loop import make

methods = {name: vars(torch.optim.Optimizer)[name] for name in ("add_param_group", "zero_grad")}
steps = [vars(kind)["step"] for kind in (torch.optim.Adam, torch.optim.SGD)]

def train(make, compiled):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    forward = torch.compile(model, backend="eager") if compiled else model
    optimizer = make([{"params": list(model.parameters())}], lr=0.1, fused=True)
    step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
    for _ in range(3):
        optimizer.zero_grad()
        forward(torch.ones(4, 3)).square().sum().backward()
        step()
    return model.weight.detach()

plain = train(lambda groups, **options: make("adam", groups, **options), False)
train(lambda groups, **options: make("sgd", groups, **options), False)
print("torch._dynamo" in sys.modules)
print(methods == {name: vars(torch.optim.Optimizer)[name] for name in methods})
print(steps == [vars(kind)["step"] for kind in (torch.optim.Adam, torch.optim.SGD)])
for kind in (torch.optim.Adam, lambda groups, **options: make("adam", groups, **options)):
    print(torch.equal(plain, train(kind, True)))
print("torch._dynamo" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False", "True", "True", "True", "True", "True"]
