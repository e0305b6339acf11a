"""Convert files, PIL images and tensors to the input of a model, and classify them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from adaptkit.comparison.numbers import counted
from adaptkit.contracts import Raster
from adaptkit.data.readers.files import RawFiles, converted, is_image_name
from adaptkit.data.sets.layout import SYSTEM_NAMES
from adaptkit.data.sets.read_picture import UnreadableError, stored_values
from adaptkit.data.shifts import luminance
from adaptkit.errors import BadInput
from adaptkit.system.streams import printable_line
from adaptkit.training.objective import probabilities


@dataclass(frozen=True)
class Preprocessing:
    """Convert images as in training, to floats `[n, channels, size, size]` in 0..1.

    Means and standard deviations are not applied here, because models normalise their input themselves.

    Parameters
    ----------
    channels : int
        1 for grey images, 3 for colour images, or the number of bands.
    size : int
        Side of the images, in pixels.
    raw : RawFiles, optional
        For a model of raw values, such as those of FITS files: how to read and to convert them.

    Examples
    --------
    >>> preprocess = adaptkit.Preprocessing(channels=1, size=28)
    >>> preprocess(["photos/0.png", torch.rand(3, 40, 60)]).shape
    torch.Size([2, 1, 28, 28])
    """

    channels: int
    size: int
    raw: RawFiles | None = None

    def __call__(self, images: Any) -> Tensor:
        """Return images as one batch.

        Parameters
        ----------
        images : path, PIL image, tensor, NumPy array, or a list of them
            Arrays have the shape `[c, h, w]`, `[n, c, h, w]` or, if grey, `[h, w]`. They hold uint8 numbers, or floats
            in 0..1; for a model of raw values, raw values of any type.

        Returns
        -------
        torch.Tensor
            Floats `[n, channels, size, size]` in 0..1.

        Raises
        ------
        BadInput
            For an image that cannot be read or has another shape, type or range.
        """
        items = list(images) if isinstance(images, list | tuple) else [images]
        if not items:
            raise BadInput("no images to preprocess")
        return torch.cat([self._batch(item) for item in items])

    def _batch(self, item: Any) -> Tensor:
        if self.raw is not None:
            return self._raw_batch(item, self.raw)
        if not isinstance(item, Tensor):
            if hasattr(item, "__array_interface__") and not hasattr(item, "convert"):  # NumPy's, not PIL's
                item = torch.as_tensor(item)
            else:
                from adaptkit.data.sets.image_files import read_picture

                item = read_picture(Path(item) if isinstance(item, str) else item, self.size)
        images = item[None, None] if item.ndim == 2 else item[None] if item.ndim == 3 else item
        if images.ndim != 4 or 0 in images.shape:
            raise BadInput(f"images must have the shape [c, h, w] or [n, c, h, w], got {list(item.shape)}")
        if not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise BadInput(f"images must be uint8 or floats in 0..1, got {str(images.dtype).removeprefix('torch.')}")
        if images.is_floating_point():
            low, high = float(images.min()), float(images.max())
            if not (low >= -1e-3 and high <= 1 + 1e-3):
                raise BadInput(f"float images must be in 0..1, got {low:g} to {high:g}; images in 0..255 must be uint8")
            return self._resized(self._in_channels(images.float()))
        # Round after each step, as for images of data sets that are converted to other channels or another size.
        images = _rounded(self._in_channels(images))
        return _rounded(self._resized(images)).float() / 255

    def _raw_batch(self, item: Any, raw: RawFiles) -> Tensor:
        """Return raw values of one file, picture or array, or of several arrays, as one batch."""
        title = printable_line(str(item)) if isinstance(item, str | Path) else "the image"
        try:
            if isinstance(item, str | Path):
                rasters = [raw.raster(Path(item))]
            elif hasattr(item, "convert"):  # a picture of PIL
                rasters = [Raster(stored_values(item))]
            else:
                values = numpy.asarray(item)
                rasters = [Raster(one) for one in (values if values.ndim == 4 else values[None])]
            images = torch.stack([torch.from_numpy(converted(raw.conversion, raster)[0]) for raster in rasters])
            return self._in_channels(images)
        except UnreadableError as error:
            raise BadInput(f"{title}: {error}") from None
        except BadInput as error:
            raise BadInput(*(f"{title}: {problem}" for problem in error.problems)) from None

    def _in_channels(self, images: Tensor) -> Tensor:
        channels = images.shape[1]
        if channels == self.channels:
            return images
        if (channels, self.channels) == (3, 1):
            return luminance(images.float())
        if channels == 1:
            return images.repeat(1, self.channels, 1, 1)
        raise BadInput(f"images have {counted(channels, 'channel')}, but the model takes {self.channels}")

    def _resized(self, images: Tensor) -> Tensor:
        """Resize the shorter side to the size of the model, and crop the centre of the longer side."""
        height, width = images.shape[-2:]
        short = min(height, width)
        if short != self.size:
            sides = [max(self.size, int(side * self.size / short)) for side in (height, width)]
            # Without antialiasing, a smaller image would only sample some pixels.
            images = interpolate(images.float(), size=sides, mode="bilinear", antialias=short > self.size)
        top, left = (round((side - self.size) / 2) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]


def _rounded(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)


#: maximum number of threads that decode image files
DECODERS = 4


@dataclass(frozen=True)
class Prediction:
    """The classes that a model predicts for one image.

    Attributes
    ----------
    path : pathlib.Path
        The image file.
    ranked : tuple of (str, float)
        The `top_k` most likely classes with their confidence (softmax, in 0..1), the most likely first.
    probabilities : mapping of str to float
        The probability of every class, in the order of the model's logits.

    Examples
    --------
    >>> (prediction,) = adaptkit.predict(run_id, "photos/0.png", top_k=2)
    >>> prediction.label, prediction.confidence
    ('...', 0...)
    >>> len(prediction.probabilities)
    10
    """

    path: Path
    ranked: tuple[tuple[str, float], ...]
    probabilities: Mapping[str, float] = field(hash=False, repr=False)

    @property
    def label(self) -> str:
        """The most likely class."""
        return self.ranked[0][0]

    @property
    def confidence(self) -> float:
        """The confidence in the most likely class."""
        return self.ranked[0][1]


def find_pictures(
    paths: Iterable[Path], suffixes: tuple[str, ...], other: Callable[[Path], None] = lambda path: None
) -> Iterator[Path]:
    """Yield files, and the image files in folders at any depth, sorted by name, without hidden files.

    Calls `other` with each file in a folder whose name has none of the suffixes. Raises BadInput for missing paths
    before it yields the first file.
    """
    named = list(paths)
    if missing := [path for path in named if not path.exists()]:
        raise BadInput(*(f"{path}: there is no such file or folder" for path in missing))
    return _walk(named, suffixes, other)


def _walk(named: Sequence[Path], suffixes: tuple[str, ...], other: Callable[[Path], None]) -> Iterator[Path]:
    for path in named:
        if not path.is_dir():
            yield path
            continue
        seen = set()  # a link may point to a parent folder
        for folder, inner, files in os.walk(path, followlinks=True):
            inner[:] = _kept(inner)
            if (real := os.path.realpath(folder)) in seen:
                inner.clear()
                continue
            seen.add(real)
            for name in _kept(files):
                if is_image_name(name, suffixes):
                    yield Path(folder, name)
                else:
                    other(Path(folder, name))


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
    """Yield a prediction for each image file, in order; call `broken(problem)` for a file that cannot be read.

    Two batches are in memory at a time: one is decoded while the other is classified.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    for names, images in _decoded(preprocessing, paths, batch_size=batch_size, broken=broken):
        with torch.inference_mode():
            by_class = probabilities(model(images.to(device)).float()).cpu()
        best = by_class.argsort(dim=1, descending=True, stable=True)[:, :top_k]
        for path, shares, numbers in zip(names, by_class.tolist(), best.tolist(), strict=True):
            ranked = tuple((classes[number], shares[number]) for number in numbers)
            yield Prediction(path, ranked, dict(zip(classes, shares, strict=True)))


def _decoded(
    preprocessing: Preprocessing, paths: Iterable[Path], batch_size: int, broken: Callable[[str], None]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield batches of images with their paths, and decode the next batch while the caller uses one."""

    def read(path: Path) -> Tensor | str:
        try:
            return preprocessing(path)
        except BadInput as error:
            return str(error)

    with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        left = iter(paths)

        def begin() -> list[tuple[Path, Future[Tensor | str]]]:
            return [(path, pool.submit(read, path)) for path in islice(left, batch_size)]

        try:
            begun = begin()
            while begun:
                waiting, begun = begun, begin()
                good: list[tuple[Path, Tensor]] = []
                for path, future in waiting:
                    decoded = future.result()
                    if isinstance(decoded, str):
                        broken(decoded)
                    else:
                        good.append((path, decoded))
                if good:
                    yield [path for path, _ in good], torch.cat([images for _, images in good])
        finally:
            pool.shutdown(cancel_futures=True)
