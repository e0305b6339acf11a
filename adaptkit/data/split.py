"""Divide the images of a data set into source, pool and test, and draw few-shot training images from the pool.

Indices are in random order, so that the first images of a part are of several classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Generator, Tensor

from adaptkit.contracts import Corpus, Images
from adaptkit.data.duplicates import equal_images, named
from adaptkit.data.pixels import held, joined, names_of
from adaptkit.data.split_files import Split, SplitPart, positions
from adaptkit.errors import BadInput
from adaptkit.seeds import derive_seed
from adaptkit.settings.settings import SplitSettings

#: names of protocols that use all images; `adaptkit.data.protocols` describes them
FOLDS, GIVEN = "folds", "given"
#: percentages of the parts if a data set is too small for the requested sizes
SHARES = {"source": 50, "pool": 20, "test": 30}


def sizes_for(total: int, *, source: int = 0, pool: int = 0, test: int = 0) -> tuple[int, int, int]:
    """Return the numbers of images of source, pool and test set for `total` images.

    If the requested sizes do not fit, the images are divided 50 : 20 : 30, but no part is larger than requested.
    """
    requested = {"source": source, "pool": pool, "test": test}
    if sum(requested.values()) <= total:
        return source, pool, test
    whole = sum(share for part, share in SHARES.items() if requested[part])
    source, pool, test = (min(requested[part], total * share // whole) for part, share in SHARES.items())
    return source, pool, test


def random_split(total: int, sizes: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
    """Return disjoint random parts of `range(total)` of these sizes."""
    _require(total, sizes)
    order = torch.randperm(total, generator=generator)
    return _cut(order, sizes)


def stratified(labels: Tensor, sizes: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
    """Return disjoint parts of these sizes in which each class has its share of the images.

    The number of images of a class in a part differs from its exact share by less than one. If the size permits, each
    part has at least one image of every class.
    """
    _require(len(labels), sizes)
    order = torch.randperm(len(labels), generator=generator)
    members = _by_class(labels, order)
    table = _shares([len(indices) for indices in members], [*sizes, len(labels) - sum(sizes)])
    pieces = [_cut(indices, [row[column] for row in table]) for column, indices in enumerate(members)]
    parts = [torch.cat([piece[part] for piece in pieces]) if pieces else order for part in range(len(sizes))]
    return tuple(part[torch.randperm(len(part), generator=generator)] for part in parts)


def draw(labels: Tensor, shots: int, sampling: str, generator: Generator) -> Tensor:
    """Return the indices of a few-shot draw from a pool with these labels: at most half of the pool.

    `stratified` draws `shots` images of each class, or fewer of each class if half of the pool is not enough. From a
    class with fewer images, all are drawn. `random` draws the same total number from all classes together. With the
    same generator state, a draw with fewer shots is part of a draw with more shots.
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
    """Return the indices of the images of each class, in the sequence of `order`."""
    ordered = labels[order]
    counts: list[int] = ordered.unique(return_counts=True)[1].tolist()
    return order[ordered.argsort(stable=True)].split(counts) if counts else ()


def _cut(indices: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Return consecutive pieces of these sizes."""
    return tuple(indices[stop - size : stop] for stop, size in zip(accumulate(sizes), sizes, strict=True))


def _shares(counts: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Return the number of images of each class (column) in each part (row); the last row is the remainder."""
    total = max(sum(counts), 1)
    table = [[size * count // total for count in counts] for size in sizes]
    left = [count - sum(column) for count, column in zip(counts, zip(*table, strict=True), strict=True)]
    for row, size in zip(table, sizes, strict=True):
        # Largest remainder method; classes with more unassigned images come first, so that all can be assigned.
        wanted = sorted(range(len(counts)), key=lambda c: (-left[c], -(size * counts[c] % total), c))
        for column in wanted[: size - sum(row)]:
            row[column] += 1
            left[column] -= 1
    for row in table[:-1]:
        if sum(row) >= len(counts):
            _include_all(row, table)
    return table


def _include_all(row: list[int], table: list[list[int]]) -> None:
    """Add one image of each missing class to the part, in exchange for an image of its most frequent class."""
    for column in (c for c, count in enumerate(row) if count == 0):
        spare = table[-1] if table[-1][column] else max(table, key=lambda other: other[column])
        common = max(range(len(row)), key=lambda c: row[c])
        if row[common] > 1 and (spare[column] > 1 or spare is table[-1]):
            row[column], spare[column] = 1, spare[column] - 1
            row[common], spare[common] = row[common] - 1, spare[common] + 1


def _require(total: int, sizes: Sequence[int]) -> None:
    if sum(sizes) > total or any(size < 0 for size in sizes):
        raise ValueError(f"cannot take parts of {list(sizes)} from {total} images")


#: minimum number of images of each class in each part, because a run draws at most half of the pool
FEWEST = 2


@dataclass(frozen=True)
class Part:
    """Images of a data set with their positions; positions of official test images follow the training images."""

    images: Images
    index: Tensor


def source_parts(
    corpus: Corpus, name: str, settings: SplitSettings, *, earlier: Split | None, pool: bool, is_old: bool = False
) -> list[Part]:
    """Return training, pool (empty if `pool` is False) and test images of a source; raise BadInput if too few.

    Without a pool, its images train the base, except in runs of adaptkit 0.1 (`is_old`), which left them out.
    """
    titles = ["source", "pool", "clean_test"] if pool else ["source", "clean_test"]
    parts = _parts_of_split(corpus, name, earlier=earlier, titles=titles)
    if parts is None:
        pooled = settings.pool if pool or is_old else 0
        chosen = _parts(corpus, settings, "source", source=settings.source, pool=pooled, test=settings.test)
        parts = dict(zip(("source", "pool", "clean_test"), chosen, strict=True))
    _require_enough(name, corpus, {title: parts[title] for title in titles})
    return [parts.get(title, Part(corpus.train.take(NOTHING), NOTHING)) for title in ("source", "pool", "clean_test")]


def target_parts(
    corpus: Corpus,
    name: str,
    settings: SplitSettings,
    *,
    earlier: Split | None,
    source: str,
    avoid: Sequence[Part],
    protocol: str,
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Return pool and test images of a target, and notices about images that are left out; raise BadInput if too few.

    Images that also occur in `avoid`, parts of the data set `source`, are left out. With the protocol `folds` there is
    only a pool. It and the parts of `given` have all images, unless the settings limit them.
    """
    titles = ["pool"] if protocol == FOLDS else ["pool", "shifted_test"]
    parts = _parts_of_split(corpus, name, earlier=earlier, titles=titles)
    notices: tuple[str, ...] = ()
    if parts is None:
        copies = _Copies(avoid)
        if protocol in (FOLDS, GIVEN):
            parts = _whole_parts(corpus, settings, protocol=protocol, copies=copies)
        else:
            _, *chosen = _parts(corpus, settings, "target", pool=settings.pool, test=settings.test, copies=copies)
            parts = dict(zip(titles, chosen, strict=True))
        remaining = sum(len(part.index) for part in parts.values())
        notices = copies.notices(name, source, remaining, _names(corpus))
    # Folds are checked when they are made.
    fewest = {FOLDS: 0, GIVEN: 1}.get(protocol, FEWEST)
    _require_enough(name, corpus, parts, notices, fewest=fewest)
    return parts, notices


def _whole_parts(corpus: Corpus, settings: SplitSettings, *, protocol: str, copies: _Copies) -> dict[str, Part]:
    """Return all images of a target: as one pool for folds, or as a pool and its own test images."""
    count = len(corpus.train)
    parts = {"pool": Part(corpus.train, torch.arange(count))}
    if corpus.test is not None:
        if protocol == GIVEN:
            parts["shifted_test"] = Part(corpus.test, torch.arange(len(corpus.test)) + count)
        else:
            parts["pool"] = Part(joined(corpus.train, corpus.test), torch.arange(count + len(corpus.test)))
    chosen = {}
    for title, part in parts.items():
        part = copies.excluded(copies.excluded(part, stored=False), stored=True)
        limit = settings.pool if title == "pool" else settings.test
        size = min(limit or len(part.index), len(part.index))
        (chosen[title],) = _divide(part, [size], split=settings, purpose=f"all {title}")
    return chosen


def split_part(corpus: Corpus, name: str, part: Part) -> SplitPart:
    """Return the images of a part for a split file, by name if they have names, otherwise by index."""
    names = _names(corpus)
    members = part.index.tolist()
    return SplitPart(name, tuple(members if names is None else (names[index] for index in members)))


NOTHING = torch.empty(0, dtype=torch.int64)


def _names(corpus: Corpus) -> list[str] | None:
    """Return the names of all images, test images after training images; None if images have no names."""
    by_part = [names_of(images.pixels) for images in (corpus.train, corpus.test) if images is not None]
    return None if any(names is None for names in by_part) else [name for names in by_part for name in names or ()]


def _parts_of_split(
    corpus: Corpus, name: str, *, earlier: Split | None, titles: Sequence[str]
) -> dict[str, Part] | None:
    """Return the parts of an earlier split; None if there is none."""
    if earlier is None:
        return None
    names = _names(corpus)
    count = len(corpus.train) + (0 if corpus.test is None else len(corpus.test))
    parts = {}
    if list(titles) == ["pool"] and corpus.test is not None:
        corpus = Corpus(joined(corpus.train, corpus.test))
    for title in titles:
        part = earlier.part(title)
        if names is None and part.dataset != name:
            raise BadInput(f"split.file: its {title} has images of {part.dataset}, not of {name}")
        if names is None and earlier.classes != corpus.train.classes:  # its indices are those of other images
            raise BadInput(
                f"split.file: it has the classes {_listed(earlier.classes)}; set the same ones with --classes"
            )
        index = torch.tensor(positions(part, names if names is not None else range(count), name), dtype=torch.int64)
        parts[title] = Part(_taken(corpus, index), index)
    return parts


def _taken(corpus: Corpus, index: Tensor) -> Images:
    """Return images by position; all must be training images or all official test images."""
    before = len(corpus.train)
    if corpus.test is not None and bool((index >= before).all()):
        return corpus.test.take(index - before)
    if bool((index >= before).any()):
        raise BadInput("split.file: one of its parts has both training images and official test images")
    return corpus.train.take(index)


def _parts(
    corpus: Corpus,
    split: SplitSettings,
    purpose: str,
    *,
    source: int | None = 0,
    pool: int | None = 0,
    test: int | None = 0,
    copies: _Copies | None = None,
) -> tuple[Part, Part, Part]:
    """Return disjoint source, pool and test set; the test set is from the official test images if there are any.

    Pool and test set exclude `copies`. Images in memory are excluded before the parts are chosen. Stored images are
    excluded afterwards and not replaced, to avoid decoding all of them.
    """
    source, pool, test = source or 0, pool or 0, test or 0
    copies = copies or _Copies(())
    train = copies.excluded(Part(corpus.train, torch.arange(len(corpus.train))), stored=False)
    if corpus.test is None:
        first, second, third = sizes_for(len(train.index), source=source, pool=pool, test=test)
        # The pool comes last, so that its size does not change the test set and the source, and the base can be shared.
        tested, trained, pooled = _divide(train, [third, first, second], split=split, purpose=purpose)
    else:
        official = Part(corpus.test, torch.arange(len(corpus.test)) + len(corpus.train))
        official = copies.excluded(official, stored=False)
        first, second, _ = sizes_for(len(train.index), source=source, pool=pool)
        trained, pooled = _divide(train, [first, second], split=split, purpose=purpose)
        (tested,) = _divide(official, [min(test, len(official.index))], split=split, purpose=f"{purpose} test")
    return trained, copies.excluded(pooled, stored=True), copies.excluded(tested, stored=True)


def _divide(part: Part, sizes: Sequence[int], *, split: SplitSettings, purpose: str) -> list[Part]:
    generator = Generator().manual_seed(derive_seed(split.seed, f"split/{purpose}"))
    if split.sampling == "random":
        chosen = random_split(len(part.index), sizes, generator)
    else:
        chosen = stratified(part.images.labels, sizes, generator)
    return [Part(part.images.take(indices), part.index[indices]) for indices in chosen]


@dataclass(frozen=True)
class _Copies:
    """Exclude images that also occur in the parts of another data set. For example, mnist contains mnist5k."""

    others: Sequence[Part]
    #: positions of excluded images; `relabelled` have another label in the other data set
    positions: list[int] = field(default_factory=list)
    relabelled: list[int] = field(default_factory=list)

    def excluded(self, part: Part, *, stored: bool) -> Part:
        """Return the part without copies.

        If `stored` is True, only stored images are checked, otherwise only images in memory.
        """
        pixels = part.images.pixels
        others = [other.images for other in self.others if other.images.pixels.shape[1:] == pixels.shape[1:]]
        if not others or isinstance(pixels, Tensor) is stored:
            return part
        part = Part(held(part.images), part.index)
        compared = [part.images, *others]
        kept = torch.ones(len(part.index), dtype=torch.bool)
        for group in equal_images(compared):
            labels = {int(compared[place].labels[index]) for place, index in group if place > 0}
            for index in (index for place, index in group if place == 0 and labels):
                kept[index] = False
                self.positions.append(int(part.index[index]))
                if int(part.images.labels[index]) not in labels:
                    self.relabelled.append(int(part.index[index]))
        return Part(part.images.take(kept), part.index[kept]) if not bool(kept.all()) else part

    def notices(self, name: str, source: str, remaining: int, names: Sequence[str] | None) -> tuple[str, ...]:
        """Return notices about the excluded images of data set `name`, whose images have these names, if any."""

        def examples(positions: Sequence[int]) -> str:
            return named([position if names is None else names[position] for position in positions])

        if not self.positions:
            return ()
        is_one = len(self.positions) == 1
        what = "image is left out (exact copy of an image" if is_one else "images are left out (exact copies of images"
        count = f"{len(self.positions)} {what} of {source})"
        lines = [f"{name}: {count}, {remaining} remain: {examples(self.positions)}"]
        if self.relabelled:
            have = f"{len(self.relabelled)} of these {'has' if len(self.relabelled) == 1 else 'have'}"
            lines.append(f"{name}: {have} another label in {source}: {examples(self.relabelled)}")
        return tuple(lines)


def _require_enough(
    name: str, corpus: Corpus, parts: Mapping[str, Part], reasons: Sequence[str] = (), *, fewest: int = FEWEST
) -> None:
    """Raise BadInput if a part has too few images of a class."""
    shown = {"clean_test": "test", "shifted_test": "test"}
    counts = {title: _counts(part.images) for title, part in parts.items()}
    short = [
        (label, count, shown.get(title, title))
        for title, class_counts in counts.items()
        for label, count in zip(corpus.train.classes, class_counts, strict=True)
        if count < fewest
    ]
    if not short:
        return
    # Without official test images, all parts come from the training images.
    titles = [shown.get(title, title) for title in parts if corpus.test is None or title not in shown]
    needed = fewest * len(titles)
    rare = [
        f"{'1 image' if count == 1 else f'{count} images'} of class {label!r}"
        for label, count in zip(corpus.train.classes, _counts(corpus.train), strict=True)
        if count < needed
    ]
    if rare:
        purpose = f"{', '.join(titles[:-1])} and {titles[-1]}" if len(titles) > 1 else titles[0]
        each = f"{needed}, {fewest} of them for each of {purpose}" if len(titles) > 1 else f"{needed} for {purpose}"
        where = "" if corpus.test is None else " next to its test images"
        raise BadInput(
            f"data set {name}: too few images: {_listed(rare)}{where}; a class needs {each}",
            *reasons,
        )
    missing = [f"{count} of class {label!r} in {title}" for label, count, title in short]
    keys = " and ".join(f"split.{title}" for title in dict.fromkeys(title for *_, title in short))
    raise BadInput(
        f"data set {name}: too few images: {_listed(missing)}; each part needs {fewest} of each class (see {keys})",
        *reasons,
    )


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _counts(images: Images) -> list[int]:
    counts: list[int] = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    return counts
