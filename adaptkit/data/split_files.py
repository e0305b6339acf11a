"""Write and read split.json, which lists the images of the source, the pool and the test sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptkit.errors import BadInput, suggestion
from adaptkit.system.files import read_file

#: names of the parts of a split
PARTS = ("source", "pool", "clean_test", "shifted_test")
#: pairs of parts of one data set that must not share an image: training images and test images
APART = (
    ("source", "pool"),
    *((trained, tested) for trained in ("source", "pool") for tested in ("clean_test", "shifted_test")),
)


@dataclass(frozen=True)
class SplitPart:
    """One part of a split: the name of the data set from the user, and the images by name or index."""

    dataset: str
    members: tuple[str | int, ...]


@dataclass(frozen=True)
class Split:
    """A split that was read from a file."""

    path: Path
    classes: tuple[str, ...]
    parts: Mapping[str, SplitPart]

    def notice(self, *names: str) -> str:
        """Return the notice that this split is used for data sets with these names."""
        others = dict.fromkeys(part.dataset for part in self.parts.values() if part.dataset not in names)
        origin = f", a split of {' and '.join(others)}" if others else ""
        return f"split.file: images are taken from {self.path}{origin}; split.seed, sizes and sampling are ignored"

    def part(self, title: str) -> SplitPart:
        """Return the part with this name; raise BadInput if the split does not have it."""
        if title not in self.parts:
            raise BadInput(f"split.file {self.path}: it has no {title}{suggestion(title, self.parts)}")
        return self.parts[title]


def split_text(classes: Sequence[str], parts: Mapping[str, SplitPart]) -> str:
    """Return a split as JSON, with one part on each line."""
    lines = [
        f'    "{title}": {json.dumps({"dataset": parts[title].dataset, "images": list(parts[title].members)})}'
        for title in PARTS
        if title in parts
    ]
    start = f'{{\n  "classes": {json.dumps(list(classes))},\n  "parts": {{\n' + ",\n".join(lines) + "\n  },\n"
    content = {
        "classes": list(classes),
        "parts": {title: {"dataset": part.dataset, "images": list(part.members)} for title, part in parts.items()},
    }
    return f'{start}  "sha256": "{_sha256(content)}"\n}}\n'


def with_folds(text: str, folds: Sequence[int]) -> str:
    """Return the text of a split with the number of the fold that evaluates each image of the pool, in its order."""
    content = json.loads(text)
    del content["sha256"]
    content["folds"] = list(folds)
    head, _, _ = text.rpartition('  "sha256"')
    return f'{head}  "folds": {json.dumps(list(folds))},\n  "sha256": "{_sha256(content)}"\n}}\n'


def _sha256(content: Mapping[str, Any]) -> str:
    """Return the sha256 of the content of a split, independent of its layout."""
    signed = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()


def is_same_split(text: bytes, now: str) -> bool:
    """Return whether the text of a split.json has the same images as `now`, independent of the layout.

    Renamed image files count as the same images.
    """
    try:
        earlier = json.loads(text)
        signed = earlier.pop("sha256", None)  # earlier versions of adaptkit did not write it
        if signed is not None and signed != _sha256(earlier):
            return False
        current = json.loads(now)
        del current["sha256"]
        earlier.pop("folds", None)  # they follow from the seed
        current.pop("folds", None)
        if signed is not None and _renamed(earlier["parts"], current["parts"]):
            current["parts"] = earlier["parts"]
        return bool(earlier == current)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _renamed(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether parts differ only because files were renamed one to one."""
    if earlier.keys() != now.keys():
        return False
    pairs: set[tuple[tuple[str, Any], tuple[str, Any]]] = set()
    for title, part in now.items():
        name, images, others = part["dataset"], earlier[title]["images"], part["images"]
        if earlier[title]["dataset"] != name or len(images) != len(others):
            return False
        pairs |= {((name, old), (name, new)) for old, new in zip(images, others, strict=True)}
    before, after = {old for old, _ in pairs}, {new for _, new in pairs}
    changed = [old for old, new in pairs if old != new]
    is_one_to_one = len(before) == len(after) == len(pairs)
    return is_one_to_one and all(isinstance(old[1], str) and old not in after for old in changed)


def read_split(path: Path) -> Split:
    """Read a split from a file; raise BadInput if it is not a split."""
    try:
        content = json.loads(read_file(path))
        parts = {
            str(title): SplitPart(str(part["dataset"]), tuple(map(_member, part["images"])))
            for title, part in content["parts"].items()
        }
        split = Split(path, tuple(map(_name, content["classes"])), parts)
    except OSError as error:
        raise BadInput(f"split.file {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"split.file {path}: it is not a split.json of a run") from None
    if content.get("sha256", (actual := _sha256(content))) != actual:
        raise BadInput(
            f"split.file {path}: the file was changed after it was written: its sha256 is {actual}; if you edited "
            'it on purpose, delete the line "sha256" or set it to this value'
        )
    keys = ("classes", "parts", "folds", "sha256")
    if others := sorted(content.keys() - set(keys)):
        raise BadInput(*(f"split.file {path}: unknown key {name!r}{suggestion(name, keys)}" for name in others))
    if problems := _problems(split):
        raise BadInput(*(f"split.file {path}: {problem}" for problem in problems))
    return split


def _problems(split: Split) -> list[str]:
    """Return the problems of a split that may have been edited."""
    problems = [f"unknown part {title!r}{suggestion(title, PARTS)}" for title in split.parts if title not in PARTS]
    for title, part in split.parts.items():
        if twice := len(part.members) - len(set(part.members)):
            problems.append(f"its {title} has {twice} {'image' if twice == 1 else 'images'} more than once")
    for first, second in APART:
        trained, tested = split.parts.get(first), split.parts.get(second)
        if not trained or not tested or trained.dataset != tested.dataset:
            continue
        if count := len({*trained.members} & {*tested.members}):
            problems.append(f"its {first} and its {second} share {count} {'image' if count == 1 else 'images'}")
    return problems


def positions(part: SplitPart, names: Sequence[str] | range, dataset: str) -> list[int]:
    """Return the positions of the images of a part in a data set; raise BadInput for missing images."""
    position_of = {name: position for position, name in enumerate(names)}
    missing = [member for member in part.members if member not in position_of]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise BadInput(f"split.file: these images are not in {dataset}: {shown}")
    return [position_of[member] for member in part.members]


def _member(value: object) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(value)
    return value


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value
