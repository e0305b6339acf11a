"""Check data sets against the contract, and bring a target into line with the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from adaptkit.contracts import Corpus, Dataset, Images
from adaptkit.data.shifts import luminance
from adaptkit.data.stored import LoadedImages, NamedPixels, chunks, loaded
from adaptkit.errors import BadInput, located


def load_checked(dataset: Dataset, data_dir: Path) -> Corpus:
    """Load a data set and raise BadInput unless it keeps the contract.

    Stored images are not decoded here: each is checked when it is.
    """
    try:
        corpus = dataset.load(data_dir)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"data set {dataset.name}: load() raises {located(error)}") from error
    if not isinstance(corpus, Corpus):
        raise BadInput(f"data set {dataset.name}: load() returned {type(corpus).__name__}, not a Corpus")
    for images in (corpus.train, corpus.test):
        if images is None:
            continue
        problem = _problem(images, corpus.train)
        if problem:
            raise BadInput(f"data set {dataset.name}: {problem}")
    test = None if corpus.test is None else _named(corpus.test, f"data set {dataset.name}: test image")
    return Corpus(_named(corpus.train, f"data set {dataset.name}: image"), test)


def _named(images: Images, title: str) -> Images:
    pixels = images.pixels
    if isinstance(pixels, Tensor):
        return images
    count, channels, height, width = pixels.shape
    return Images(NamedPixels(pixels, (count, channels, height, width), title), images.labels, images.classes)


def _problem(images: Images, train: Images) -> str | None:
    shape = list(images.pixels.shape)
    dtype = images.pixels.dtype if isinstance(images.pixels, Tensor) else torch.uint8
    if dtype != torch.uint8 or len(shape) != 4 or 0 in shape:
        return f"pixels must be uint8 [n, channels, height, width], not {_name(dtype)} {shape}"
    if shape[2] != shape[3]:
        return f"images must be square, not {shape[3]}x{shape[2]}"
    if images.labels.dtype != torch.int64 or list(images.labels.shape) != shape[:1]:
        return f"labels must be int64 [{shape[0]}], not {_name(images.labels.dtype)} {list(images.labels.shape)}"
    if len(set(images.classes)) != len(images.classes):
        return "two of its classes have the same name"
    if not 0 <= int(images.labels.min()) <= int(images.labels.max()) < len(images.classes):
        return f"labels must be 0 to {len(images.classes) - 1}, one for each class name"
    if images.classes != train.classes or shape[1:] != list(train.pixels.shape[1:]):
        return "its test images are not of the same classes, channels and size as its training images"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def relabelled(corpus: Corpus, name: str, classes: tuple[str, ...], source: str) -> Corpus:
    """Return the target with its labels counted as the source counts them; raise BadInput for other classes."""
    own = corpus.train.classes
    if set(own) != set(classes):
        differences = [
            f"{title} {_some(names)}"
            for title, names in (
                ("it lacks", [label for label in classes if label not in own]),
                ("it adds", [label for label in own if label not in classes]),
            )
            if names
        ]
        raise BadInput(f"target {name}: its classes are not those of {source}: {'; '.join(differences)}")
    number = torch.tensor([classes.index(label) for label in own])

    def relabel(images: Images) -> Images:
        return Images(images.pixels, number[images.labels], classes)

    return Corpus(relabel(corpus.train), None if corpus.test is None else relabel(corpus.test))


def _some(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


def alike(images: Images, model: Images, name: str) -> LoadedImages:
    """Return the target's images in the channels and the size of the source's; raise BadInput where none leads there.

    Grey images are repeated for each channel, colours become their luminance, sizes are changed bilinearly.
    """
    (given, side), (channels, size) = images.pixels.shape[1:3], model.pixels.shape[1:3]
    if given != channels and (given, channels) not in ((1, 3), (3, 1)):
        raise BadInput(f"target {name}: its images have {given} channels, the source's {channels}")
    if (given, side) == (channels, size):
        return loaded(images)
    pixels = torch.empty((len(images), channels, size, size), dtype=torch.uint8)
    filled = 0
    for chunk in chunks(images.pixels):
        pixels[filled : filled + len(chunk)] = _converted(chunk, channels, size)
        filled += len(chunk)
    return LoadedImages(pixels, images.labels, images.classes)


def _converted(pixels: Tensor, channels: int, size: int) -> Tensor:
    given, side = pixels.shape[1:3]
    if given != channels:
        pixels = luminance(pixels.float()).round().to(torch.uint8) if channels == 1 else pixels.repeat(1, 3, 1, 1)
    if side != size:
        # Without antialiasing a shrunk image would be a sample of its pixels.
        large = interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=side > size)
        pixels = large.round().clamp(0, 255).to(torch.uint8)
    return pixels
