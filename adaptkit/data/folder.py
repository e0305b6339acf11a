"""The user's own pictures: a folder with one subfolder for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.contracts import Reading
from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl
from adaptkit.plain_files import expanded

if TYPE_CHECKING:
    from torch import Tensor

    from adaptkit.contracts import Corpus, Dataset, Images
    from adaptkit.data.class_folders import Part

#: the side in pixels of pictures that nobody gave a size
SIDE = 64
#: files that are no pictures, each of which is told in a line of its own
SHOWN = 50


@dataclass(frozen=True)
class Folder:
    """Your own pictures, one subfolder a class; subfolders train and test (or val), if there are, are kept apart."""

    name: ClassVar[str] = "folder"
    argument: ClassVar[str] = "PATH"

    path: str

    def __post_init__(self) -> None:
        """Raise BadInput for a folder that is not there, while all other settings are checked."""
        from adaptkit.data.class_folders import require_folder

        require_folder(f"{self.name}:{self.path}", expanded(self.path))

    def at(self, reading: Reading) -> Folder:
        """Return the folder with its pictures read so."""
        return _ReadFolder(self.path, reading)

    def load(self, data_dir: Path) -> Corpus:
        """Return the pictures, all of which were decoded once; `data_dir` is not used."""
        return _load(f"{self.name}:{self.path}", expanded(self.path), Reading(SIDE))


@dataclass(frozen=True)
class _ReadFolder(Folder):
    reading: Reading

    def load(self, data_dir: Path) -> Corpus:
        return _load(f"{self.name}:{self.path}", expanded(self.path), self.reading)


@dataclass(frozen=True)
class FolderPixels:
    """Pictures that stay in their files: `names` are their paths below the folder."""

    root: str
    names: tuple[str, ...]
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of all pictures together."""
        return len(self.names), 3, self.size, self.size

    def __getitem__(self, index: int) -> Tensor:
        """Decode one picture."""
        from adaptkit.data.pictures import read_picture

        return read_picture(Path(self.root, self.names[index]), self.size)


def _load(title: str, root: Path, reading: Reading) -> Corpus:
    from adaptkit.contracts import Corpus
    from adaptkit.data.class_folders import layout
    from adaptkit.data.verdicts import faults

    parts, notices = layout(title, root)
    names = [name for part in parts for name in part.names]
    bad = faults(root, names, reading.size)
    if bad and not reading.skip_bad:
        raise BadInput(*_complaints(title, root, bad, len(names)))
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
    # A worker process may be in another folder by the time it decodes.
    return Images(FolderPixels(os.path.abspath(root), tuple(part.names), size), labels, tuple(part.files))


def _complaints(title: str, root: Path, bad: Mapping[str, str], count: int) -> list[str]:
    """Return a line for each file that is no picture, and how to go on."""
    from adaptkit.data.pictures import shown

    lines = [f"{shown(str(root / name))}: {reason}" for name, reason in list(bad.items())[:SHOWN]]
    more = f"{len(bad) - SHOWN} more such files; " if len(bad) > SHOWN else ""
    lines.append(
        f"{title}: {more}{len(bad)} of {count} files cannot be used: mend or remove them, or leave them out with "
        "--skip-bad-images"
    )
    return lines


def _left_out(title: str, bad: Mapping[str, str]) -> str:
    from adaptkit.data.class_folders import listed
    from adaptkit.data.pictures import shown

    some = listed([f"{shown(name)} ({reason})" for name, reason in bad.items()])
    return f"{title}: {len(bad)} {'file' if len(bad) == 1 else 'files'} left out: {some}"


@hookimpl
def adaptkit_datasets() -> list[type[Dataset]]:
    """Offer folder."""
    return [Folder]
