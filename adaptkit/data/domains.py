"""Build the source, the target pool and the two fixed test sets from a data set, a target and shifts."""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from adaptkit.contracts import Corpus, Dataset, Images, Reading, Shift, StoredPixels
from adaptkit.data.columns import GROUP, common_groups, divided_groups, grouped_by
from adaptkit.data.duplicates import Members, across_groups, near_duplicate_notices, repetitions
from adaptkit.data.loading import load_both
from adaptkit.data.pixels import alike, chunks, dtype_of, held
from adaptkit.data.protocols import (
    DRAWS,
    PROPORTIONAL,
    Labels,
    Protocol,
    Wanted,
    choose_protocol,
    column_values,
    divided_by,
    domain_numbers,
    fold_numbers,
    small_classes,
)
from adaptkit.data.raw_values import Conversion
from adaptkit.data.split import FOLDS, GIVEN, NOTHING, Part, source_parts, split_part, target_parts
from adaptkit.data.split_files import SplitPart, read_split, split_text
from adaptkit.data.views import LazyViews, Views, views_of
from adaptkit.errors import BadInput
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import OVERLAPPING
from adaptkit.settings.selection import Selected, nearest
from adaptkit.settings.settings import written_classes

if TYPE_CHECKING:
    from adaptkit.settings.settings import SplitSettings


def relabelled(corpus: Corpus, name: str, classes: tuple[str, ...], source: str) -> Corpus:
    """Return the target with the label numbers of the source; raise BadInput if their classes differ."""
    target_classes = corpus.train.classes
    if set(target_classes) != set(classes):
        differences = [
            f"{title} {_some(names)}"
            for title, names in (
                ("missing", [label for label in classes if label not in target_classes]),
                ("additional", [label for label in target_classes if label not in classes]),
            )
            if names
        ]
        both = [label for label in classes if label in target_classes]
        raise BadInput(
            f"target {name}: its classes differ from those of {source}: {'; '.join(differences)}{_common(both)}"
        )
    number = torch.tensor([classes.index(label) for label in target_classes])

    def relabel(images: Images) -> Images:
        return replace(images, labels=number[images.labels], classes=classes)

    return replace(corpus, train=relabel(corpus.train), test=None if corpus.test is None else relabel(corpus.test))


def _common(names: Sequence[str]) -> str:
    """Return the advice to use the classes that two domains have in common, if there are two or more."""
    if len(names) < 2:
        return ""
    return f"; restrict both to their common classes with --classes {shlex.quote(written_classes(names))}"


def restricted(
    corpora: Sequence[Corpus | None], titles: Sequence[str], classes: tuple[str, ...] | None
) -> list[Corpus | None]:
    """Return data sets with the images of these classes only, numbered in this order; None changes nothing.

    Raises BadInput for classes that a data set does not have.
    """
    if classes is None:
        return list(corpora)
    known = {title: corpus.train.classes for title, corpus in zip(titles, corpora, strict=True) if corpus is not None}
    everywhere = set.intersection(*map(set, known.values()))
    both = [name for name in classes if name in everywhere]
    problems = []
    for name in classes:
        lacking = [title for title, names in known.items() if name not in names]
        if len(lacking) == len(known):
            problems.append(f"classes: unknown class {name!r}{nearest(name, set().union(*known.values()))}")
        elif lacking:
            problems.append(f"classes: {lacking[0]} has no class {name!r}{_common(both)}")
    if problems:
        raise BadInput(*problems)
    return [
        corpus if corpus is None or corpus.train.classes == classes else _of_classes(corpus, title, classes)
        for title, corpus in zip(titles, corpora, strict=True)
    ]


def _of_classes(corpus: Corpus, title: str, classes: tuple[str, ...]) -> Corpus:
    number = torch.tensor([classes.index(name) if name in classes else -1 for name in corpus.train.classes])

    def chosen(images: Images) -> Images:
        kept = images.take((number[images.labels] >= 0).nonzero().flatten())
        return replace(kept, labels=number[kept.labels], classes=classes)

    train, test = chosen(corpus.train), None if corpus.test is None else chosen(corpus.test)
    if not len(train) or (test is not None and not len(test)):
        raise BadInput(f"classes: {title} has no {'test' if len(train) else 'training'} image of these classes")
    total, count = (
        sum(len(part) for part in parts if part is not None) for parts in ((corpus.train, corpus.test), (train, test))
    )
    notice = f"classes: {count:,} of the {total:,} images of {title} are of these {len(classes)} classes"
    return replace(corpus, train=train, test=test, notices=(*corpus.notices, notice))


def _some(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


@dataclass(frozen=True)
class TestSet:
    """Fixed test images: `pixels` float32 `[n, c, h, w]` in 0..1, `labels` int64 `[n]`, `index` int64 `[n]`.

    `index` is the position in the data set; positions of official test images follow the training images. `ids` and
    `groups` identify the images and their groups, None if the data set has none.
    """

    __test__: ClassVar[bool] = False  # pytest must not collect this class

    pixels: Views
    labels: Tensor
    index: Tensor
    ids: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Domains:
    """The images of an experiment; images that would need too much memory are decoded on access.

    With pretrained weights and without a source, there are no source images and no source test set. Digests are sha256
    of the images that determine the base, of the target images, and of both. `split_text` is the content of split.json.
    `split` holds the settings of the split with a number for each size.
    """

    classes: tuple[str, ...]
    source: Images
    pool: Images
    pool_index: Tensor
    clean_test: TestSet | None
    shifted_test: TestSet
    source_digest: str
    target_digest: str
    fingerprint: str
    split: SplitSettings
    split_text: str
    #: target test images before any shift
    unshifted: Tensor | StoredPixels
    #: how the labels of the target are used; with folds, the target test images are the images of the pool
    protocol: Protocol
    notices: tuple[str, ...] = ()
    #: how raw values of the target's files became floats in 0..1, if they did
    conversion: Conversion | None = None
    #: with folds that hold out a value of a column: the number of the value of each image of the pool, and the values
    held_out: tuple[Tensor, tuple[str, ...]] | None = None

    @property
    def labels(self) -> Labels:
        """Return the labels of the pool, with groups if there are any."""
        return Labels(self.pool.labels, self.classes, self.pool.columns.get(GROUP))

    @property
    def is_pool_tested(self) -> bool:
        """Return whether the images of the pool are also the target test images, in the same order."""
        return self.protocol.name == FOLDS

    @property
    def channels(self) -> int:
        """Return the number of channels of every image."""
        return int(self.pool.pixels.shape[1])

    @property
    def size(self) -> int:
        """Return the width and height of every image in pixels; images are square."""
        return int(self.pool.pixels.shape[2])

    @functools.cached_property
    def images_digest(self) -> str | None:
        """Return the sha256 of the target images before any shift; None if they are not in memory.

        A digest of shifted images would be less useful, because their last digits can differ between processors.
        """
        if not isinstance(self.unshifted, Tensor) or not isinstance(self.pool.pixels, Tensor):
            return None
        return _digest("images", *self.classes, *_content(self.pool), self.unshifted)

    def test_under(self, shifts: Sequence[Shift]) -> Views:
        """Return the target test images under these shifts, with the same random stream as in the experiment."""
        return views_of(self.unshifted, shifts, _test_seed(self.split))

    def few_under(self, shifts: Sequence[Shift]) -> Tensor:
        """Return the first two images of `test_under`."""
        return LazyViews(self.unshifted, tuple(shifts), _test_seed(self.split))[:2]

    @property
    def tests(self) -> dict[str, TestSet]:
        """Return the test sets by name."""
        clean = {} if self.clean_test is None else {"clean": self.clean_test}
        return clean | {"shifted": self.shifted_test}


def load_domains(
    dataset: Dataset | None,
    target: Dataset | None,
    shifts: Sequence[Shift],
    *,
    shift_text: str,
    split: SplitSettings,
    data_dir: Path,
    reading: Reading | None = None,
    image_size: int | None = None,
    wanted: Wanted | None = None,
    names: tuple[str | None, str | None] = (None, None),
    wanted_classes: tuple[str, ...] | None = None,
) -> Domains:
    """Return the source, the pool and the test sets; equal settings give equal bits.

    `names` are the names of data set and target from the user, if they differ from the names of the classes. Without a
    target, the pool and the target test set come from the data set. Without a data set, all images come from the
    target. `wanted_classes` are those to use, in this order; None for all. The source and the source test set do not
    depend on target and shifts, so that experiments share a base. `reading` determines how image files without a fixed
    size are read. If `image_size` is set, all images are resized to it. Raises BadInput if that fails.
    """
    name, target_name = (
        title or getattr(published, "name", "none") for title, published in zip(names, (dataset, target), strict=True)
    )
    if target is not None and target_name == name:
        raise BadInput(f"target {target_name} is the source itself; leave the target out and name a shift")
    earlier = None if split.file is None else read_split(split.file)

    both = load_both((dataset, name), (target, target_name), data_dir=data_dir, reading=reading, image_size=image_size)
    loaded = restricted(both, (name, target_name), wanted_classes)
    corpus, foreign = grouped_by(split.group, loaded)
    protocol = choose_protocol(
        wanted := wanted or Wanted(OVERLAPPING, shots=1),
        target=target_name if target is not None else name,
        is_own=target is not None and _is_own(target, target_name),
        has_test=foreign is not None and foreign.test is not None,
    )
    limited: tuple[str, ...] = ("source", "pool", "test")
    if protocol.name in (FOLDS, GIVEN):
        split = split.unlimited(wanted.explicit)
        limited = limited if foreign is None else ("source", "test") if corpus is not None else ("source",)
    parts: dict[str, SplitPart] = {}
    notices: tuple[str, ...] = () if earlier is None else (earlier.notice(name, target_name),)
    source = clean = None
    if corpus is not None:
        classes = corpus.train.classes
        notices += corpus.notices
        notices += across_groups(name, corpus) if foreign is None else ()
        split = split.limited(len(classes), limited)
        divided = source_parts(
            corpus, name, split, earlier=earlier, pool=foreign is None, is_old=protocol.name == OVERLAPPING
        )
        source, pool, clean = map(_held, divided)
        parts |= {"source": split_part(corpus, name, source), "clean_test": split_part(corpus, name, clean)}
        if foreign is None:
            shifted = pool if protocol.name == FOLDS else clean
            parts |= {"pool": split_part(corpus, name, pool)}
            parts |= {} if protocol.name == FOLDS else {"shifted_test": parts["clean_test"]}
    if foreign is not None:
        notices += tuple(notice for notice in foreign.notices if notice not in notices)
        notices += across_groups(target_name, foreign)
        notices += divided_groups(target_name, foreign) if protocol.name == GIVEN else ()
        if protocol.name == FOLDS and foreign.test is not None:
            count = len(foreign.test)
            notices += (f"folds: the test part of {target_name} ({count:,} images) is divided like all other labels",)
        notices += () if corpus is None else common_groups(name, corpus, target_name, foreign)
        if source is None or clean is None:
            classes = foreign.train.classes
            split = split.limited(len(classes), limited)
        else:
            foreign = relabelled(foreign, target_name, classes=classes, source=name)
        avoid = [part for part in (source, clean) if part is not None]
        chosen, copies = target_parts(
            foreign, target_name, split, earlier=earlier, source=name, avoid=avoid, protocol=protocol.name
        )
        notices += copies
        parts |= {title: split_part(foreign, target_name, part) for title, part in chosen.items()}
        model = None if source is None else source.images.pixels.shape
        made = {title: _held(_like(part, model, f"target {target_name}")) for title, part in chosen.items()}
        pool, shifted = made["pool"], made.get("shifted_test", made["pool"])
    compared = {"the pool": ("pool", pool), "the source": ("source", source)}
    if shifted is not pool:
        compared["the test set"] = ("shifted_test", shifted)
    if clean is not shifted:
        compared["the source test set"] = ("clean_test", clean)
    notices += repetitions(
        {title: Members(part.images, parts[key].members) for title, (key, part) in compared.items() if part is not None}
    )
    clean_test = None if clean is None else _test_set(clean, (), 0)
    shifted_test = _test_set(shifted, shifts, _test_seed(split))
    source_digest = ""
    positions = [pool.index, shifted_test.index]
    if source is not None and clean_test is not None:
        source_digest = _digest("source", *classes, *_content(source.images), *_content(clean_test))
        positions = [source.index, pool.index, clean_test.index, shifted_test.index]
    target_digest = _digest("target", *classes, *_content(pool.images), *_content(shifted_test))
    held_out, groups = None, pool.images.columns.get(GROUP, ())
    if (column := protocol.by) is not None:
        held_out = domain_numbers(column_values(pool.images.columns, column, "folds"))
        protocol = replace(protocol, folds=len(held_out[1]))
        crossing = divided_by(Labels(pool.images.labels, classes, groups or None), held_out[0], column)
        notices += tuple(filter(None, [crossing]))
    elif protocol.name == DRAWS and groups:
        raise BadInput("protocol draws: a draw would divide groups between training and test; use --protocol folds")
    elif protocol.folds is not None:
        labels = Labels(pool.images.labels, classes, groups or None)
        assigned = fold_numbers(labels, protocol.folds, seed=0)  # raises BadInput if it is not possible
        if not groups:
            title = name if foreign is None else target_name
            notices += near_duplicate_notices(title, pool.images, assigned, kind="fold")
        notices += tuple(filter(None, [small_classes(labels, protocol.folds)]))
    # The limit of images is not covered: runs with different limits are compared. Nor are the divisions of seeds.
    facts = () if protocol.name == OVERLAPPING else (repr((protocol.name, protocol.folds, protocol.by)), *groups)
    if protocol.name == DRAWS and split.sampling == PROPORTIONAL:  # other draws from the same pool
        facts = (PROPORTIONAL, *facts)
    return Domains(
        classes=classes,
        source=pool.images.take(NOTHING) if source is None else source.images,
        pool=pool.images,
        pool_index=pool.index,
        clean_test=clean_test,
        shifted_test=shifted_test,
        source_digest=source_digest,
        target_digest=target_digest,
        fingerprint=_digest(source_digest, target_digest, shift_text, *positions, *facts),
        split=split,
        split_text=split_text(classes, parts),
        unshifted=shifted.images.pixels,
        notices=notices,
        protocol=protocol,
        held_out=held_out,
        conversion=whole.conversion if (whole := foreign or corpus) is not None else None,
    )


def _is_own(target: Dataset, name: str) -> bool:
    """Return whether a data set consists of the user's own images: a folder, a table, or the data set of a plugin."""
    whole = target.dataset if isinstance(target, Selected) else target
    return name.partition(":")[0] in ("folder", "table") or type(whole).__module__.partition(".")[0] != "adaptkit"


def _held(part: Part) -> Part:
    return Part(held(part.images), part.index)


def _like(part: Part, shape: Sequence[int] | None, name: str) -> Part:
    """Convert target images to the channels and the size of the source, if there is a source."""
    if shape is None:
        return part
    return Part(alike(part.images, channels=shape[1], size=shape[2], name=name), part.index)


def _test_seed(split: SplitSettings) -> int:
    return derive_seed(split.seed, "shifted test")


def _test_set(part: Part, shifts: Sequence[Shift], seed: int) -> TestSet:
    images = part.images
    views = views_of(images.pixels, shifts, seed)
    return TestSet(views, images.labels, part.index, ids=images.ids, groups=images.columns.get(GROUP))


def _content(images: Images | TestSet) -> tuple[Tensor | StoredPixels | LazyViews, Tensor]:
    return images.pixels, images.labels


def _digest(*values: Tensor | StoredPixels | LazyViews | str) -> str:
    """Return the sha256 of values in order; tensors and stored pixels are hashed with their type and shape.

    Lazy views are hashed by their pixels, shifts and seed.
    """
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, str):
            text = value.encode()
            sha.update(b"text %d:" % len(text) + text)
        elif isinstance(value, Tensor):
            sha.update(f"{value.dtype} {list(value.shape)}:".encode())
            sha.update(value.contiguous().numpy().data)
        elif isinstance(value, LazyViews):
            sha.update(_digest("views", str(value.shifts), str(value.seed), value.pixels).encode())
        else:
            sha.update(f"{dtype_of(value)} {list(value.shape)}:".encode())
            for chunk in chunks(value):
                sha.update(chunk.numpy().data)
    return sha.hexdigest()
