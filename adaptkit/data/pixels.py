"""Decode stored images in worker processes ahead of use, and convert images to other channels and sizes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from adaptkit.contracts import Corpus, Images, StoredPixels
from adaptkit.data.shifts import luminance
from adaptkit.errors import BadInput, RunFailed

#: minimum number of images for decoding in workers; for fewer images, starting workers takes longer than decoding
FEW_IMAGES = 256
#: limits for the images that a worker decodes at a time
PIECE_IMAGES = 64
PIECE_BYTES = 1 << 20
#: limits for images that all workers together decode in advance: /dev/shm has 64 MiB in containers, and each piece is
#: an open file
AHEAD_BYTES = 32 << 20
AHEAD_PIECES = 64
#: bytes of images in memory at a time while images are checked or hashed
CHUNK_BYTES = 16 << 20
#: maximum bytes of a part whose images are kept in memory; larger parts are decoded at each access
HELD_BYTES = 256 << 20


def dtype_of(pixels: Tensor | StoredPixels) -> torch.dtype:
    """Return the type of images: uint8, or float32 for values in 0..1."""
    dtype: torch.dtype = getattr(pixels, "dtype", torch.uint8)
    return dtype


def size_of(pixels: Tensor | StoredPixels) -> int:
    """Return the number of bytes of all images in memory."""
    return pixels.shape[0] * image_bytes(pixels)


def image_bytes(pixels: Tensor | StoredPixels) -> int:
    """Return the number of bytes of one image in memory."""
    return math.prod(pixels.shape[1:]) * dtype_of(pixels).itemsize


def as_floats(images: Tensor) -> Tensor:
    """Return images as float32 in 0..1."""
    return images if images.dtype == torch.float32 else images.to(torch.float32) / 255


@dataclass(frozen=True)
class LoadedImages(Images):
    """Images whose pixels are in memory."""

    pixels: Tensor


@dataclass(frozen=True)
class NamedPixels:
    """Stored images that are checked when they are decoded; error messages begin with `title`."""

    stored: StoredPixels
    shape: tuple[int, int, int, int]
    title: str

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image; raise BadInput if it cannot be read or does not have the declared shape."""
        try:
            image: Any = self.stored[index]
        except Exception as error:
            raise BadInput(f"{self.title} {index} cannot be read ({_reason(error)})") from error
        expected, dtype = list(self.shape[1:]), dtype_of(self.stored)
        if isinstance(image, Tensor) and image.dtype == dtype and list(image.shape) == expected:
            if dtype == torch.float32 and (fault := range_fault(image)):
                raise BadInput(f"{self.title} {index}: {fault}")
            return image
        actual = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        actual = actual.removeprefix("torch.")
        kind = str(dtype).removeprefix("torch.")
        raise BadInput(f"{self.title} {index} must be a {kind} tensor of shape {expected}, not {actual}")

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the images."""
        return dtype_of(self.stored)

    @property
    def names(self) -> Sequence[str] | None:
        """Return the names of the stored images, if they have names."""
        return names_of(self.stored)


def range_fault(images: Tensor) -> str:
    """Describe what is wrong with the values of float images; an empty string for values in 0..1."""
    low, high = float(images.min()), float(images.max())
    return "" if low >= 0 and high <= 1 else f"float pixels must be in 0..1, not {low:g} to {high:g}"


def names_of(pixels: Tensor | StoredPixels) -> Sequence[str] | None:
    """Return the names of the images of a data set; None if they only have indices."""
    return getattr(pixels, "names", None) if not isinstance(pixels, Tensor) else None


def held(images: Images) -> Images:
    """Load the images into memory if they are small enough."""
    return loaded(images) if size_of(images.pixels) <= HELD_BYTES else images


def loaded(images: Images) -> LoadedImages:
    """Return the images with their pixels in memory."""
    pixels = images.pixels
    if not isinstance(pixels, Tensor):
        (pixels,) = decoded(pixels, [torch.arange(len(images))])
    return LoadedImages(pixels, images.labels, images.classes, ids=images.ids, columns=images.columns)


@dataclass(frozen=True)
class JoinedPixels:
    """The images of two sets, one set after the other."""

    first: StoredPixels
    second: StoredPixels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the number of images, their channels, height and width."""
        count, channels, height, width = self.first.shape
        return count + self.second.shape[0], channels, height, width

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image."""
        count = self.first.shape[0]
        return self.first[index] if index < count else self.second[index - count]

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the images."""
        return dtype_of(self.first)

    @property
    def names(self) -> Sequence[str] | None:
        """Return the names of the images, if both sets have names."""
        first, second = names_of(self.first), names_of(self.second)
        return None if first is None or second is None else [*first, *second]


def joined(first: Images, second: Images) -> Images:
    """Return the images of two parts of a data set; columns that only one part has are left out."""
    pixels: Tensor | StoredPixels
    if isinstance(first.pixels, Tensor) and isinstance(second.pixels, Tensor):
        pixels = torch.cat([first.pixels, second.pixels])
    else:
        pixels = JoinedPixels(*(images.pixels for images in (first, second)))  # type: ignore[arg-type]
    shared = first.columns.keys() & second.columns.keys()
    return Images(
        pixels,
        torch.cat([first.labels, second.labels]),
        first.classes,
        ids=None if first.ids is None or second.ids is None else first.ids + second.ids,
        columns={name: first.columns[name] + second.columns[name] for name in first.columns if name in shared},
    )


def chunks(pixels: Tensor | StoredPixels) -> Iterator[Tensor]:
    """Yield all pixels in order as chunks `[k, c, h, w]` of limited size."""
    size = max(1, CHUNK_BYTES // image_bytes(pixels))
    if isinstance(pixels, Tensor):
        yield from pixels.split(size)
    else:
        yield from decoded(pixels, torch.arange(pixels.shape[0]).split(size))


def channel_statistics(pixels: Tensor | StoredPixels) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each channel over all pixels, in 0..1.

    A channel of one value has the standard deviation 1.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks(pixels):
        values = chunk.double() / (255 if chunk.dtype == torch.uint8 else 1)
        count += values.numel() // values.shape[1]
        total = total + values.sum((0, 2, 3))
        squares = squares + values.square().sum((0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float()


def decoded(pixels: StoredPixels, parts: Sequence[Tensor], *, pinned: bool = False) -> Iterator[Tensor]:
    """Yield the images of each part `[k, c, h, w]`: `parts` are int64 indices.

    `pinned` allocates page-locked memory for fast copies to a CUDA device. Global random generators are not changed.
    Raises BadInput for an image that cannot be read, RunFailed if a worker process dies.
    """
    size = max(1, min(PIECE_IMAGES, PIECE_BYTES // image_bytes(pixels)))
    piece_bytes = size * image_bytes(pixels)
    workers = worker_count(sum(map(len, parts)), piece_bytes)
    parallel: dict[str, Any] = {}
    if workers:
        parallel = {
            "num_workers": workers,
            "prefetch_factor": max(1, min(AHEAD_PIECES, AHEAD_BYTES // piece_bytes) // workers),
            "multiprocessing_context": "fork",
            "worker_init_fn": _end_quietly,
        }
    loader: Any = DataLoader(
        _Decoder(pixels),
        batch_sampler=(piece.tolist() for part in parts for piece in part.split(size)),
        collate_fn=_unchanged,
        generator=torch.Generator(),
        **parallel,
    )
    with _pieces(loader, workers) as pieces:
        for part in parts:
            batch = torch.empty((len(part), *pixels.shape[1:]), dtype=dtype_of(pixels), pin_memory=pinned)
            filled = 0
            while filled < len(part):
                piece = next(pieces)
                if isinstance(piece, str):
                    raise BadInput(piece)
                batch[filled : filled + len(piece)] = piece
                filled += len(piece)
            yield batch


@contextmanager
def _pieces(loader: Any, workers: int) -> Iterator[Any]:
    """Iterate over a loader and always stop its workers; raise RunFailed if one of them dies."""
    pieces: Any = None
    try:
        with _without_child_signals() if workers else nullcontext():
            pieces = iter(loader)
        yield pieces
    except BaseException as error:
        if pieces is None:
            # Only the traceback references the incomplete iterator. Clear it, so that the workers of the iterator stop.
            traceback.clear_frames(error.__traceback__)
        # If a worker dies, torch, its pipe, or the socket for tensors raises an error.
        is_worker_error = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        if workers and (is_worker_error or isinstance(error, OSError | EOFError)):
            raise RunFailed(f"the processes that decode images failed ({_reason(error)})") from error
        raise
    finally:
        if workers and pieces is not None:
            # Stop the workers now, because a traceback may keep a reference to the iterator.
            pieces._shutdown_workers()


@contextmanager
def _without_child_signals() -> Iterator[None]:
    """Restore the signal handler that torch replaces during the block.

    If a worker dies, torch's handler raises an error at an arbitrary place of the main thread. It is not needed,
    because a dead worker is detected when its images are missing.
    """
    before = signal.getsignal(signal.SIGCHLD) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def worker_count(images: int, piece_bytes: int) -> int:
    """Return the number of worker processes for this number of images; 0 means to decode in this process."""
    # Workers are forked, because they need plugins that were loaded from files. Forking is only safe on Linux.
    if images < FEW_IMAGES or sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 0
    from joblib import cpu_count  # type: ignore[import-untyped]

    cores = int(cpu_count())
    return min(cores, max(1, AHEAD_BYTES // piece_bytes)) if cores > 1 else 0


class _Decoder(Dataset[Any]):
    """Decode pieces. For an image that cannot be read, return the message, because errors would contain tracebacks."""

    def __init__(self, pixels: StoredPixels) -> None:
        self.pixels = pixels

    def __getitems__(self, indices: list[int]) -> Tensor | str:
        try:
            return torch.stack([self.pixels[index] for index in indices])
        except BadInput as error:
            return str(error)


def _unchanged(piece: Any) -> Any:
    return piece


def _end_quietly(worker: int) -> None:
    """End a worker quietly on signals from the terminal, because the main process also receives and reports them."""

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError | BadInput) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class ConvertedPixels:
    """Images that are converted to another number of channels or another size on access, one at a time."""

    original: Tensor | StoredPixels
    channels: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the converted images."""
        return int(self.original.shape[0]), self.channels, self.size, self.size

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the images."""
        return dtype_of(self.original)

    def __getitem__(self, index: int) -> Tensor:
        """Convert one image."""
        return converted(self.original[index][None], self.channels, self.size)[0]

    @property
    def names(self) -> Sequence[str] | None:
        """Return the names of the images, if they have names."""
        return names_of(self.original)


def alike(images: Images, *, channels: int, size: int, name: str = "") -> Images:
    """Convert images to these channels and this size; raise BadInput if the channels cannot be converted."""
    actual, side = images.pixels.shape[1:3]
    if actual != channels and (actual, channels) not in ((1, 3), (3, 1)):
        raise BadInput(
            f"{name}: its images have {actual} channel{'s' * (actual != 1)}, but those of the source have {channels}"
        )
    if (actual, side) == (channels, size):
        return images
    lazy = ConvertedPixels(images.pixels, channels, size)
    if not isinstance(images.pixels, Tensor) or size_of(lazy) > HELD_BYTES:
        return replace(images, pixels=lazy)
    pixels = torch.cat([converted(chunk, channels, size) for chunk in chunks(images.pixels)])
    return replace(images, pixels=pixels)


def resized(corpus: Corpus, size: int) -> Corpus:
    """Return the corpus with its images resized to this side in pixels."""

    def resize(images: Images) -> Images:
        return alike(images, channels=images.pixels.shape[1], size=size)

    return replace(corpus, train=resize(corpus.train), test=None if corpus.test is None else resize(corpus.test))


def converted(pixels: Tensor, channels: int, size: int) -> Tensor:
    """Return images `[n, c, h, w]` of uint8, or of float32 in 0..1, with these channels and this size.

    Grey images are repeated for each channel. Colour images are converted to their luminance. Resizing is bilinear.
    """
    actual, side = pixels.shape[1:3]
    is_bytes = pixels.dtype == torch.uint8
    if actual != channels:
        pixels = luminance(pixels.float()) if channels == 1 else pixels.repeat(1, 3, 1, 1)
        pixels = pixels.round().to(torch.uint8) if is_bytes else pixels
    if side != size:
        # Without antialiasing, a reduced image would only sample some pixels.
        large = interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=side > size)
        pixels = large.round().clamp(0, 255).to(torch.uint8) if is_bytes else large.clamp(0, 1)
    return pixels
