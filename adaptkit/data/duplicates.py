"""Find images that occur more than once in the parts of an experiment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from adaptkit.contracts import Corpus, Images
from adaptkit.data.columns import GROUP
from adaptkit.data.pixels import chunks, image_bytes, joined
from adaptkit.data.shifts import luminance
from adaptkit.system.streams import printable_line

#: number of images whose keys are computed at a time, so that they fit into the cache of a processor
ROWS = 256
#: maximum number of images that a message names
SHOWN = 3
#: maximum number of images that are searched for near-duplicates; the time is proportional to its square
COMPARED = 10_000
#: side of the small images that are compared
SMALL = 16
#: maximum difference (root mean square) of near-duplicates in units of the standard deviation of an image
DIFFERENCE = 0.05
#: sum of squared differences that rounding can cause
EXACT = 4.0


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


def near_duplicates(images: Images, parts: Tensor) -> list[tuple[int, int]]:
    """Return pairs of images of different parts that look the same: an image, and the first earlier one like it.

    `parts` is int64 `[n]`, such as the number of the fold or of the group of each image. Images look the same if they
    are almost equal in grey and at a size of 16 x 16, as after scaling or compressing again. At most `COMPARED` images
    are compared; of more images, none are.
    """
    if len(images) > COMPARED or len(parts.unique()) < 2:
        return []
    small = torch.cat([_small(part) for chunk in chunks(images.pixels) for part in chunk.split(ROWS)])
    contrast = small.var(dim=1, correction=0)
    # Centred numbers are small, so that their products are exact enough.
    small = small - small.mean(dim=0)
    squares = small.square().sum(dim=1)
    pairs = []
    for start in range(0, len(small), ROWS):
        rows = slice(start, start + ROWS)
        distances = squares[rows, None] + squares - 2 * small[rows] @ small.T
        allowed = SMALL**2 * DIFFERENCE**2 * torch.maximum(contrast[rows, None], contrast) + EXACT
        alike = (distances <= allowed) & (parts[rows, None] != parts)
        alike = alike.tril(start - 1)  # the earlier images
        found = alike.any(dim=1).nonzero().flatten()
        first = alike[found].to(torch.uint8).argmax(dim=1)
        pairs += [(start + image, other) for image, other in zip(found.tolist(), first.tolist(), strict=True)]
    return pairs


def near_duplicate_notices(title: str, images: Images, parts: Tensor, kind: str) -> tuple[str, ...]:
    """Return the notice about images that look like images of another part; `kind` of part is group or fold."""
    pairs = near_duplicates(images, parts)
    if not pairs:
        return ()
    names = images.ids or range(len(images))
    texts = [f"{named([names[image]])} = {named([names[other]])}" for image, other in pairs[:SHOWN]]
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    count = "1 image looks" if len(pairs) == 1 else f"{len(pairs)} images look"
    return (f"{title}: {count} like an image of another {kind}: {', '.join(texts)}{more}",)


def across_groups(title: str, corpus: Corpus) -> tuple[str, ...]:
    """Return the notice about images that look like images of another group, if the data set has groups."""
    parts = [images for images in (corpus.train, corpus.test) if images is not None]
    if not all(GROUP in images.columns for images in parts):
        return ()
    images = joined(*parts) if len(parts) > 1 else parts[0]
    return near_duplicate_notices(title, images, _numbers(images.columns[GROUP]), kind="group")


def _numbers(values: Sequence[str]) -> Tensor:
    """Return a number for each value."""
    number = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([number[value] for value in values], dtype=torch.int64)


def _small(pixels: Tensor) -> Tensor:
    """Return images as rows of the grey values of 16 x 16 areas, float32 `[n, 256]` in 0..255."""
    grey = pixels.float() if pixels.dtype == torch.uint8 else pixels * 255
    grey = luminance(grey) if grey.shape[1] == 3 else grey.mean(dim=1, keepdim=True)
    return adaptive_avg_pool2d(grey, SMALL).flatten(1)


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
    words = -(-image_bytes(images.pixels) // 8)
    weights = numpy.random.Generator(numpy.random.PCG64(0)).integers(2**64, size=words, dtype=numpy.uint64) | 1
    return numpy.concatenate([_mixed(rows, weights) for chunk in chunks(images.pixels) for rows in chunk.split(ROWS)])


def _mixed(rows: Tensor, weights: numpy.ndarray) -> numpy.ndarray:
    padded = numpy.zeros((len(rows), 8 * len(weights)), dtype=numpy.uint8)
    flat = rows.flatten(1).contiguous().numpy().view(numpy.uint8)
    padded[:, : flat.shape[1]] = flat
    mixed = padded.view(numpy.uint64) * weights
    # Without this step, high bits would not affect low bits.
    mixed ^= mixed >> numpy.uint64(32)
    keys: numpy.ndarray = mixed.sum(axis=1, dtype=numpy.uint64)
    return keys
