"""Load data sets, and check that they satisfy the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adaptkit.contracts import Corpus, Dataset, Images, Reading
from adaptkit.data.pixels import NamedPixels, dtype_of, range_fault, resized
from adaptkit.errors import BadInput, located


def load_both(
    *requested: tuple[Dataset | None, str], data_dir: Path, reading: Reading | None, image_size: int | None
) -> list[Corpus | None]:
    """Load data set and target, given with their names; raise BadInput with the problems of both.

    If one of them has raw values and the other one has pictures, the values of the pictures are converted like the raw
    values, so that both domains are treated alike.
    """
    corpora = _loaded(requested, data_dir, reading, image_size)
    conversions = {corpus.conversion for corpus in corpora if corpus is not None}
    if reading is None or reading.image or None not in conversions or len(conversions) == 1:
        return corpora
    return _loaded(requested, data_dir, replace(reading, image={"stretch": "linear"}), image_size)


def _loaded(
    requested: Sequence[tuple[Dataset | None, str]], data_dir: Path, reading: Reading | None, image_size: int | None
) -> list[Corpus | None]:
    corpora: list[Corpus | None] = []
    problems: list[str] = []
    for dataset, name in requested:
        # Image files of the target are decoded in the size of the source, because resizing twice would lose quality.
        source = corpora[0] if corpora else None
        sized = reading and (reading if source is None else replace(reading, size=source.train.pixels.shape[2]))
        corpus = None
        try:
            if dataset is not None:
                corpus = load_checked(dataset, data_dir, reading=sized, name=name)
                corpus = corpus if image_size is None else resized(corpus, image_size)
        except BadInput as error:
            problems.extend(error.problems)
        corpora.append(corpus)
    if problems:
        raise BadInput(*problems)
    return corpora


def load_checked(dataset: Dataset, data_dir: Path, reading: Reading | None = None, name: str = "") -> Corpus:
    """Load a data set; raise BadInput if it does not satisfy the contract.

    Stored images are not checked here, but when they are decoded. `reading` determines how image files without a fixed
    size are read. `name` is the name from the user, if it differs from the name of the data set.
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
    return replace(corpus, train=_named(corpus.train, f"{title}: image"), test=test)


def _named(images: Images, title: str) -> Images:
    pixels = images.pixels
    if isinstance(pixels, Tensor):
        return images
    count, channels, height, width = pixels.shape
    return replace(images, pixels=NamedPixels(pixels, (count, channels, height, width), title))


def _problem(images: Images, train: Images) -> str | None:
    shape = list(images.pixels.shape)
    dtype = dtype_of(images.pixels)
    if dtype not in (torch.uint8, torch.float32) or len(shape) != 4 or 0 in shape:
        return f"pixels must be uint8 or float32 [n, channels, height, width], not {_name(dtype)} {shape}"
    if dtype == torch.float32 and isinstance(images.pixels, Tensor) and (fault := range_fault(images.pixels)):
        return fault
    if shape[2] != shape[3]:
        return f"images must be square, not {shape[3]}x{shape[2]}"
    if images.labels.dtype != torch.int64 or list(images.labels.shape) != shape[:1]:
        return f"labels must be int64 [{shape[0]}], not {_name(images.labels.dtype)} {list(images.labels.shape)}"
    if len(set(images.classes)) != len(images.classes):
        return "two of its classes have the same name"
    if not 0 <= int(images.labels.min()) <= int(images.labels.max()) < len(images.classes):
        return f"labels must be 0 to {len(images.classes) - 1}, one for each class name"
    if images.ids is not None and not (_are_texts(images.ids, shape[0]) and len(set(images.ids)) == shape[0]):
        return f"ids must be {shape[0]} different texts, one for each image"
    for name, values in images.columns.items():
        if not _are_texts(values, shape[0]):
            return f"column {name!r} must be {shape[0]} texts, one for each image"
    if images.classes != train.classes or shape[1:] != list(train.pixels.shape[1:]):
        return "its test images and training images differ in classes, channels or size"
    if dtype != dtype_of(train.pixels):
        return "its test images and training images differ in their type, uint8 or float32"
    return None


def _are_texts(values: Sequence[str], count: int) -> bool:
    return len(values) == count and all(isinstance(value, str) for value in values)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
