"""Check data sets against the contract, and bring a target into line with the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adaptkit.contracts import Corpus, Dataset, Images, Reading
from adaptkit.data.stored import NamedPixels
from adaptkit.errors import BadInput, located


def load_checked(dataset: Dataset, data_dir: Path, reading: Reading | None = None, name: str = "") -> Corpus:
    """Load a data set and raise BadInput unless it keeps the contract.

    Stored images are not decoded here: each is checked when it is. `reading` is how pictures are read that have no size
    of their own, `name` what the user calls the data set, if not by its own name.
    """
    title = f"data set {name or dataset.name}"
    try:
        at = getattr(dataset, "at", None)
        corpus = (dataset if at is None or reading is None else at(reading)).load(data_dir)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{title}: load() raises {located(error)}") from error
    if not isinstance(corpus, Corpus):
        raise BadInput(f"{title}: load() returned {type(corpus).__name__}, not a Corpus")
    for images in (corpus.train, corpus.test):
        if images is None:
            continue
        problem = _problem(images, corpus.train)
        if problem:
            raise BadInput(f"{title}: {problem}")
    test = None if corpus.test is None else _named(corpus.test, f"{title}: test image")
    return Corpus(_named(corpus.train, f"{title}: image"), test, corpus.notices)


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

    return Corpus(relabel(corpus.train), None if corpus.test is None else relabel(corpus.test), corpus.notices)


def _some(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more
