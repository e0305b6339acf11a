"""Let a model take images in 0..1 and normalise them itself, without any change of its keys."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.backbones.heads import find_head


def normalising(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Return the model, which now subtracts the mean and divides by the standard deviation of each channel.

    Images with one channel are expanded to as many as there are means. A model without a `head` answers it, too.
    """
    for name, values in (("input_mean", mean), ("input_std", std)):
        # Not persistent: files of weights keep the keys that they had.
        model.register_buffer(name, torch.tensor(tuple(values)).view(1, -1, 1, 1), persistent=False)
    model.__class__ = _normalising(type(model), headed=not hasattr(model, "head"))  # type: ignore[arg-type]
    return model


@functools.cache
def _normalising(cls: type[nn.Module], headed: bool) -> type[nn.Module]:
    # A subclass, since a model around the model would put a prefix before each key.
    def forward(self: Any, x: Tensor) -> Any:
        return cls.forward(self, (x - self.input_mean) / self.input_std)

    def extra_repr(self: Any) -> str:
        # In the recipe of a base: models that normalise otherwise are others, though their weights are the same.
        mean, std = (buffer.flatten().tolist() for buffer in (self.input_mean, self.input_std))
        return ", ".join(filter(None, [cls.extra_repr(self), f"mean={mean}, std={std}"]))

    def load(self: Any, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        # Files that say nothing of a version are of this one; torchvision's MNASNet takes none without.
        cls._load_from_state_dict(self, state, prefix, {"version": self._version} | metadata, *rest)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _rebuild, (cls, headed), self.__dict__

    members: dict[str, Any] = {
        "forward": forward,
        "extra_repr": extra_repr,
        "_load_from_state_dict": load,
        "__reduce_ex__": reduce,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    if headed:
        members["head"] = property(find_head)
    return type(cls.__name__, (cls,), members)


def _rebuild(cls: type[nn.Module], headed: bool) -> nn.Module:
    made = _normalising(cls, headed)  # type: ignore[arg-type]  # classes are hashable
    return made.__new__(made)
