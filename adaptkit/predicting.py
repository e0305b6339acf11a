"""Name what is on pictures, a batch at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptkit.data.class_folders import LITTER
from adaptkit.errors import BadInput
from adaptkit.preprocessing import Preprocessing

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
    return sorted(name for name in names if not name.startswith(".") and name.lower() not in LITTER)


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
            confidence, chosen = model(images.to(device)).float().softmax(1).cpu().topk(count)
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
