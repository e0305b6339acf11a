"""The data set `folder:PATH`: images of the user, in one subfolder for each class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.contracts import Reading
from adaptkit.data.columns import GROUP
from adaptkit.data.sets.file_pixels import SIDE, ImageFiles, checked_files, not_read, skipped
from adaptkit.data.sets.layout import Part, layout, listed, require_folder
from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl
from adaptkit.system.files import expanded
from adaptkit.system.streams import printable_line

if TYPE_CHECKING:
    from adaptkit.contracts import Corpus, Dataset, Images

#: maximum number of unreadable files that are listed one by one
SHOWN = 50


@dataclass(frozen=True)
class Folder:
    """Your own images, in one subfolder for each class.

    If the folder has subfolders for training and for test or validation, they define the training and test images.
    """

    name: ClassVar[str] = "folder"
    argument: ClassVar[str] = "PATH"

    path: str

    def __post_init__(self) -> None:
        """Raise BadInput if the folder does not exist, together with the problems of other settings."""
        require_folder(f"{self.name}:{self.path}", expanded(self.path))

    def at(self, reading: Reading) -> Folder:
        """Return the data set with this configuration for reading image files."""
        return _ReadFolder(self.path, reading)

    def load(self, data_dir: Path) -> Corpus:
        """Return the images after decoding each file once as a check; `data_dir` is not used."""
        return _load(f"{self.name}:{self.path}", expanded(self.path), Reading(SIDE))


@dataclass(frozen=True)
class _ReadFolder(Folder):
    reading: Reading

    def load(self, data_dir: Path) -> Corpus:
        return _load(f"{self.name}:{self.path}", expanded(self.path), self.reading)


def _load(title: str, root: Path, reading: Reading) -> Corpus:
    from adaptkit.contracts import Corpus
    from adaptkit.data.readers.files import is_image_name, readers_of, suffixes_of

    suffixes = suffixes_of(readers_of(reading.readers).readers)
    parts, notices = layout(title, root, suffixes)
    if others := {name: "" for part in parts for name in part.names if not is_image_name(name, suffixes)}:
        parts = [part.without(title, others, "are files of other formats") for part in parts]
        notices += (f"{title}: {not_read(list(others))}",)
    names = [name for part in parts for name in part.names]
    files = checked_files(title, root, names, reading)
    bad = files.bad
    if bad and not reading.skip_bad:
        raise BadInput(*_messages(title, root, bad=bad, count=len(names)))
    if bad:
        parts = [part.without(title, bad) for part in parts]
        notices += (skipped(title, bad),)
    notices += files.notices(title)
    groups: Mapping[str, str] = {}
    if reading.group is not None:
        groups = _groups(title, [name for part in parts for name in part.names], reading.group)
        number = len({*groups.values()})
        notices += (f"{title}: {number} {'group' if number == 1 else 'groups'} in the names of {len(groups)} files",)
    train, *test = (_images(files, part, groups) for part in parts)
    return Corpus(train, test[0] if test else None, notices, files.conversion)


def _images(files: ImageFiles, part: Part, groups: Mapping[str, str]) -> Images:
    import torch

    from adaptkit.contracts import Images

    counts = torch.tensor([len(names) for names in part.files.values()])
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    names = tuple(part.names)
    columns = {GROUP: tuple(groups[name] for name in names)} if groups else {}
    return Images(files.pixels(names), labels, tuple(part.files), ids=names, columns=columns)


def _groups(title: str, names: Sequence[str], pattern: str) -> dict[str, str]:
    """Return the group of each file: the first group of the regular expression in its name, or the whole match.

    An expression with a slash is searched in the path below the folder. Raises BadInput for names without a match.
    """
    groups = {}
    for name in names:
        match = re.search(pattern, name if "/" in pattern else name.rpartition("/")[2])
        groups[name] = (match[1] if match.re.groups else match[0]) or "" if match else ""
    if unmatched := [printable_line(name) for name in names if not groups[name]]:
        count = f"{len(unmatched)} of {len(names)} file names"
        raise BadInput(f"folder.group: {pattern!r} finds no group in {count} of {title}: {listed(unmatched)}")
    return groups


def _messages(title: str, root: Path, *, bad: Mapping[str, str], count: int) -> list[str]:
    """Return a message for each unreadable file, and a message with advice."""

    lines = [f"{printable_line(str(root / name))}: {reason}" for name, reason in list(bad.items())[:SHOWN]]
    more = f"{len(bad) - SHOWN} more files; " if len(bad) > SHOWN else ""
    lines.append(
        f"{title}: {more}{len(bad)} of {count} files cannot be read; fix or remove them, or skip them with "
        "--skip-bad-images"
    )
    return lines


@hookimpl
def adaptkit_datasets() -> list[type[Dataset]]:
    """Return the data set `folder`."""
    return [Folder]
