"""The data set `folder:PATH`: images of the user, in one subfolder for each class."""

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

#: default width and height of images in pixels
SIDE = 64
#: maximum number of unreadable files that are listed one by one
SHOWN = 50


@dataclass(frozen=True)
class Folder:
    """Your own images, in one subfolder for each class.

    If the folder has subfolders `train` and `test` (or `val`), they define the training and test images.
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
    # A worker process can have another current folder.
    return Images(FolderPixels(os.path.abspath(root), tuple(part.names), size), labels, tuple(part.files))


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


#: files and folders of operating systems, which are ignored like hidden files
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found"}
PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".ppm", ".pgm")
#: names of subfolders that divide a data set into training and test
TRAIN, TESTS = "train", ("test", "val")


@dataclass(frozen=True)
class Part:
    """The files of the folder, or of its training or test part, by class, as paths relative to the folder."""

    files: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> list[str]:
        """Return all paths, class by class."""
        return [name for names in self.files.values() for name in names]

    def without(self, title: str, bad: Mapping[str, str]) -> Part:
        """Return the part without some files; raise BadInput for classes without remaining files."""
        files = {label: tuple(name for name in names if name not in bad) for label, names in self.files.items()}
        empty = [label for label, names in files.items() if not names]
        if empty:
            lines = (f"{title}: all pictures of class {label!r} are skipped; add readable pictures" for label in empty)
            raise BadInput(*lines)
        return Part(files)


def layout(title: str, root: Path) -> tuple[list[Part], tuple[str, ...]]:
    """Return the training files, the test files if there are any, and notices; raise BadInput for other layouts."""
    require_folder(title, root)
    folders, _ = _entries(title, root)
    tests = [name for name in TESTS if name in folders]
    divided = TRAIN in folders and tests and _hold_folders(title, root, [TRAIN, *tests])
    if not divided:
        return [_part(title, root, "")], ()
    if others := sorted(set(folders) - {TRAIN, *TESTS}):
        raise BadInput(f"{title}: next to {TRAIN} and {tests[0]} there is {listed(others)}; move or remove it")
    parts = [_part(title, root, f"{name}/") for name in (TRAIN, tests[0])]
    train, test = (part.files.keys() for part in parts)
    differences = [
        f"{word} {listed([repr(name) for name in names], 10)}"
        for word, names in (("missing", sorted(train - test)), ("additional", sorted(test - train)))
        if names
    ]
    if differences:
        raise BadInput(f"{title}: the classes in {tests[0]} differ from those in {TRAIN}: {'; '.join(differences)}")
    return parts, tuple(f"{title}: {name} is not used, because {tests[0]} is the test set" for name in tests[1:])


def _hold_folders(title: str, root: Path, names: Sequence[str]) -> bool:
    """Return whether each of these folders has subfolders and no image files outside them."""
    contents = [_entries(title, root / name) for name in names]
    return all(folders and not _pictures(files) for folders, files in contents)


def _part(title: str, root: Path, prefix: str) -> Part:
    """Return the files in the class folders of a part; raise BadInput if it has another layout."""
    top = root / prefix
    where = f"{title}: " if not prefix else f"{title}, {prefix}: "
    folders, loose = _entries(title, top)
    # Ignore links to a parent of the root, which would lead back into the root and to unrelated files.
    above = {_identity(folder) for folder in (top, root.resolve(), *root.resolve().parents)}
    folders = [name for name in folders if _identity(top / name) not in above]
    advice = "put the pictures of each class into a subfolder with the name of the class"
    if pictures := _pictures(loose):
        examples = listed([printable_line(name) for name in pictures])
        place = "next to the class folders" if folders else "and no class folders"
        raise BadInput(f"{where}there are pictures {place} ({examples}); {advice}")
    if not folders:
        raise BadInput(f"{where}it is empty; {advice}")
    problems = [
        f"{where}'{printable_line(name)}' cannot be the name of a class; rename the folder to printable characters"
        for name in folders
        if not name.isprintable()
    ]
    files: dict[str, tuple[str, ...]] = {}
    seen: dict[tuple[int, int], str] = {}
    for name in folders:
        first = seen.setdefault(_identity(top / name), name)
        if first != name:
            problems.append(
                f"{where}{printable_line(first)} and {printable_line(name)} are the same folder, because of a link"
            )
    # Normalise Unicode, because some systems write é as two characters.
    for label, name in sorted((unicodedata.normalize("NFC", name), name) for name in folders):
        if label in files:
            problems.append(f"{where}two class folders have the name {label!r} in different Unicode forms; rename one")
        files[label] = tuple(sorted(f"{prefix}{name}/{file}" for file in _below(title, top / name, above)))
    problems += [
        f"{where}class {printable_line(label)!r} has no pictures" for label, names in files.items() if not names
    ]
    if len(folders) == 1 and not problems:
        inner, _ = _entries(title, top / folders[0])
        hint = f"; are the classes in {title}/{prefix}{folders[0]}?" if len(inner) > 1 else ""
        problems.append(f"{where}there is only one class, {folders[0]!r}; at least two are needed{hint}")
    if problems:
        raise BadInput(*problems)
    return Part(files)


def _below(title: str, folder: Path, above: Set[tuple[int, int]]) -> Iterator[str]:
    """Yield the relative paths of all files below a folder; a folder with several links is visited once."""
    left, seen = [("", folder)], set(above)
    while left:
        prefix, path = left.pop()
        identity = _identity(path)
        if identity in seen:
            continue
        seen.add(identity)
        folders, files = _entries(title, path)
        yield from (f"{prefix}{name}" for name in files)
        left += [(f"{prefix}{name}/", path / name) for name in reversed(folders)]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _entries(title: str, folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted, without hidden and system files."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_NAMES:
                    (folders if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise BadInput(f"{title}: {printable_line(str(folder))}: {error.strerror or error}") from None
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # for example, a link to itself; decoding reports the error


def _pictures(files: Sequence[str]) -> list[str]:
    return [name for name in files if name.lower().endswith(PICTURES)]


def require_folder(title: str, root: Path) -> None:
    """Raise BadInput, with the nearest name, if the folder does not exist."""
    try:
        if root.is_dir():
            return
        _raise_missing(title, root)
    except OSError as error:
        raise BadInput(f"{title}: {error.strerror or error}") from None


def _raise_missing(title: str, root: Path) -> NoReturn:
    if root.exists():
        raise BadInput(f"{title}: it is a file, not a folder")
    missing = root
    while not missing.parent.exists():
        missing = missing.parent
    siblings = [path.name for path in missing.parent.iterdir() if path.is_dir()] if missing.parent.is_dir() else []
    hint = suggestion(missing.name, siblings)
    raise BadInput(f"{title}: there is no such folder{hint if hint.startswith('; did') else ''}")


def listed(texts: Sequence[str], limit: int = 3) -> str:
    """Return the first texts and the number of the others as one text."""
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")
