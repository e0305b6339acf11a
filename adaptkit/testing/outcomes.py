"""Verdicts of checks, comparison of models, and detection of changes of the global state of the process."""

from __future__ import annotations

import os
import random
import sys
import unittest
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from adaptkit.errors import AdaptkitError, located
from adaptkit.training.seeding import RandomStream

FLAGS = (
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "enabled"),
    (torch.backends.cudnn, "allow_tf32"),
)
HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
LAYERS = [cls for cls in vars(nn).values() if isinstance(cls, type) and issubclass(cls, nn.Module)]


@dataclass(frozen=True)
class GlobalState:
    """A part of the global state: functions that read and restore it, and whether imports may change it."""

    name: str
    read: Callable[[], Any]
    put: Callable[[Any], Any]
    by_import: bool = False


@contextmanager
def watched() -> Iterator[list[str]]:
    """Restore global state that the block changes, except random generators, and add the changes to the list.

    Environment variables, paths and warning filters that change during the first import of a package are restored but
    not listed.
    """
    changes: list[str] = []
    states = _global_states()
    before, modules = [state.read() for state in states], len(sys.modules)
    try:
        yield changes
    finally:
        imported = len(sys.modules) > modules
        for state, value in zip(states, before, strict=True):
            if state.read() != value:
                state.put(value)
                if not (imported and state.by_import):
                    changes.append(state.name)


def seeded(act: Callable[[], object]) -> list[str]:
    """Return the random generators of the process that an action seeds: they no longer depend on their seed before."""
    draws = []
    for seed in (1, 2):
        with RandomStream(seed):
            act()
            draws.append((random.random(), float(numpy.random.random()), float(torch.rand(()))))
    return [name for name, *values in zip(("random", "numpy", "torch"), *draws, strict=True) if len(set(values)) == 1]


def hooked(model: nn.Module) -> set[str]:
    """Return the names of modules with hooks."""
    return {
        name or "the model"
        for name, module in model.named_modules()
        if any(hooks for key, hooks in vars(module).items() if key.endswith("_hooks") and isinstance(hooks, Mapping))
    }


def _global_states() -> list[GlobalState]:
    return [
        GlobalState("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        GlobalState("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        GlobalState("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
        GlobalState(
            "torch's deterministic algorithms",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        GlobalState(
            "torch's precision of products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        *(_flag(module, name) for module, name in FLAGS),
        *(_hooks(name) for name in HOOKS),
        *(_class(cls) for cls in LAYERS),
        GlobalState("the current folder", os.getcwd, os.chdir),
        GlobalState("environment variables", lambda: dict(os.environ), _environment, by_import=True),
        GlobalState(
            "sys.path", lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value), by_import=True
        ),
        GlobalState("warning filters", lambda: list(warnings.filters), _filters, by_import=True),
    ]


def _flag(module: Any, name: str) -> GlobalState:
    return GlobalState(
        f"{module.__name__}.{name}", lambda: getattr(module, name), lambda value: setattr(module, name, value)
    )


def _hooks(name: str) -> GlobalState:
    hooks = getattr(nn.modules.module, name)

    def put(value: dict[Any, Any]) -> None:
        hooks.clear()
        hooks.update(value)

    return GlobalState(f"the hooks of all modules ({name.removeprefix('_global_')})", lambda: dict(hooks), put)


def _class(cls: type) -> GlobalState:
    def put(value: dict[str, Any]) -> None:
        for name in set(vars(cls)) - set(value):
            delattr(cls, name)
        for name, member in value.items():
            if vars(cls)[name] is not member:
                setattr(cls, name, member)

    return GlobalState(f"the class torch.nn.{cls.__name__}", lambda: dict(vars(cls)), put)


def _environment(value: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(value)


def _filters(value: list[Any]) -> None:
    # `warnings.catch_warnings` replaces the list of filters, so the current list is filled.
    warnings.resetwarnings()
    warnings.filters[:] = value  # type: ignore[index]


class CheckFailed(AssertionError):
    """A check failed, for the reason in the message."""


class NotTried(unittest.SkipTest):
    """A check does not apply, for the reason in the message; pytest skips the test."""


@dataclass(frozen=True)
class Verdict:
    """The result of one check on one subject: `passed`, `failed` or `not tried`, with the reason."""

    check: str
    subject: str
    word: str
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """A check of one promise of a plugin on one subject (a small model, an image size).

    Calling it raises CheckFailed or NotTried, or returns None if the check passes.
    """

    name: str
    subject: str
    attempt: Callable[[], None]

    def __call__(self) -> None:
        self.attempt()

    def __str__(self) -> str:
        return f"{self.subject}: {self.name}"

    def verdict(self) -> Verdict:
        """Run the check and return its verdict."""
        try:
            self.attempt()
        except CheckFailed as failure:
            return Verdict(self.name, self.subject, word="failed", reason=str(failure))
        except NotTried as reason:
            return Verdict(self.name, self.subject, word="not tried", reason=str(reason))
        except Exception as error:
            return Verdict(self.name, self.subject, word="failed", reason=f"it raises {located(error)}")
        return Verdict(self.name, self.subject, "passed")


def require(condition: bool, reason: str) -> None:
    """Raise CheckFailed with this reason unless the condition holds."""
    if not condition:
        raise CheckFailed(reason)


def described(error: BaseException) -> str:
    """Return an error as one line; errors of plugins include their place in the code."""
    return " ".join("; ".join(error.problems).split()) if isinstance(error, AdaptkitError) else located(error)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest logit if that is above 1."""
    if ours.shape != theirs.shape or not bool(torch.isfinite(theirs).all()):
        return float("inf")
    return ((ours - theirs).abs().max() / max(1.0, float(ours.abs().max()))).item()


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
