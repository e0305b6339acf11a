"""Watch what a plugin changes outside of its model, and put it back."""

from __future__ import annotations

import os
import sys
import unittest
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.errors import AdaptkitError, located

FLAGS = (
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "enabled"),
    (torch.backends.cudnn, "allow_tf32"),
)
HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
LAYERS = [cls for cls in vars(nn).values() if isinstance(cls, type) and issubclass(cls, nn.Module)]


@dataclass(frozen=True)
class Thing:
    """Something of the process: how it is read and set, and whether importing a package may well change it."""

    name: str
    read: Callable[[], Any]
    put: Callable[[Any], Any]
    by_import: bool = False


@contextmanager
def watched() -> Iterator[list[str]]:
    """Put back what a block changes in its process, random generators aside; list it when the block is left.

    Environment variables, paths and warning filters that change while a package is imported are put back, not listed.
    """
    changes: list[str] = []
    things = _things()
    before, modules = [thing.read() for thing in things], len(sys.modules)
    try:
        yield changes
    finally:
        imported = len(sys.modules) > modules
        for thing, value in zip(things, before, strict=True):
            if thing.read() != value:
                thing.put(value)
                if not (imported and thing.by_import):
                    changes.append(thing.name)


def _things() -> list[Thing]:
    return [
        Thing("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Thing("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        Thing("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
        Thing(
            "torch's deterministic algorithms",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        Thing(
            "torch's precision of products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        *(_flag(module, name) for module, name in FLAGS),
        *(_hooks(name) for name in HOOKS),
        *(_class(cls) for cls in LAYERS),
        Thing("the current folder", os.getcwd, os.chdir),
        Thing("environment variables", lambda: dict(os.environ), _environment, by_import=True),
        Thing("sys.path", lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value), True),
        Thing("warning filters", lambda: list(warnings.filters), _filters, by_import=True),
    ]


def _flag(module: Any, name: str) -> Thing:
    return Thing(f"{module.__name__}.{name}", lambda: getattr(module, name), lambda value: setattr(module, name, value))


def _hooks(name: str) -> Thing:
    hooks = getattr(nn.modules.module, name)

    def put(value: dict[Any, Any]) -> None:
        hooks.clear()
        hooks.update(value)

    return Thing(f"the hooks of all modules ({name.removeprefix('_global_')})", lambda: dict(hooks), put)


def _class(cls: type) -> Thing:
    def put(value: dict[str, Any]) -> None:
        for name in set(vars(cls)) - set(value):
            delattr(cls, name)
        for name, member in value.items():
            if vars(cls)[name] is not member:
                setattr(cls, name, member)

    return Thing(f"the class torch.nn.{cls.__name__}", lambda: dict(vars(cls)), put)


def _environment(value: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(value)


def _filters(value: list[Any]) -> None:
    # The list itself may be another one by now: `warnings.catch_warnings` swaps it.
    warnings.resetwarnings()
    warnings.filters[:] = value  # type: ignore[index]


class CheckFailed(AssertionError):
    """Say in plain words what a plugin does not keep."""


class NotTried(unittest.SkipTest):
    """Say why a check does not apply; pytest takes it for a skipped test."""


@dataclass(frozen=True)
class Verdict:
    """What one check said of one subject: `passed`, `failed` or `not tried`, and why."""

    check: str
    subject: str
    word: str
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """One promise of a plugin, to be tried on one subject (a small model, an image size): call it to try.

    Raises CheckFailed or NotTried.
    """

    name: str
    subject: str
    attempt: Callable[[], None]

    def __call__(self) -> None:
        self.attempt()

    def __str__(self) -> str:
        return f"{self.subject}: {self.name}"

    def verdict(self) -> Verdict:
        """Try it, and return what came of it."""
        try:
            self.attempt()
        except CheckFailed as failure:
            return Verdict(self.name, self.subject, "failed", str(failure))
        except NotTried as reason:
            return Verdict(self.name, self.subject, "not tried", str(reason))
        except Exception as error:
            return Verdict(self.name, self.subject, "failed", f"it raises {located(error)}")
        return Verdict(self.name, self.subject, "passed")


def require(condition: bool, reason: str) -> None:
    """Raise CheckFailed with this reason unless the condition holds."""
    if not condition:
        raise CheckFailed(reason)


def told(error: BaseException) -> str:
    """Return an error as one line, with its place unless it is meant for users."""
    return " ".join("; ".join(error.problems).split()) if isinstance(error, AdaptkitError) else located(error)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return how far logits are apart, as a share of the largest where that is above 1."""
    if ours.shape != theirs.shape or not bool(torch.isfinite(theirs).all()):
        return float("inf")
    return ((ours - theirs).abs().max() / max(1.0, float(ours.abs().max()))).item()


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def listed(names: list[str]) -> str:
    """Return names in a row, the first few of many."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
