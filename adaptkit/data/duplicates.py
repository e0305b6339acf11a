"""Find images that occur more than once in the parts of an experiment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from adaptkit.contracts import Images
from adaptkit.data.pixels import chunks
from adaptkit.system.streams import printable_line

#: number of images whose keys are computed at a time, so that they fit into the cache of a processor
ROWS = 256
#: maximum number of images that a message names
SHOWN = 3


@dataclass(frozen=True)
class Members:
    """Images of a part, with the name of each image in its data set, or its number if images have no names."""

    images: Images
    names: Sequence[str | int]


def equal_images(parts: Sequence[Images]) -> list[list[tuple[int, int]]]:
    """Return the groups of images with equal pixels, as (part, index); all images have the same channels and size."""
    keys = [_keys(images) for images in parts]
    distinct, counts = numpy.unique(numpy.concatenate(keys), return_counts=True)
    groups: dict[bytes, list[tuple[int, int]]] = {}
    for part, images in enumerate(parts):
        # Different images can have equal keys, so compare the pixels.
        likely = torch.from_numpy(numpy.isin(keys[part], distinct[counts > 1])).nonzero().flatten()
        if len(likely):
            pixels = (image for chunk in chunks(images.take(likely).pixels) for image in chunk.numpy())
            for index, image in zip(likely.tolist(), pixels, strict=True):
                groups.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append((part, index))
    return [group for group in groups.values() if len(group) > 1]


def occurring(images: Images, others: Sequence[Images]) -> Tensor:
    """Return a mask `[n]` of the images that also occur in `others`, which have the same channels and size."""
    mask = torch.zeros(len(images), dtype=torch.bool)
    for group in equal_images([images, *others]):
        if any(part > 0 for part, _ in group):
            mask[[index for part, index in group if part == 0]] = True
    return mask


def repetitions(parts: Mapping[str, Members]) -> tuple[str, ...]:
    """Return notices about test images that are exact copies of training images, and images with several labels.

    `parts` are named as in a sentence; names of test parts contain "test". Parts that are not in memory are not
    checked.
    """
    titles = [title for title, part in parts.items() if len(part.names) and isinstance(part.images.pixels, Tensor)]
    if not titles:
        return ()
    groups = equal_images([parts[title].images for title in titles])
    lines = []
    for test in (title for title in titles if "test" in title):
        for other in (title for title in titles if "test" not in title):
            copies = [
                parts[test].names[index]
                for group in groups
                if any(titles[part] == other for part, _ in group)
                for part, index in group
                if titles[part] == test
            ]
            if copies:
                count = f"{len(copies)} of {len(parts[test].names)} images"
                lines.append(f"{count} of {test} are exact copies of images in {other}: {named(copies)}")
    return (*lines, *_contradictions([[(parts[titles[part]], index) for part, index in group] for group in groups]))


def _contradictions(groups: Sequence[Sequence[tuple[Members, int]]]) -> list[str]:
    """Return a notice about the equal images that have different labels."""
    texts = []
    for group in groups:
        by_label = {int(part.images.labels[index]): (part, index) for part, index in group}
        if len(by_label) > 1:
            labels = [part.images.classes[label] for label, (part, _) in by_label.items()]
            files = [named([part.names[index]]) for part, index in by_label.values()]
            texts.append(" = ".join(f"{file} ({label!r})" for file, label in zip(files, labels, strict=True)))
    if not texts:
        return []
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    count = "1 image has" if len(texts) == 1 else f"{len(texts)} images have"
    return [f"{count} several labels: {', '.join(texts[:SHOWN])}{more}"]


def named(names: Sequence[str | int]) -> str:
    """Return the first names, or the first numbers, and how many others there are."""
    ordered = sorted(names, key=lambda name: (0, name) if isinstance(name, str) else (name, ""))
    texts = [printable_line(name) if isinstance(name, str) else f"image {name}" for name in ordered]
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")


def _keys(images: Images) -> numpy.ndarray:
    """Return a uint64 hash of each image."""
    width = images.pixels.shape[1:]
    words = -(-int(numpy.prod(width)) // 8)
    weights = numpy.random.Generator(numpy.random.PCG64(0)).integers(2**64, size=words, dtype=numpy.uint64) | 1
    return numpy.concatenate([_mixed(rows, weights) for chunk in chunks(images.pixels) for rows in chunk.split(ROWS)])


def _mixed(rows: Tensor, weights: numpy.ndarray) -> numpy.ndarray:
    padded = numpy.zeros((len(rows), 8 * len(weights)), dtype=numpy.uint8)
    flat = rows.flatten(1).numpy()
    padded[:, : flat.shape[1]] = flat
    mixed = padded.view(numpy.uint64) * weights
    # Without this step, high bits would not affect low bits.
    mixed ^= mixed >> numpy.uint64(32)
    keys: numpy.ndarray = mixed.sum(axis=1, dtype=numpy.uint64)
    return keys
