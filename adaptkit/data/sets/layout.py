"""The files of a folder of images by class, and by training and test part if the folder is divided."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from adaptkit.errors import BadInput, suggestion
from adaptkit.system.streams import printable_line

#: files and folders of operating systems, which are ignored like hidden files
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found"}
#: words in the names of folders -> the role of such a folder in a divided data set
ROLES = {
    **dict.fromkeys(("train", "training", "trainset", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation"), "test"),
}
ADVICE = "put the pictures of each class into a subfolder with the name of the class"


@dataclass(frozen=True)
class Part:
    """The files of the folder, or of its training or test part, by class, as paths relative to the folder."""

    files: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> list[str]:
        """Return all paths, class by class."""
        return [name for names in self.files.values() for name in names]

    def without(self, title: str, bad: Mapping[str, str], reason: str = "are skipped") -> Part:
        """Return the part without some files; raise BadInput for classes without remaining files."""
        files = {label: tuple(name for name in names if name not in bad) for label, names in self.files.items()}
        empty = [label for label, names in files.items() if not names]
        if empty:
            lines = (f"{title}: all pictures of class {label!r} {reason}; add readable pictures" for label in empty)
            raise BadInput(*lines)
        return Part(files)


def layout(title: str, root: Path, suffixes: tuple[str, ...]) -> tuple[list[Part], tuple[str, ...]]:
    """Return the training files, the test files if there are any, and notices; raise BadInput for other layouts.

    `suffixes` are the ends of the names of image files; other files of a class are returned like images.
    A folder is divided as `train/CLASS` and `test/CLASS`, or as `CLASS/train` and `CLASS/test`. Validation files are
    the test files if there are no others; otherwise they belong to the training files.
    """
    require_folder(title, root)
    folders, _ = _entries(title, root)
    above = _above(root)
    inner = {name: _inner_folders(title, root / name, above, suffixes) for name in folders}
    roles = roles_of(folders)
    labelled = {name: role for name, role in roles.items() if inner[name]}
    shares_classes = _is_division(labelled) and _common([inner[name] for name in labelled])
    if shares_classes or (_is_division(roles) and len(roles) == len(folders)):
        return _divided(title, root, roles=roles, labelled=labelled, suffixes=suffixes)
    whole = _part(title, root, "", suffixes)
    below = roles_of(sorted({name for names in inner.values() for name in names}))
    divides_classes = all(_is_division(roles_of(names)) and below.keys() >= set(names) for names in inner.values())
    if divides_classes and all(name.count("/") == 2 for name in whole.names):
        return _divided_classes(title, whole, below)
    _require_classes(title, inner)
    return [whole], ()


def _inner_folders(title: str, folder: Path, above: Set[tuple[int, int]], suffixes: tuple[str, ...]) -> list[str]:
    """Return the subfolders of a folder; none if it also has pictures."""
    folders, files = _entries(title, folder)
    return [] if _pictures(files, suffixes) else [name for name in folders if _identity(folder / name) not in above]


def _above(root: Path) -> set[tuple[int, int]]:
    """Return the identities of a folder and its parents; links to them lead back and to unrelated files."""
    return {_identity(folder) for folder in (root, *root.resolve().parents)}


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Return the role of each name that has one, such as train for `Training` and `seg_train`; training comes first."""
    roles = {}
    for name in names:
        words = map(str.lower, re.findall("[A-Z]?[a-z]+|[A-Z]+", name))
        found = {ROLES[word] for word in words if word in ROLES}
        if len(found) == 1:
            roles[name] = found.pop()
    order = list(ROLES.values())
    return dict(sorted(roles.items(), key=lambda item: (order.index(item[1]), item[0])))


def _is_division(roles: Mapping[str, str]) -> bool:
    return len({*roles.values()}) > 1


def _common(names: Sequence[Sequence[str]]) -> list[str]:
    """Return the names that all sequences have, sorted."""
    return sorted(set.intersection(*map(set, names))) if names else []


def _divided(
    title: str, root: Path, *, roles: Mapping[str, str], labelled: Mapping[str, str], suffixes: tuple[str, ...]
) -> tuple[list[Part], tuple[str, ...]]:
    """Return the files of folders such as `train/CLASS` and `test/CLASS`."""
    folders, files = _entries(title, root)
    if "train" not in labelled.values() or not _is_division(labelled):
        if unlabelled := [name for name in roles if name not in labelled]:
            way_out = "".join(f", or use {title}/{name}" for name in labelled)
            problem = f"there are no class folders in {_and(unlabelled)}; {ADVICE}{way_out}"
        else:
            problem = "there is none for training; rename one of them to train"
        raise BadInput(f"{title}: {_and(roles)} are names of parts of a data set, but {problem}")
    if others := [name for name in folders if name not in roles]:
        raise BadInput(f"{title}: next to {_and(labelled)} there is {listed(others)}; move or remove it")
    parts, notice = assigned(title, {name: _part(title, root, f"{name}/", suffixes) for name in labelled}, labelled)
    notices = [notice]
    if unlabelled := [name for name in roles if name not in labelled]:
        notices.append(f"{title}: {_and(unlabelled)} is not used, because it has no class folders")
    if loose := _pictures(files, suffixes):
        names = listed([printable_line(name) for name in loose])
        notices.append(f"{title}: the pictures next to {_and(labelled)} are not used: {names}")
    return parts, tuple(notices)


def _divided_classes(title: str, whole: Part, roles: Mapping[str, str]) -> tuple[list[Part], tuple[str, ...]]:
    """Return the files of folders such as `CLASS/train` and `CLASS/test`."""

    def below(folder: str) -> dict[str, tuple[str, ...]]:
        chosen = {label: tuple(n for n in names if n.split("/")[1] == folder) for label, names in whole.files.items()}
        return {label: names for label, names in chosen.items() if names}

    parts, notice = assigned(title, {folder: Part(below(folder)) for folder in roles}, roles)
    return parts, (notice,)


def assigned(title: str, parts: Mapping[str, Part], roles: Mapping[str, str]) -> tuple[list[Part], str]:
    """Return training and test files, and a notice that states which folders they are from."""
    tested = "test" if "test" in roles.values() else "val"
    joined: list[Part] = []
    texts: list[str] = []
    for is_test, purpose in ((False, "training"), (True, "test")):
        chosen = [name for name in parts if (roles[name] == tested) is is_test]
        labels = sorted({label for name in chosen for label in parts[name].files})
        files = {label: [n for name in chosen for n in parts[name].files.get(label, ())] for label in labels}
        joined.append(Part({label: tuple(names) for label, names in files.items()}))
        counts = [f"{name} ({_images(len(parts[name].names))})" for name in chosen]
        texts.append(f"{_and(counts)} as {purpose} images")
    train, test = (part.files.keys() for part in joined)
    differences = [
        f"{word} {listed([repr(name) for name in names], 10)}"
        for word, names in (("missing", sorted(train - test)), ("additional", sorted(test - train)))
        if names
    ]
    if differences:
        names = [_and([name for name in parts if (roles[name] == tested) is is_test]) for is_test in (True, False)]
        raise BadInput(f"{title}: the classes in {names[0]} differ from those in {names[1]}: {'; '.join(differences)}")
    if len(train) == 1:
        raise BadInput(f"{title}: there is only one class, {next(iter(train))!r}, in {_and(parts)}; add another one")
    return joined, f"{title}: reads {', '.join(texts)}"


def _require_classes(title: str, inner: Mapping[str, Sequence[str]]) -> None:
    """Raise BadInput if the folders have mostly the same subfolders, which are then the classes."""
    common = _common(list(inner.values()))
    if len(common) < 2 or 2 * len(common) < len({name for names in inner.values() for name in names}):
        return
    folders = [printable_line(name) for name in inner]
    raise BadInput(
        f"{title}: {listed(folders)} hold the same subfolders ({listed(common)}), so they are not classes; use one of "
        f"them, such as {title}/{folders[0]}, or rename them to train and test; if they are classes, move their "
        "pictures out of the subfolders"
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _and(names: Iterable[str]) -> str:
    """Return `a, b and c`."""
    *first, last = (printable_line(name) for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def _part(title: str, root: Path, prefix: str, suffixes: tuple[str, ...]) -> Part:
    """Return the files in the class folders of a part; raise BadInput if it has another layout."""
    top = root / prefix
    where = f"{title}: " if not prefix else f"{title}, {prefix}: "
    folders, loose = _entries(title, top)
    above = {_identity(top)} | _above(root)
    folders = [name for name in folders if _identity(top / name) not in above]
    if pictures := _pictures(loose, suffixes):
        examples = listed([printable_line(name) for name in pictures])
        place = "next to the class folders" if folders else "and no class folders"
        raise BadInput(f"{where}there are pictures {place} ({examples}); {ADVICE}")
    if not folders:
        raise BadInput(f"{where}it is empty; {ADVICE}")
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
    if len(folders) == 1 and not problems and not prefix:
        inner, _ = _entries(title, top / folders[0])
        hint = f"; are the classes in {title}/{folders[0]}?" if len(inner) > 1 else ""
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


def _pictures(files: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in files if name.lower().endswith(suffixes)]


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
