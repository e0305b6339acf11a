"""Select rows of a data set by the values of its columns: `NAME?COLUMN=VALUE`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from adaptkit.contracts import Corpus, Dataset, Images, Reading
from adaptkit.errors import BadInput, suggestion
from adaptkit.system.files import expanded
from adaptkit.system.streams import printable_line

if TYPE_CHECKING:
    from torch import Tensor

#: maximum number of known values that a message lists
SHOWN = 20


def split_name(name: str) -> tuple[str, str]:
    """Return the name of a data set without a selection, and the selection; "" if there is none.

    A question mark that belongs to the path of an existing file or folder does not begin a selection.

    Examples
    --------
    >>> split_name("table:labels.csv?site=A&year=2020")
    ('table:labels.csv', 'site=A&year=2020')
    """
    kind, colon, argument = name.partition(":")
    if colon and "?" not in kind:
        ends = [len(argument), *(place for place in range(len(argument) - 1, 0, -1) if argument[place] == "?")]
        for end in ends:
            if os.path.exists(expanded(argument[:end])):
                return f"{kind}:{argument[:end]}", argument[end + 1 :]
    bare, _, selection = name.partition("?")
    return bare, selection


def parse_selection(name: str) -> dict[str, tuple[str, ...]]:
    """Return the columns of the selection in a name with the values to keep.

    Several values of one column select the rows with any of them. `%26` stands for `&` and `%3D` for `=`.

    Examples
    --------
    >>> parse_selection("digits?site=A&site=B&year=2020")
    {'site': ('A', 'B'), 'year': ('2020',)}
    """
    bare, selection = split_name(name)
    wanted: dict[str, tuple[str, ...]] = {}
    for part in selection.split("&"):
        column, equals, value = part.partition("=")
        if not column or not equals:
            raise BadInput(f"{name}: a selection of rows is written {bare}?COLUMN=VALUE")
        column = unquote(column)
        wanted[column] = (*wanted.get(column, ()), unquote(value))
    return wanted


@dataclass(frozen=True)
class Selected:
    """The rows of a data set that have one of the wanted values in each of these columns."""

    name: str
    dataset: Dataset
    wanted: Mapping[str, tuple[str, ...]]

    def at(self, reading: Reading) -> Selected:
        """Return the selection from the data set with this configuration for reading image files."""
        at = getattr(self.dataset, "at", None)
        return self if at is None else replace(self, dataset=at(reading))

    def load(self, data_dir: Path) -> Corpus:
        """Return the selected images and the classes that they have; raise BadInput if there are none."""
        corpus: Any = self.dataset.load(data_dir)
        if not isinstance(corpus, Corpus):
            return corpus  # type: ignore[no-any-return]  # the caller reports that it is wrong
        parts = [images for images in (corpus.train, corpus.test) if images is not None]
        problems = list(_problems(self.name, parts, self.wanted))
        if problems:
            raise BadInput(*problems)
        rows = [_rows(images, self.wanted) for images in parts]
        kept = [images.take(chosen) for images, chosen in zip(parts, rows, strict=True) if len(chosen)]
        if not kept:
            raise BadInput(f"{self.name}: no image has all of these values")
        total, count = sum(map(len, parts)), sum(map(len, kept))
        notice = f"{self.name}: {count:,} of {total:,} images"
        train, *test = _with_present_classes(self.name, kept)
        return replace(corpus, train=train, test=test[0] if test else None, notices=(*corpus.notices, notice))


def _problems(name: str, parts: list[Images], wanted: Mapping[str, tuple[str, ...]]) -> Iterable[str]:
    """Yield a message for each unknown column and for each unknown value, with the nearest one."""
    columns = set.intersection(*(set(images.columns) for images in parts))
    for column, values in wanted.items():
        if not columns:
            yield f"{name}: the data set has no columns to select rows by"
            return
        if column not in columns:
            yield f"{name}: there is no column {column!r}{nearest(column, columns)}"
            continue
        known = {value for images in parts for value in images.columns[column]}
        for value in values:
            if value not in known:
                yield f"{name}: column {column} has no value {value!r}{nearest(value, known)}"


def nearest(text: str, known: set[str]) -> str:
    """Return `; did you mean 'x'?` with the most similar known text, or a list of known texts, of which most are left
    out if there are many.
    """
    hint = suggestion(text, known)
    if hint.startswith("; did") or len(known) <= SHOWN:
        return hint
    return f"; known: {', '.join(map(printable_line, sorted(known)[:SHOWN]))} and {len(known) - SHOWN} more"


def _rows(images: Images, wanted: Mapping[str, tuple[str, ...]]) -> Tensor:
    import torch

    rows = zip(*(images.columns[column] for column in wanted), strict=True)
    accepted = list(wanted.values())
    keep = [all(value in values for value, values in zip(row, accepted, strict=True)) for row in rows]
    return torch.tensor(keep).nonzero().flatten()


def _with_present_classes(name: str, parts: list[Images]) -> list[Images]:
    """Return the parts with the classes that the first one has; raise BadInput if another part has more."""
    import torch

    train = parts[0]
    present = sorted(set(train.labels.tolist()))
    for images in parts[1:]:
        if others := sorted(set(images.labels.tolist()) - set(present)):
            names = ", ".join(repr(train.classes[label]) for label in others)
            raise BadInput(f"{name}: the test images have classes without training images: {names}")
    if len(present) == 1:
        raise BadInput(f"{name}: there is only one class, {train.classes[present[0]]!r}; at least two are needed")
    number = torch.zeros(len(train.classes), dtype=torch.int64)
    number[present] = torch.arange(len(present))
    classes = tuple(train.classes[label] for label in present)
    return [replace(images, labels=number[images.labels], classes=classes) for images in parts]
