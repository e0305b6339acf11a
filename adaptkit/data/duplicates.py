"""Find images that occur in other images too, pixel for pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from adaptkit.contracts import Images
from adaptkit.data.stored import chunks, loaded

#: images whose keys are computed at a time: few enough to stay in a processor's cache
ROWS = 256


def occurring(images: Images, others: Sequence[Images]) -> Tensor:
    """Return which images `[n]` occur among the others, which have the same channels and size."""
    keys, other_keys = _keys(images), [_keys(other) for other in others]
    likely = numpy.isin(keys, numpy.concatenate(other_keys))
    if likely.any():
        # Equal images have equal keys; whether equal keys are of equal images, only the pixels tell.
        seen = set[bytes]()
        for other, own_keys in zip(others, other_keys, strict=True):
            seen.update(_contents(other, numpy.isin(own_keys, keys[likely])))
        likely[likely] = [content in seen for content in _contents(images, likely)]
    return torch.from_numpy(likely)


def _contents(images: Images, chosen: numpy.ndarray) -> list[bytes]:
    pixels = loaded(images.take(torch.from_numpy(chosen))).pixels
    return [image.tobytes() for image in pixels.numpy()]


def _keys(images: Images) -> numpy.ndarray:
    """Return a uint64 for each image, the same for equal ones and hardly ever for others."""
    width = images.pixels.shape[1:]
    words = -(-int(numpy.prod(width)) // 8)
    weights = numpy.random.Generator(numpy.random.PCG64(0)).integers(2**64, size=words, dtype=numpy.uint64) | 1
    return numpy.concatenate([_mixed(rows, weights) for chunk in chunks(images.pixels) for rows in chunk.split(ROWS)])


def _mixed(rows: Tensor, weights: numpy.ndarray) -> numpy.ndarray:
    padded = numpy.zeros((len(rows), 8 * len(weights)), dtype=numpy.uint8)
    flat = rows.flatten(1).numpy()
    padded[:, : flat.shape[1]] = flat
    mixed = padded.view(numpy.uint64) * weights
    # Without this, high bits would have no say in lower ones.
    mixed ^= mixed >> numpy.uint64(32)
    keys: numpy.ndarray = mixed.sum(axis=1, dtype=numpy.uint64)
    return keys
