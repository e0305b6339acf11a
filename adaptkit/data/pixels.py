"""Read images that are stored elsewhere: decoded ahead of need by worker processes, the same bits however many."""

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
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from adaptkit.contracts import Corpus, Images, StoredPixels
from adaptkit.data.shifts import luminance
from adaptkit.errors import BadInput, RunFailed

#: fewer images are decoded sooner than workers are started
FEW_IMAGES = 256
#: what a worker decodes at a time: at most so many images, and if they are large fewer
PIECE_IMAGES = 64
PIECE_BYTES = 1 << 20
#: decoded ahead of need by all workers together; they hand over through /dev/shm, where containers have 64 MiB, and
#: each piece is an open file
AHEAD_BYTES = 32 << 20
AHEAD_PIECES = 64
#: images that are checked or counted are held in memory at most so many bytes at a time
CHUNK_BYTES = 16 << 20
#: bytes of one part's images that are held in memory; more of them stay stored, and are decoded whenever they are read
HELD_BYTES = 256 << 20


@dataclass(frozen=True)
class LoadedImages(Images):
    """Images whose pixels are in memory."""

    pixels: Tensor


@dataclass(frozen=True)
class NamedPixels:
    """Stored images that are checked as they are decoded; `title` begins the line that says what is wrong with one."""

    stored: StoredPixels
    shape: tuple[int, int, int, int]
    title: str

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image; raise BadInput if it cannot be read or is not what the shape promises."""
        try:
            image: Any = self.stored[index]
        except Exception as error:
            raise BadInput(f"{self.title} {index} cannot be read ({_reason(error)})") from error
        expected = list(self.shape[1:])
        if isinstance(image, Tensor) and image.dtype == torch.uint8 and list(image.shape) == expected:
            return image
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        found = found.removeprefix("torch.")
        raise BadInput(f"{self.title} {index} must be a tensor uint8 {expected}, as the shape says, not {found}")

    @property
    def names(self) -> Sequence[str] | None:
        """Return what the stored images are called, if they have names."""
        return names_of(self.stored)


def names_of(pixels: Tensor | StoredPixels) -> Sequence[str] | None:
    """Return what the images of a data set are called; None if their index is all that tells them apart."""
    return getattr(pixels, "names", None) if not isinstance(pixels, Tensor) else None


def held(images: Images) -> Images:
    """Return the images in memory if they are few enough to be held there, else as they are."""
    return loaded(images) if math.prod(images.pixels.shape) <= HELD_BYTES else images


def loaded(images: Images) -> LoadedImages:
    """Return the images with their pixels in memory."""
    pixels = images.pixels
    if not isinstance(pixels, Tensor):
        (pixels,) = decoded(pixels, [torch.arange(len(images))])
    return LoadedImages(pixels, images.labels, images.classes)


def chunks(pixels: Tensor | StoredPixels) -> Iterator[Tensor]:
    """Yield all pixels in order, uint8 `[k, c, h, w]`, of which each holds few enough bytes."""
    size = max(1, CHUNK_BYTES // math.prod(pixels.shape[1:]))
    if isinstance(pixels, Tensor):
        yield from pixels.split(size)
    else:
        yield from decoded(pixels, torch.arange(pixels.shape[0]).split(size))


def decoded(pixels: StoredPixels, parts: Sequence[Tensor], *, pinned: bool = False) -> Iterator[Tensor]:
    """Yield the images of each part, uint8 `[k, c, h, w]`: `parts` are int64 indices.

    `pinned` puts them where a CUDA device can fetch them by itself. No global random generator is touched. Raises
    BadInput for an image that cannot be read, RunFailed when a worker process dies.
    """
    image_bytes = math.prod(pixels.shape[1:])
    size = max(1, min(PIECE_IMAGES, PIECE_BYTES // image_bytes))
    workers = worker_count(sum(map(len, parts)), size * image_bytes)
    parallel: dict[str, Any] = {}
    if workers:
        parallel = {
            "num_workers": workers,
            "prefetch_factor": max(1, min(AHEAD_PIECES, AHEAD_BYTES // (size * image_bytes)) // workers),
            "multiprocessing_context": "fork",
            "worker_init_fn": _end_quietly,
        }
    loader: Any = DataLoader(
        _Decoder(pixels),
        batch_sampler=(piece.tolist() for part in parts for piece in part.split(size)),
        collate_fn=_as_it_is,
        generator=torch.Generator(),
        **parallel,
    )
    with _pieces(loader, workers) as pieces:
        for part in parts:
            batch = torch.empty((len(part), *pixels.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
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
    """Iterate over a loader, and end its workers whatever happens; raise RunFailed when one of them dies."""
    pieces: Any = None
    try:
        with _undisturbed() if workers else nullcontext():
            pieces = iter(loader)
        yield pieces
    except BaseException as error:
        if pieces is None:
            # Of an iterator that was only half made nothing is left but what the traceback holds; it ends its workers.
            traceback.clear_frames(error.__traceback__)
        # That a worker has died is told by torch, by the pipe to it, or by the socket on which it hands tensors over.
        told = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        if workers and (told or isinstance(error, OSError | EOFError)):
            raise RunFailed(f"the processes that decode images have failed ({_reason(error)})") from error
        raise
    finally:
        if workers and pieces is not None:
            # Else they would wait until a traceback that holds the iterator is forgotten.
            pieces._shutdown_workers()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Take back torch's handler that raises an error wherever the main thread is when a worker dies.

    That it has died is told all the same, where its piece is missed.
    """
    before = signal.getsignal(signal.SIGCHLD) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def worker_count(images: int, piece_bytes: int) -> int:
    """Return how many processes decode so many images, in pieces of so many bytes: 0 for this one alone."""
    # Only forked processes know the plugins that were loaded from files, and only on Linux forking is safe.
    if images < FEW_IMAGES or sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 0
    from joblib import cpu_count  # type: ignore[import-untyped]

    cores = int(cpu_count())
    return min(cores, max(1, AHEAD_BYTES // piece_bytes)) if cores > 1 else 0


class _Decoder(Dataset[Any]):
    """Decode pieces; an image that cannot be read is told by its line, for an error would come with its traceback."""

    def __init__(self, pixels: StoredPixels) -> None:
        self.pixels = pixels

    def __getitems__(self, indices: list[int]) -> Tensor | str:
        try:
            return torch.stack([self.pixels[index] for index in indices])
        except BadInput as error:
            return str(error)


def _as_it_is(piece: Any) -> Any:
    return piece


def _end_quietly(worker: int) -> None:
    """Let signals, which a terminal sends to all of its processes, end a worker: the main process tells of them."""

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
    """Images of another number of channels or another size than they are kept in, converted one at a time."""

    original: Tensor | StoredPixels
    channels: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the converted images."""
        return int(self.original.shape[0]), self.channels, self.size, self.size

    def __getitem__(self, index: int) -> Tensor:
        """Convert one image."""
        return converted(self.original[index][None], self.channels, self.size)[0]

    @property
    def names(self) -> Sequence[str] | None:
        """Return what the images are called, if they have names."""
        return names_of(self.original)


def alike(images: Images, channels: int, size: int, name: str) -> Images:
    """Return the images of `name` in these channels and this size; raise BadInput where nothing leads there."""
    given, side = images.pixels.shape[1:3]
    if given != channels and (given, channels) not in ((1, 3), (3, 1)):
        raise BadInput(f"{name}: its images have {given} channels, the source's {channels}")
    if (given, side) == (channels, size):
        return images
    lazy = ConvertedPixels(images.pixels, channels, size)
    if not isinstance(images.pixels, Tensor) or math.prod(lazy.shape) > HELD_BYTES:
        return Images(lazy, images.labels, images.classes)
    pixels = torch.cat([converted(chunk, channels, size) for chunk in chunks(images.pixels)])
    return Images(pixels, images.labels, images.classes)


def resized(corpus: Corpus, size: int) -> Corpus:
    """Return the corpus with its images in this size, a side in pixels."""

    def resize(images: Images) -> Images:
        return alike(images, images.pixels.shape[1], size, "")

    return Corpus(resize(corpus.train), None if corpus.test is None else resize(corpus.test), corpus.notices)


def converted(pixels: Tensor, channels: int, size: int) -> Tensor:
    """Return uint8 images `[n, c, h, w]` in these channels and this size.

    Grey images are repeated for each channel, colours become their luminance, sizes are changed bilinearly.
    """
    given, side = pixels.shape[1:3]
    if given != channels:
        pixels = luminance(pixels.float()).round().to(torch.uint8) if channels == 1 else pixels.repeat(1, 3, 1, 1)
    if side != size:
        # Without antialiasing a shrunk image would be a sample of its pixels.
        large = interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=side > size)
        pixels = large.round().clamp(0, 255).to(torch.uint8)
    return pixels
