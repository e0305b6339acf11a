"""The user's own pictures: a folder with one subfolder for each class."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

from adaptkit.contracts import Reading
from adaptkit.errors import BadInput, suggestion
from adaptkit.hookspecs import hookimpl
from adaptkit.system.files import expanded
from adaptkit.system.streams import printable_line

if TYPE_CHECKING:
    from torch import Tensor

    from adaptkit.contracts import Corpus, Dataset, Images

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
        from adaptkit.data.sets.image_files import read_picture

        return read_picture(Path(self.root, self.names[index]), self.size)


def _load(title: str, root: Path, reading: Reading) -> Corpus:
    from adaptkit.contracts import Corpus
    from adaptkit.data.sets.image_files import faults

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

    lines = [f"{printable_line(str(root / name))}: {reason}" for name, reason in list(bad.items())[:SHOWN]]
    more = f"{len(bad) - SHOWN} more such files; " if len(bad) > SHOWN else ""
    lines.append(
        f"{title}: {more}{len(bad)} of {count} files cannot be used: mend or remove them, or leave them out with "
        "--skip-bad-images"
    )
    return lines


def _left_out(title: str, bad: Mapping[str, str]) -> str:

    some = listed([f"{printable_line(name)} ({reason})" for name, reason in bad.items()])
    return f"{title}: {len(bad)} {'file' if len(bad) == 1 else 'files'} left out: {some}"


@hookimpl
def adaptkit_datasets() -> list[type[Dataset]]:
    """Offer folder."""
    return [Folder]


#: what systems leave in folders; hidden ones, which begin with a dot, are left out as well
LITTER = {"thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found"}
PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".ppm", ".pgm")
#: subfolders by which a folder says itself what is for training and what for testing
TRAIN, TESTS = "train", ("test", "val")


@dataclass(frozen=True)
class Part:
    """The files of the folder, or of its training or test part, by class: their paths below the folder."""

    files: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> list[str]:
        """Return all paths, class by class."""
        return [name for names in self.files.values() for name in names]

    def without(self, title: str, bad: Mapping[str, str]) -> Part:
        """Return the part without some files; raise BadInput for classes of which nothing is left."""
        files = {label: tuple(name for name in names if name not in bad) for label, names in self.files.items()}
        empty = [label for label, names in files.items() if not names]
        if empty:
            lines = (f"{title}: class {label!r} has no pictures but those that are left out" for label in empty)
            raise BadInput(*lines)
        return Part(files)


def layout(title: str, root: Path) -> tuple[list[Part], tuple[str, ...]]:
    """Return the training files and, where there are any, the test files; raise BadInput for anything else."""
    require_folder(title, root)
    folders, _ = _entries(title, root)
    tests = [name for name in TESTS if name in folders]
    divided = TRAIN in folders and tests and _hold_folders(title, root, [TRAIN, *tests])
    if not divided:
        return [_part(title, root, "")], ()
    if others := sorted(set(folders) - {TRAIN, *TESTS}):
        raise BadInput(f"{title}: beside {TRAIN} and {tests[0]}, which hold the classes, there is {listed(others)}")
    parts = [_part(title, root, f"{name}/") for name in (TRAIN, tests[0])]
    train, test = (part.files.keys() for part in parts)
    differences = [
        f"{word} {listed([repr(name) for name in names], 10)}"
        for word, names in (("it lacks", sorted(train - test)), ("it adds", sorted(test - train)))
        if names
    ]
    if differences:
        raise BadInput(f"{title}: the classes in {tests[0]} are not those in {TRAIN}: {'; '.join(differences)}")
    return parts, tuple(f"{title}: {name} is not used: {tests[0]} is the test set" for name in tests[1:])


def _hold_folders(title: str, root: Path, names: Sequence[str]) -> bool:
    """Tell whether each of these folders holds folders, and no pictures beside them."""
    held = [_entries(title, root / name) for name in names]
    return all(folders and not _pictures(files) for folders, files in held)


def _part(title: str, root: Path, prefix: str) -> Part:
    """Return the files in the class folders of a part; raise BadInput unless it has the layout that is asked for."""
    top = root / prefix
    where = f"{title}: " if not prefix else f"{title}, {prefix}: "
    folders, loose = _entries(title, top)
    # A link to a folder that holds the root would lead back into it, by way of all else that is there.
    above = {_identity(folder) for folder in (top, root.resolve(), *root.resolve().parents)}
    folders = [name for name in folders if _identity(top / name) not in above]
    asked = "put the pictures of each class into a subfolder of its own, named after the class"
    if pictures := _pictures(loose):
        some = listed([printable_line(name) for name in pictures])
        beside = "beside the class folders" if folders else "and no class folders"
        raise BadInput(f"{where}there are pictures {beside} ({some}); {asked}")
    if not folders:
        raise BadInput(f"{where}it is empty; {asked}")
    problems = [
        f"{where}a class cannot be called '{printable_line(name)}': rename the folder to what can be printed"
        for name in folders
        if not name.isprintable()
    ]
    files: dict[str, tuple[str, ...]] = {}
    seen: dict[tuple[int, int], str] = {}
    for name in folders:
        first = seen.setdefault(_identity(top / name), name)
        if first != name:
            problems.append(f"{where}{printable_line(first)} and {printable_line(name)} are one folder, by a link")
    # Composed, because some systems write é as two characters: the names of two folders are compared.
    for label, name in sorted((unicodedata.normalize("NFC", name), name) for name in folders):
        if label in files:
            problems.append(f"{where}two class folders are called {label!r}, in two spellings of the same signs")
        files[label] = tuple(sorted(f"{prefix}{name}/{file}" for file in _below(title, top / name, above)))
    problems += [
        f"{where}class {printable_line(label)!r} has no pictures" for label, names in files.items() if not names
    ]
    if len(folders) == 1 and not problems:
        inner, _ = _entries(title, top / folders[0])
        hint = f"; are the classes in {title}/{prefix}{folders[0]}?" if len(inner) > 1 else ""
        problems.append(f"{where}there is one class only, {folders[0]!r}, and two at least are needed{hint}")
    if problems:
        raise BadInput(*problems)
    return Part(files)


def _below(title: str, folder: Path, above: Set[tuple[int, int]]) -> Iterator[str]:
    """Yield the files below a folder by their paths from there, each folder's once, however many links lead to it."""
    left, seen = [("", folder)], set(above)
    while left:
        prefix, path = left.pop()
        own = _identity(path)
        if own in seen:
            continue
        seen.add(own)
        folders, files = _entries(title, path)
        yield from (f"{prefix}{name}" for name in files)
        left += [(f"{prefix}{name}/", path / name) for name in reversed(folders)]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _entries(title: str, folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted, without what systems leave there."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower() not in LITTER:
                    (folders if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise BadInput(f"{title}: {printable_line(str(folder))}: {error.strerror or error}") from None
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, for one: whoever reads it as a picture will say so


def _pictures(files: Sequence[str]) -> list[str]:
    return [name for name in files if name.lower().endswith(PICTURES)]


def require_folder(title: str, root: Path) -> None:
    """Raise BadInput, with the nearest name, unless there is such a folder."""
    try:
        if root.is_dir():
            return
        _tell_missing(title, root)
    except OSError as error:
        raise BadInput(f"{title}: {error.strerror or error}") from None


def _tell_missing(title: str, root: Path) -> NoReturn:
    if root.exists():
        raise BadInput(f"{title}: it is a file, not a folder")
    missing = root
    while not missing.parent.exists():
        missing = missing.parent
    beside = [path.name for path in missing.parent.iterdir() if path.is_dir()] if missing.parent.is_dir() else []
    hint = suggestion(missing.name, beside)
    raise BadInput(f"{title}: there is no such folder{hint if hint.startswith('; did') else ''}")


def listed(things: Sequence[str], limit: int = 3) -> str:
    """Return the first things, and how many more there are."""
    return ", ".join(things[:limit]) + (f" and {len(things) - limit} more" if len(things) > limit else "")
