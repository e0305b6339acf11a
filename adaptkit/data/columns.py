"""Names of the columns of images that have a meaning after loading, and the choice of another group column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adaptkit.contracts import Corpus, Images
from adaptkit.errors import BadInput, listed, suggestion
from adaptkit.system.streams import printable_line

#: images with the same value belong together, such as those of one patient, and are never divided
GROUP = "group"
#: the part of the world that an image is from, such as a site or a survey
DOMAIN = "domain"


def grouped_by(column: str | None, corpora: Sequence[Corpus | None]) -> list[Corpus | None]:
    """Return data sets whose groups are the values of this column, where they have it; None changes nothing.

    Raises BadInput, with the nearest name, if none of them has the column.
    """
    if column is None:
        return list(corpora)
    existing = [corpus for corpus in corpora if corpus is not None]
    known = {name for corpus in existing for name in _columns(corpus)}
    if column not in known:
        hint = suggestion(column, known) or "; the data set has no columns"
        raise BadInput(f"split.group: there is no column {column!r}{hint}")
    return [
        corpus if corpus is None or column not in _columns(corpus) else _grouped(corpus, column) for corpus in corpora
    ]


def divided_groups(title: str, corpus: Corpus) -> tuple[str, ...]:
    """Return the notice about groups that have both training images and official test images, if there are any."""
    if corpus.test is None or GROUP not in _columns(corpus):
        return ()
    divided = sorted(set(corpus.train.columns[GROUP]) & set(corpus.test.columns[GROUP]))
    if not divided:
        return ()
    have = "1 group has" if len(divided) == 1 else f"{len(divided)} groups have"
    names = listed([printable_line(name) for name in divided])
    return (f"{title}: {have} images in the training and in the test part: {names}",)


def common_groups(name: str, source: Corpus, target_name: str, target: Corpus) -> tuple[str, ...]:
    """Return the notice about groups that have images in the source and in the target, if there are any."""
    if GROUP not in _columns(source) or GROUP not in _columns(target):
        return ()
    common = sorted(_groups(source) & _groups(target))
    if not common:
        return ()
    have = "1 group has" if len(common) == 1 else f"{len(common)} groups have"
    names = listed([printable_line(group) for group in common])
    return (f"{target_name}: {have} images in the source {name} too, which trains the base: {names}",)


def _groups(corpus: Corpus) -> set[str]:
    parts = [corpus.train] if corpus.test is None else [corpus.train, corpus.test]
    return {group for part in parts for group in part.columns[GROUP]}


def _columns(corpus: Corpus) -> set[str]:
    """Return the names of the columns that all images of a data set have."""
    return set(corpus.train.columns) & set((corpus.test or corpus.train).columns)


def _grouped(corpus: Corpus, column: str) -> Corpus:
    def group(images: Images) -> Images:
        return replace(images, columns={**images.columns, GROUP: images.columns[column]})

    train, test = group(corpus.train), None if corpus.test is None else group(corpus.test)
    count = len({value for images in (train, test) if images is not None for value in images.columns[GROUP]})
    notice = f"split.group: column {column} has {count} {'group' if count == 1 else 'groups'}"
    return replace(corpus, train=train, test=test, notices=(*corpus.notices, notice))
