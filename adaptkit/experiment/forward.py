"""Recognise the forward pass of a model: by its code, and by its outputs on fixed images.

Two models with the same layers and weights can compute different functions. The code of a backbone is part of the
recipe of its bases. It does not cover all that a forward pass depends on, such as attributes and files, so that each
base also has its outputs on a few images next to its weights.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.training.seeding import RandomStream

#: packages whose code is left out: the recipe has the version of torch, and adaptkit only adds preprocessing and `head`
LEFT_OUT = ("torch", "adaptkit")

#: accepted difference of logits, as a fraction of the largest one: rounding differs between machines
TOLERANCE = 1e-3


def code_digest(model: nn.Module) -> str:
    """Return the sha256 of the functions that a model's classes and modules consist of.

    It covers the compiled code, and the functions and constants of the same Python module that the code uses. Comments,
    docstrings and formatting do not count. Another version of Python can give another digest.
    """
    seen: dict[Any, str] = {}
    for module in model.modules():
        members = [value for cls in type(module).__mro__ for value in vars(cls).values()]
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        for value in (*members, *vars(module).values(), *hooks):
            _collect(value, seen)
    return hashlib.sha256("\n".join(sorted(seen.values())).encode()).hexdigest()


def _collect(value: Any, seen: dict[Any, str]) -> None:
    """Add the description of a function, and of the functions that it uses, to `seen`."""
    for function in _functions(value):
        code = function.__code__
        if code in seen or function.__module__ is None or function.__module__.partition(".")[0] in LEFT_OUT:
            continue
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
        used = [function.__globals__[name] for name in sorted(_names(code)) if name in function.__globals__]
        constants = [repr(each) for each in (*cells, *used, *(function.__defaults__ or ())) if _is_constant(each)]
        seen[code] = f"{function.__qualname__} {_described(code, function.__doc__)} {constants}"
        for each in (*cells, *used):
            if getattr(each, "__module__", None) == function.__module__:
                _collect(each, seen)


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions behind a member of a class: a function, method or property."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, types.MethodType | staticmethod | classmethod):
        yield from _functions(value.__func__)
    elif isinstance(value, property):
        yield from _functions(value.fget)
    if hasattr(value, "__wrapped__"):
        yield from _functions(value.__wrapped__)


def _names(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _described(code: types.CodeType, doc: str | None) -> str:
    constants: list[str] = []
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            constants.append(_described(const, None))
        elif isinstance(const, frozenset):
            constants.append(repr(sorted(map(repr, const))))  # the order of a set differs between processes
        elif doc is None or const != doc:
            constants.append(repr(const))
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _is_constant(value: Any) -> bool:
    return isinstance(value, bool | int | float | complex | str | bytes)


def _is_set(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


@torch.no_grad()
def sample_logits(model: nn.Module, channels: int, size: int) -> list[list[float]]:
    """Return the logits of a model on the CPU, in evaluation mode, for four images of noise that never change.

    Two of the images are fine noise, and two consist of larger squares. The model keeps its mode. The list is empty if
    the model fails on these images, or returns something other than a tensor.
    """
    generator = torch.Generator().manual_seed(0)
    fine = torch.rand(2, channels, size, size, generator=generator)
    side = -(-size // 8)
    coarse = torch.rand(2, channels, 8, 8, generator=generator)
    coarse = coarse.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., :size, :size]
    modes = [part.training for part in model.modules()]
    try:
        with RandomStream(0):
            logits: Any = model.eval()(torch.cat([fine, coarse]))
    except Exception:  # models raise many kinds of errors
        return []
    finally:
        for part, mode in zip(model.modules(), modes, strict=True):
            part.training = mode
    rows: list[list[float]] = logits.float().tolist() if isinstance(logits, Tensor) else []
    return rows


def are_same_logits(recorded: Sequence[Sequence[float]], measured: Sequence[Sequence[float]]) -> bool:
    """Return whether two sets of logits differ by rounding only."""
    first, second = (torch.tensor(rows, dtype=torch.float64) for rows in (recorded, measured))
    if first.shape != second.shape:
        return False
    scale = float(_finite(first).abs().max())
    return torch.allclose(first, second, rtol=0, atol=TOLERANCE * scale + 1e-6, equal_nan=True)


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num(0.0, 0.0, 0.0)
