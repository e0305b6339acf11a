"""The optimizers of PyTorch, without the compiler that PyTorch imports for them.

`torch.optim` marks methods as none of the compiler's business, and imports the compiler (`torch._dynamo`, seconds of
start-up) to say so. Here the same methods are called from inside those marks. Nothing of PyTorch is changed: whoever
compiles in the same process gets PyTorch's own optimizers as ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

#: what `torch.optim.Optimizer` marks, of what is needed to build and step one
MARKED = ("add_param_group", "zero_grad", "step")
KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adam": (Adam, {}),
    "adamw": (AdamW, {}),
    "sgd": (SGD, {"momentum": 0.9}),
}


def make(name: str, groups: Iterable[dict[str, Any]], **options: Any) -> Optimizer:
    """Return the optimizer of this name over parameter groups, with `torch.optim`'s options such as `lr` and `fused`.

    Its steps are those of `torch.optim`, bit for bit.
    """
    kind, defaults = KINDS[name]
    optimizer: Optimizer = unmarked(kind)(list(groups), **(defaults | options))
    return optimizer


def unmarked(kind: type[Optimizer]) -> type[Any]:
    """Return a subclass whose methods are those inside the marks; where there are no marks, the methods themselves."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in MARKED}
    # The mark of `step` also turns gradients off.
    methods["step"] = torch.no_grad()(methods["step"])
    return type(kind.__name__, (kind,), methods)
