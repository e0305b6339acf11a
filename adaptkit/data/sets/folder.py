"""The data set `folder:PATH`: images of the user, in one subfolder for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.contracts import Reading
from adaptkit.data.sets.layout import Part, layout, listed, require_folder
from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl
from adaptkit.system.files import expanded
from adaptkit.system.streams import printable_line

if TYPE_CHECKING:
    from torch import Tensor

    from adaptkit.contracts import Corpus, Dataset, Images

#: default width and height of images in pixels
SIDE = 64
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


@dataclass(frozen=True)
class FolderPixels:
    """Images that are decoded from their files on access; `names` are paths relative to the folder."""

    root: str
    names: tuple[str, ...]
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of all images together."""
        return len(self.names), 3, self.size, self.size

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image."""
        from adaptkit.data.sets.image_files import read_picture

        return read_picture(Path(self.root, self.names[index]), self.size)


def _load(title: str, root: Path, reading: Reading) -> Corpus:
    from adaptkit.contracts import Corpus
    from adaptkit.data.sets.image_files import faults

    parts, notices = layout(title, root)
    names = [name for part in parts for name in part.names]
    bad = faults(root, names, reading.size)
    if bad and not reading.skip_bad:
        raise BadInput(*_messages(title, root, bad=bad, count=len(names)))
    if bad:
        parts = [part.without(title, bad) for part in parts]
        notices += (_left_out(title, bad),)
    train, *test = (_images(root, part, reading.size) for part in parts)
    return Corpus(train, test[0] if test else None, notices)


def _images(root: Path, part: Part, size: int) -> Images:
    import torch

    from adaptkit.contracts import Images

    counts = torch.tensor([len(names) for names in part.files.values()])
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    names = tuple(part.names)
    # A worker process can have another current folder.
    return Images(FolderPixels(os.path.abspath(root), names, size), labels, tuple(part.files), ids=names)


def _messages(title: str, root: Path, *, bad: Mapping[str, str], count: int) -> list[str]:
    """Return a message for each unreadable file, and a message with advice."""

    lines = [f"{printable_line(str(root / name))}: {reason}" for name, reason in list(bad.items())[:SHOWN]]
    more = f"{len(bad) - SHOWN} more files; " if len(bad) > SHOWN else ""
    lines.append(
        f"{title}: {more}{len(bad)} of {count} files cannot be read; fix or remove them, or skip them with "
        "--skip-bad-images"
    )
    return lines


def _left_out(title: str, bad: Mapping[str, str]) -> str:

    examples = listed([f"{printable_line(name)} ({reason})" for name, reason in bad.items()])
    return f"{title}: {len(bad)} {'file' if len(bad) == 1 else 'files'} skipped: {examples}"


@hookimpl
def adaptkit_datasets() -> list[type[Dataset]]:
    """Return the data set `folder`."""
    return [Folder]
