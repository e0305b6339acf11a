"""Seed the global random generators. No other module of adaptkit does."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy
import torch
from torch import Tensor


class RandomStream:
    """Give a block of code its own stream of the global random generators (Python, NumPy, PyTorch).

    When the block is entered again, its stream continues where it stopped. Draws outside the block do not change it.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._own: tuple[Any, ...] | None = None
        self._outer: tuple[Any, ...] | None = None

    def __enter__(self) -> None:
        self._outer = _states()
        if self._own is None:
            random.seed(self._seed)
            numpy.random.seed(self._seed % 2**32)
            torch.manual_seed(self._seed)
        else:
            _restore(self._own)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own = _states()
        if self._outer is not None:
            _restore(self._outer)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the position of the stream as tensors and plain numbers; it must have been entered before."""
        assert self._own is not None
        (version, words, gauss), (kind, keys, position, has_gauss, cached), tensor, cuda, mps = self._own
        tensors = {
            "python": torch.tensor(words, dtype=torch.int64),
            "numpy": torch.from_numpy(keys.astype(numpy.int64)),
            "torch": tensor,
            **{f"cuda {number}": state for number, state in enumerate(cuda or ())},
        }
        if mps is not None:
            tensors["mps"] = mps
        numbers = {"python": [version, gauss], "numpy": [kind, int(position), int(has_gauss), float(cached)]}
        return tensors, numbers

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Set the position of the stream to that of another one, as `state` returned it."""
        version, gauss = numbers["python"]
        kind, *rest = numbers["numpy"]
        device_count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        cuda = [tensors[f"cuda {number}"] for number in range(device_count) if f"cuda {number}" in tensors]
        self._own = (
            (version, tuple(tensors["python"].tolist()), gauss),
            (kind, tensors["numpy"].numpy().astype(numpy.uint32), *rest),
            tensors["torch"],
            cuda or None,
            tensors.get("mps"),
        )


def _states() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda, mps


def _restore(states: tuple[Any, ...]) -> None:
    python, array, tensor, cuda, mps = states
    random.setstate(python)
    numpy.random.set_state(array)
    torch.set_rng_state(tensor)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    if mps is not None:
        torch.mps.set_rng_state(mps)
