"""Decide which images go where. Indices come in random order, so that the first images of a part are a mixed lot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy
import torch
from torch import Generator, Tensor

from adaptkit.contracts import Corpus, Images
from adaptkit.data.pixels import chunks, held, loaded, names_of
from adaptkit.data.split_files import Split, SplitPart, positions
from adaptkit.errors import BadInput
from adaptkit.seeds import derive_seed
from adaptkit.settings.settings import SplitSettings

#: how a data set is shared out when the sizes asked for do not fit
SHARES = {"source": 50, "pool": 20, "test": 30}


def sizes_for(total: int, *, source: int = 0, pool: int = 0, test: int = 0) -> tuple[int, int, int]:
    """Return how many of `total` images become source, pool and test.

    Give what is asked for if it fits, else 50 : 20 : 30 among the parts asked for, but no more than asked for.
    """
    asked = {"source": source, "pool": pool, "test": test}
    if sum(asked.values()) <= total:
        return source, pool, test
    whole = sum(share for part, share in SHARES.items() if asked[part])
    source, pool, test = (min(asked[part], total * share // whole) for part, share in SHARES.items())
    return source, pool, test


def random_split(total: int, sizes: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
    """Return disjoint random parts of `range(total)` of these sizes."""
    _require(total, sizes)
    order = torch.randperm(total, generator=generator)
    return _cut(order, sizes)


def stratified(labels: Tensor, sizes: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
    """Return disjoint parts of the images of these sizes, each with every class's share as equal as can be.

    A class's count in a part is within one image of its exact share; but where sizes permit, no class is left out.
    """
    _require(len(labels), sizes)
    order = torch.randperm(len(labels), generator=generator)
    members = _by_class(labels, order)
    table = _shares([len(indices) for indices in members], [*sizes, len(labels) - sum(sizes)])
    pieces = [_cut(indices, [row[column] for row in table]) for column, indices in enumerate(members)]
    parts = [torch.cat([piece[part] for piece in pieces]) if pieces else order for part in range(len(sizes))]
    return tuple(part[torch.randperm(len(part), generator=generator)] for part in parts)


def draw(labels: Tensor, shots: int, sampling: str, generator: Generator) -> Tensor:
    """Return the few-shot draw from a pool with these labels: at most half of the pool.

    `stratified` draws `shots` of each class, or equally fewer where half of the pool is less; a class that has not
    as many gives what it has. `random` draws as many images in all, whatever their classes. With the same generator
    state a draw of fewer shots is part of the draw of more.
    """
    order = torch.randperm(len(labels), generator=generator)
    members = _by_class(labels, order)
    half = len(labels) // 2
    if sampling == "random" or not members:
        return order[: min(shots * len(members), half)]
    each = min(shots, half // len(members))
    drawn = torch.cat([indices[:each] for indices in members])
    return drawn[torch.randperm(len(drawn), generator=generator)]


def _by_class(labels: Tensor, order: Tensor) -> tuple[Tensor, ...]:
    """Return the images of each class that occurs, by rising label, each class in the given order."""
    ordered = labels[order]
    counts: list[int] = ordered.unique(return_counts=True)[1].tolist()
    return order[ordered.argsort(stable=True)].split(counts) if counts else ()


def _cut(indices: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Return consecutive pieces of these sizes."""
    return tuple(indices[stop - size : stop] for stop, size in zip(accumulate(sizes), sizes, strict=True))


def _shares(counts: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Return how many images of each class (columns) go to each part (rows; the last one is what is left over)."""
    total = max(sum(counts), 1)
    table = [[size * count // total for count in counts] for size in sizes]
    left = [count - sum(column) for count, column in zip(counts, zip(*table, strict=True), strict=True)]
    for row, size in zip(table, sizes, strict=True):
        # Largest remainder; but a class that has most images left to place comes first, or they would not fit later.
        wanted = sorted(range(len(counts)), key=lambda c: (-left[c], -(size * counts[c] % total), c))
        for column in wanted[: size - sum(row)]:
            row[column] += 1
            left[column] -= 1
    for row in table[:-1]:
        if sum(row) >= len(counts):
            _include_all(row, table)
    return table


def _include_all(row: list[int], table: list[list[int]]) -> None:
    """Swap an image of every class that this part lacks for one of its commonest, with the part that can spare it."""
    for column in (c for c, count in enumerate(row) if count == 0):
        spare = table[-1] if table[-1][column] else max(table, key=lambda other: other[column])
        common = max(range(len(row)), key=lambda c: row[c])
        if row[common] > 1 and (spare[column] > 1 or spare is table[-1]):
            row[column], spare[column] = 1, spare[column] - 1
            row[common], spare[common] = row[common] - 1, spare[common] + 1


def _require(total: int, sizes: Sequence[int]) -> None:
    if sum(sizes) > total or any(size < 0 for size in sizes):
        raise ValueError(f"cannot take parts of {list(sizes)} from {total} images")


#: images whose keys are computed at a time: few enough to stay in a processor's cache
ROWS = 256


def occurring(images: Images, others: Sequence[Images]) -> Tensor:
    """Return which images `[n]` occur among the others, which have the same channels and size."""
    keys, other_keys = _keys(images), [_keys(other) for other in others]
    likely = numpy.isin(keys, numpy.concatenate(other_keys))
    if likely.any():
        # Equal images have equal keys; whether equal keys are of equal images, only the pixels tell.
        seen = set[bytes]()
        for other, own_keys in zip(others, other_keys, strict=True):
            seen.update(_contents(other, numpy.isin(own_keys, keys[likely])))
        likely[likely] = [content in seen for content in _contents(images, likely)]
    return torch.from_numpy(likely)


def _contents(images: Images, chosen: numpy.ndarray) -> list[bytes]:
    pixels = loaded(images.take(torch.from_numpy(chosen))).pixels
    return [image.tobytes() for image in pixels.numpy()]


def _keys(images: Images) -> numpy.ndarray:
    """Return a uint64 for each image, the same for equal ones and hardly ever for others."""
    width = images.pixels.shape[1:]
    words = -(-int(numpy.prod(width)) // 8)
    weights = numpy.random.Generator(numpy.random.PCG64(0)).integers(2**64, size=words, dtype=numpy.uint64) | 1
    return numpy.concatenate([_mixed(rows, weights) for chunk in chunks(images.pixels) for rows in chunk.split(ROWS)])


def _mixed(rows: Tensor, weights: numpy.ndarray) -> numpy.ndarray:
    padded = numpy.zeros((len(rows), 8 * len(weights)), dtype=numpy.uint8)
    flat = rows.flatten(1).numpy()
    padded[:, : flat.shape[1]] = flat
    mixed = padded.view(numpy.uint64) * weights
    # Without this, high bits would have no say in lower ones.
    mixed ^= mixed >> numpy.uint64(32)
    keys: numpy.ndarray = mixed.sum(axis=1, dtype=numpy.uint64)
    return keys


#: images of each class that each part needs: a run draws from at most half of the pool, and tuning divides that
FEWEST = 2


@dataclass(frozen=True)
class Part:
    """Some of a published data set's images, and their positions in it; test images are counted on after training's."""

    images: Images
    index: Tensor


def source_parts(corpus: Corpus, name: str, settings: SplitSettings, earlier: Split | None, pool: bool) -> list[Part]:
    """Return a source's training images, pool (empty unless wanted) and test images; raise BadInput for too few."""
    titles = ["source", "pool", "clean_test"] if pool else ["source", "clean_test"]
    parts = _recalled(corpus, name, earlier, titles)
    if parts is None:
        found = _parts(corpus, settings, "source", source=settings.source, pool=settings.pool, test=settings.test)
        parts = dict(zip(("source", "pool", "clean_test"), found, strict=True))
    _require_enough(name, corpus, {title: parts[title] for title in titles})
    return [parts.get(title, Part(corpus.train.take(NOTHING), NOTHING)) for title in ("source", "pool", "clean_test")]


def target_parts(
    corpus: Corpus, name: str, settings: SplitSettings, earlier: Split | None, avoid: Sequence[Part]
) -> list[Part]:
    """Return a target's pool and test images, without those of the parts to avoid; raise BadInput for too few."""
    parts = _recalled(corpus, name, earlier, ["pool", "shifted_test"])
    if parts is None:
        _, *found = _parts(corpus, settings, "target", pool=settings.pool, test=settings.test, avoid=avoid)
        parts = dict(zip(("pool", "shifted_test"), found, strict=True))
    _require_enough(name, corpus, parts)
    return [parts["pool"], parts["shifted_test"]]


def split_part(corpus: Corpus, name: str, part: Part) -> SplitPart:
    """Return which images a part holds, by their names where they have any, in the words of a split file."""
    names = _names(corpus)
    members = part.index.tolist()
    return SplitPart(name, tuple(members if names is None else (names[index] for index in members)))


def copies(parts: Mapping[str, Part | None]) -> tuple[str, ...]:
    """Return a line for each test set that holds copies of pictures that are trained on: a user's own folder may.

    Parts that are not in memory are not looked at.
    """
    here = {title: part for title, part in parts.items() if part is not None and isinstance(part.images.pixels, Tensor)}
    pairs = [(test, other) for test in here if "test" in test for other in here if "test" not in other]
    lines = []
    for test, other in pairs:
        count = int(occurring(here[test].images, [here[other].images]).sum()) if len(here[other].index) else 0
        if count:
            lines.append(f"{count} of {len(here[test].index)} images of {test} are in {other} too, pixel for pixel")
    return tuple(lines)


NOTHING = torch.empty(0, dtype=torch.int64)


def _names(corpus: Corpus) -> list[str] | None:
    """Return the names of all images, test images after training images; None where they have none."""
    found = [names_of(images.pixels) for images in (corpus.train, corpus.test) if images is not None]
    return None if any(names is None for names in found) else [name for names in found for name in names or ()]


def _recalled(corpus: Corpus, name: str, earlier: Split | None, titles: Sequence[str]) -> dict[str, Part] | None:
    """Return the parts as an earlier split has them."""
    if earlier is None:
        return None
    names = _names(corpus)
    count = len(corpus.train) + (0 if corpus.test is None else len(corpus.test))
    parts = {}
    for title in titles:
        part = earlier.part(title)
        if names is None and part.dataset != name:
            raise BadInput(f"split.file: its {title} is of {part.dataset}, not of {name}")
        index = torch.tensor(positions(part, names if names is not None else range(count), name), dtype=torch.int64)
        parts[title] = Part(_taken(corpus, index), index)
    return parts


def _taken(corpus: Corpus, index: Tensor) -> Images:
    """Return images by their positions, which lie all in the training images or all in the official test images."""
    before = len(corpus.train)
    if corpus.test is not None and bool((index >= before).all()):
        return corpus.test.take(index - before)
    if bool((index >= before).any()):
        raise BadInput("split.file: a part of it holds both training images and official test images")
    return corpus.train.take(index)


def _parts(
    corpus: Corpus,
    split: SplitSettings,
    purpose: str,
    *,
    source: int | None = 0,
    pool: int | None = 0,
    test: int | None = 0,
    avoid: Sequence[Part] = (),
) -> tuple[Part, Part, Part]:
    """Return disjoint source, pool and test; the test comes from the official test images where there are any.

    Pool and test are without the images of the parts to avoid. Images in memory are sorted out before the parts are
    chosen; stored ones afterwards, and not replaced, because for that all of them would have to be decoded.
    """
    source, pool, test = source or 0, pool or 0, test or 0
    train = _unseen(Part(corpus.train, torch.arange(len(corpus.train))), avoid, stored=False)
    if corpus.test is None:
        first, second, third = sizes_for(len(train.index), source=source, pool=pool, test=test)
        # In this order, because what is cut later has no say in what is cut first: pools of other sizes share a base.
        tested, trained, pooled = _divide(train, [third, first, second], split, purpose)
    else:
        official = Part(corpus.test, torch.arange(len(corpus.test)) + len(corpus.train))
        official = _unseen(official, avoid, stored=False)
        first, second, _ = sizes_for(len(train.index), source=source, pool=pool)
        trained, pooled = _divide(train, [first, second], split, purpose)
        (tested,) = _divide(official, [min(test, len(official.index))], split, f"{purpose} test")
    return trained, _unseen(pooled, avoid, stored=True), _unseen(tested, avoid, stored=True)


def _divide(part: Part, sizes: Sequence[int], split: SplitSettings, purpose: str) -> list[Part]:
    generator = Generator().manual_seed(derive_seed(split.seed, f"split/{purpose}"))
    if split.sampling == "random":
        chosen = random_split(len(part.index), sizes, generator)
    else:
        chosen = stratified(part.images.labels, sizes, generator)
    return [Part(part.images.take(indices), part.index[indices]) for indices in chosen]


def _unseen(part: Part, avoid: Sequence[Part], *, stored: bool) -> Part:
    """Return the part without images that those to avoid hold too: mnist5k, for one, is a piece of mnist.

    Do this only to stored images, or only to others.
    """
    pixels = part.images.pixels
    others = [other.images for other in avoid if other.images.pixels.shape[1:] == pixels.shape[1:]]
    if not others or isinstance(pixels, Tensor) is stored:
        return part
    part = Part(held(part.images), part.index)
    seen = occurring(part.images, others)
    return Part(part.images.take(~seen), part.index[~seen]) if bool(seen.any()) else part


def _require_enough(name: str, corpus: Corpus, parts: Mapping[str, Part]) -> None:
    """Raise BadInput unless each part has enough images of each class."""
    shown = {"clean_test": "test", "shifted_test": "test"}
    counts = {title: _counts(part.images) for title, part in parts.items()}
    short = [
        (label, count, shown.get(title, title))
        for title, found in counts.items()
        for label, count in zip(corpus.train.classes, found, strict=True)
        if count < FEWEST
    ]
    if not short:
        return
    # Without official test images all parts are cut from the same ones.
    needed = FEWEST * (len(parts) if corpus.test is None else len(parts) - 1)
    rare = [
        f"{'1 image' if count == 1 else f'{count} images'} of class {label!r}"
        for label, count in zip(corpus.train.classes, _counts(corpus.train), strict=True)
        if count < needed
    ]
    if rare:
        titles = [shown.get(title, title) for title in parts]
        raise BadInput(
            f"data set {name}: too few images: {_listed(rare)}; a class needs {needed}, {FEWEST} of them for each of "
            f"{', '.join(titles[:-1])} and {titles[-1]}"
        )
    missing = [f"{count} of class {label!r} in {title}" for label, count, title in short]
    keys = " and ".join(f"split.{title}" for title in dict.fromkeys(title for *_, title in short))
    raise BadInput(
        f"data set {name}: too few images: {_listed(missing)}; each part needs {FEWEST} of each class (see {keys})"
    )


def _listed(things: Sequence[str]) -> str:
    return ", ".join(things[:5]) + (f" and {len(things) - 5} more such" if len(things) > 5 else "")


def _counts(images: Images) -> list[int]:
    found: list[int] = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    return found
