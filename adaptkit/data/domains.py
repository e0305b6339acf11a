"""Make the source, the target pool and the two fixed test sets from a data set, a target and shifts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor

from adaptkit.contracts import Corpus, Dataset, Images, Shift, StoredPixels
from adaptkit.data import split as splitting
from adaptkit.data.conform import alike, load_checked, relabelled
from adaptkit.data.duplicates import occurring
from adaptkit.data.stored import LoadedImages, chunks, loaded
from adaptkit.data.views import shifted_views
from adaptkit.errors import BadInput
from adaptkit.seeds import derive_seed

if TYPE_CHECKING:
    from adaptkit.config import SplitSettings

#: images of each class that each part needs: a run draws from at most half of the pool, and tuning divides that
FEWEST = 2
#: bytes of source images that are held in memory; more of them stay stored, and every epoch decodes them anew
SOURCE_BYTES = 1 << 30


@dataclass(frozen=True)
class TestSet:
    """Fixed test images: `pixels` float32 `[n, c, h, w]` in 0..1, `labels` int64 `[n]`, `index` int64 `[n]`.

    `index` is the position in the published data set; official test images are counted on after the training images.
    """

    __test__: ClassVar[bool] = False  # pytest: not a class of tests

    pixels: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Domains:
    """The images of an experiment: the source may be too large for memory, all others are in it.

    Digests are sha256: of all that a base depends on, of the target, and of both.
    """

    classes: tuple[str, ...]
    source: Images
    pool: LoadedImages
    pool_index: Tensor
    clean_test: TestSet
    shifted_test: TestSet
    source_digest: str
    target_digest: str
    fingerprint: str

    @property
    def channels(self) -> int:
        """Return the number of channels of every image."""
        return int(self.source.pixels.shape[1])

    @property
    def size(self) -> int:
        """Return the height, which is the width, of every image in pixels."""
        return int(self.source.pixels.shape[2])


@dataclass(frozen=True)
class _Part:
    """Some of a published data set's images, and their positions in it."""

    images: Images
    index: Tensor


def load_domains(
    dataset: Dataset,
    target: Dataset | None,
    shifts: Sequence[Shift],
    *,
    shift_text: str,
    split: SplitSettings,
    data_dir: Path,
) -> Domains:
    """Return the source, the pool and the test sets; the same settings give the same bits.

    Without a target, pool and shifted test come from the data set itself. The source and the clean test are the same
    with and without a target, whatever the shifts, so that these experiments share a base. Raises BadInput.
    """
    if target is not None and target.name == dataset.name:
        raise BadInput(f"target {target.name} is the source itself; leave the target out and name a shift")
    corpus = load_checked(dataset, data_dir)
    source, pool, clean = _parts(corpus, split, "source", source=split.source, pool=split.pool, test=split.test)
    _require_enough(dataset.name, source=source, pool=pool if target is None else None, test=clean)
    # Only now are stored images decoded: those that were chosen.
    source, clean = _Part(_within_memory(source.images), source.index), _Part(loaded(clean.images), clean.index)
    if target is None:
        pool, shifted = _Part(loaded(pool.images), pool.index), clean
    else:
        foreign = relabelled(load_checked(target, data_dir), target.name, corpus.train.classes, dataset.name)
        _, pool, shifted = _parts(foreign, split, "target", pool=split.pool, test=split.test, avoid=(source, clean))
        _require_enough(target.name, pool=pool, test=shifted)
        pool, shifted = (_Part(alike(part.images, source.images, target.name), part.index) for part in (pool, shifted))
    pool_images = loaded(pool.images)
    clean_test = _test_set(clean, (), 0)
    shifted_test = _test_set(shifted, shifts, derive_seed(split.seed, "shifted test"))
    classes = corpus.train.classes
    source_digest = _digest("source", *classes, source.images.pixels, source.images.labels, *_content(clean_test))
    target_digest = _digest("target", *classes, pool_images.pixels, pool_images.labels, *_content(shifted_test))
    positions = (source.index, pool.index, clean_test.index, shifted_test.index)
    fingerprint = _digest(source_digest, target_digest, shift_text, *positions)
    return Domains(
        classes,
        source.images,
        pool_images,
        pool.index,
        clean_test,
        shifted_test,
        source_digest,
        target_digest,
        fingerprint,
    )


def _within_memory(images: Images) -> Images:
    """Return the source in memory if it fits, else as it is."""
    return loaded(images) if math.prod(images.pixels.shape) <= SOURCE_BYTES else images


def _test_set(part: _Part, shifts: Sequence[Shift], seed: int) -> TestSet:
    images = loaded(part.images)
    return TestSet(shifted_views(images.pixels, shifts, seed), images.labels, part.index)


def _parts(
    corpus: Corpus,
    split: SplitSettings,
    purpose: str,
    *,
    source: int = 0,
    pool: int = 0,
    test: int,
    avoid: Sequence[_Part] = (),
) -> tuple[_Part, _Part, _Part]:
    """Return disjoint source, pool and test; the test comes from the official test images where there are any.

    Pool and test are without the images of the parts to avoid. Images in memory are sorted out before the parts are
    chosen; stored ones afterwards, and not replaced, because for that all of them would have to be decoded.
    """
    train = _unseen(_Part(corpus.train, torch.arange(len(corpus.train))), avoid, stored=False)
    if corpus.test is None:
        first, second, third = splitting.sizes_for(len(train.index), source=source, pool=pool, test=test)
        # In this order, because what is cut later has no say in what is cut first: pools of other sizes share a base.
        tested, trained, pooled = _divide(train, [third, first, second], split, purpose)
    else:
        official = _Part(corpus.test, torch.arange(len(corpus.test)) + len(corpus.train))
        official = _unseen(official, avoid, stored=False)
        first, second, _ = splitting.sizes_for(len(train.index), source=source, pool=pool)
        trained, pooled = _divide(train, [first, second], split, purpose)
        (tested,) = _divide(official, [min(test, len(official.index))], split, f"{purpose} test")
    return trained, _unseen(pooled, avoid, stored=True), _unseen(tested, avoid, stored=True)


def _divide(part: _Part, sizes: Sequence[int], split: SplitSettings, purpose: str) -> list[_Part]:
    generator = Generator().manual_seed(derive_seed(split.seed, f"split/{purpose}"))
    if split.sampling == "random":
        chosen = splitting.random_split(len(part.index), sizes, generator)
    else:
        chosen = splitting.stratified(part.images.labels, sizes, generator)
    return [_Part(part.images.take(indices), part.index[indices]) for indices in chosen]


def _unseen(part: _Part, avoid: Sequence[_Part], *, stored: bool) -> _Part:
    """Return the part without images that those to avoid hold too: mnist5k, for one, is a piece of mnist.

    Do this only to stored images, or only to others.
    """
    pixels = part.images.pixels
    others = [other.images for other in avoid if other.images.pixels.shape[1:] == pixels.shape[1:]]
    if not others or isinstance(pixels, Tensor) is stored:
        return part
    part = _Part(loaded(part.images), part.index)
    seen = occurring(part.images, others)
    return _Part(part.images.take(~seen), part.index[~seen]) if bool(seen.any()) else part


def _require_enough(name: str, **parts: _Part | None) -> None:
    short = []
    for title, part in parts.items():
        if part is None:
            continue
        counts = torch.bincount(part.images.labels, minlength=len(part.images.classes)).tolist()
        short += [
            (label, count, title) for label, count in zip(part.images.classes, counts, strict=True) if count < FEWEST
        ]
    if short:
        shown = ", ".join(f"{count} of class {label!r} in {title}" for label, count, title in short[:5])
        more = f" and {len(short) - 5} more such" if len(short) > 5 else ""
        keys = " and ".join(f"split.{title}" for title in dict.fromkeys(title for *_, title in short))
        raise BadInput(
            f"data set {name}: too few images: {shown}{more}; each part needs {FEWEST} of each class (see {keys})"
        )


def _content(test: TestSet) -> tuple[Tensor, Tensor]:
    return test.pixels, test.labels


def _digest(*things: Tensor | StoredPixels | str) -> str:
    """Return the sha256 of these, in this order; tensors count with their type and shape, stored pixels as tensors."""
    sha = hashlib.sha256()
    for thing in things:
        if isinstance(thing, str):
            text = thing.encode()
            sha.update(b"text %d:" % len(text) + text)
        elif isinstance(thing, Tensor):
            sha.update(f"{thing.dtype} {list(thing.shape)}:".encode())
            sha.update(thing.contiguous().numpy().data)
        else:
            sha.update(f"{torch.uint8} {list(thing.shape)}:".encode())
            for chunk in chunks(thing):
                sha.update(chunk.numpy().data)
    return sha.hexdigest()
