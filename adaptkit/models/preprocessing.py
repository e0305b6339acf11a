"""Bring what a user has, files, pictures or tensors, to what a model was trained on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from adaptkit.data.sets.folder import SYSTEM_NAMES
from adaptkit.data.shifts import luminance
from adaptkit.errors import BadInput
from adaptkit.training.objective import probabilities


@dataclass(frozen=True)
class Preprocessing:
    """Make float images `[n, channels, size, size]` in 0..1, as in training; models normalise them themselves."""

    channels: int
    size: int

    def __call__(self, things: Any) -> Tensor:
        """Return a path, a PIL image, a uint8 or float tensor, or a list of them, as one batch.

        Tensors are `[c, h, w]`, `[n, c, h, w]` or, if grey, `[h, w]`; floats are in 0..1. Raises BadInput.
        """
        items = list(things) if isinstance(things, list | tuple) else [things]
        if not items:
            raise BadInput("there is nothing to preprocess")
        return torch.cat([self._batch(item) for item in items])

    def _batch(self, thing: Any) -> Tensor:
        if not isinstance(thing, Tensor):
            if hasattr(thing, "__array_interface__") and not hasattr(thing, "convert"):  # NumPy's, not PIL's
                thing = torch.as_tensor(thing)
            else:
                from adaptkit.data.sets.image_files import read_picture

                thing = read_picture(Path(thing) if isinstance(thing, str) else thing, self.size)
        images = thing[None, None] if thing.ndim == 2 else thing[None] if thing.ndim == 3 else thing
        if images.ndim != 4 or 0 in images.shape:
            raise BadInput(f"images are [c, h, w] or [n, c, h, w], not {list(thing.shape)}")
        if not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise BadInput(f"images are uint8, or floats in 0..1, not {str(images.dtype).removeprefix('torch.')}")
        if images.is_floating_point():
            low, high = float(images.min()), float(images.max())
            if not (low >= -1e-3 and high <= 1 + 1e-3):
                raise BadInput(f"images of floats are in 0..1, not {low:g} to {high:g}; uint8 images are in 0..255")
            return self._resized(self._in_channels(images.float()))
        # Rounded after each step, as images are when a data set is brought to another's channels and size.
        images = _rounded(self._in_channels(images))
        return _rounded(self._resized(images)).float() / 255

    def _in_channels(self, images: Tensor) -> Tensor:
        given = images.shape[1]
        if given == self.channels:
            return images
        if (given, self.channels) == (3, 1):
            return luminance(images.float())
        if given == 1:
            return images.repeat(1, self.channels, 1, 1)
        raise BadInput(f"images have {given} channels, and the model takes {self.channels}")

    def _resized(self, images: Tensor) -> Tensor:
        """Bring the shorter side to the model's size and cut the middle out of the longer one."""
        height, width = images.shape[-2:]
        short = min(height, width)
        if short != self.size:
            sides = [max(self.size, int(side * self.size / short)) for side in (height, width)]
            # Without antialiasing a shrunk image would be a sample of its pixels.
            images = interpolate(images.float(), size=sides, mode="bilinear", antialias=short > self.size)
        top, left = (round((side - self.size) / 2) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]


def _rounded(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)


DECODERS = 4


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture: classes with their confidence, the most likely first."""

    path: Path
    ranked: tuple[tuple[str, float], ...]


def find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield these files, and the files in these folders, at any depth, in the order of their names; none is hidden.

    Raises BadInput, before the first is yielded, for paths that are not there.
    """
    named = list(paths)
    if missing := [path for path in named if not path.exists()]:
        raise BadInput(*(f"{path}: there is no such file or folder" for path in missing))
    return _walk(named)


def _walk(named: Sequence[Path]) -> Iterator[Path]:
    for path in named:
        if not path.is_dir():
            yield path
            continue
        seen = set()  # a link may lead back to a folder above it
        for folder, inner, files in os.walk(path, followlinks=True):
            inner[:] = _kept(inner)
            if (real := os.path.realpath(folder)) in seen:
                inner.clear()
                continue
            seen.add(real)
            yield from (Path(folder, name) for name in _kept(files))


def _kept(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith(".") and name.lower() not in SYSTEM_NAMES)


def predict_pictures(
    model: nn.Module,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    paths: Iterable[Path],
    *,
    top_k: int = 1,
    batch_size: int = 64,
    broken: Callable[[str], None],
) -> Iterator[Prediction]:
    """Yield a prediction for each picture, in order; one that cannot be read is told to `broken` and left out.

    Two batches are in memory at a time, however many pictures there are: one is decoded while the other is predicted.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    count = min(top_k, len(classes))
    for names, images in _decoded(preprocessing, paths, batch_size, broken):
        with torch.inference_mode():
            confidence, chosen = probabilities(model(images.to(device)).float()).cpu().topk(count)
        for path, shares, numbers in zip(names, confidence.tolist(), chosen.tolist(), strict=True):
            named = zip(numbers, shares, strict=True)
            yield Prediction(path, tuple((classes[number], share) for number, share in named))


def _decoded(
    preprocessing: Preprocessing, paths: Iterable[Path], batch_size: int, broken: Callable[[str], None]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield pictures in batches with their paths; the next batch is decoded while one is used."""

    def read(path: Path) -> Tensor | str:
        try:
            return preprocessing(path)
        except BadInput as error:
            return str(error)

    # Each picture is decoded without warnings, which is set for all threads: at the end it is as before.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        left = iter(paths)

        def begin() -> list[tuple[Path, Future[Tensor | str]]]:
            return [(path, pool.submit(read, path)) for path in islice(left, batch_size)]

        try:
            begun = begin()
            while begun:
                waiting, begun = begun, begin()
                good: list[tuple[Path, Tensor]] = []
                for path, future in waiting:
                    found = future.result()
                    if isinstance(found, str):
                        broken(found)
                    else:
                        good.append((path, found))
                if good:
                    yield [path for path, _ in good], torch.cat([images for _, images in good])
        finally:
            pool.shutdown(cancel_futures=True)
