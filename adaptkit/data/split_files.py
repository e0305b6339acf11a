"""Write down which images were source, pool and test (split.json), and read it back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptkit.errors import BadInput, suggestion
from adaptkit.system.files import read_file

#: what a split may consist of
PARTS = ("source", "pool", "clean_test", "shifted_test")
#: parts of one data set that may not share an image: what is trained on is not tested on
APART = (
    ("source", "pool"),
    *((trained, tested) for trained in ("source", "pool") for tested in ("clean_test", "shifted_test")),
)


@dataclass(frozen=True)
class SplitPart:
    """One part: its data set as the user named it, and its images, by name or by index."""

    dataset: str
    members: tuple[str | int, ...]


@dataclass(frozen=True)
class Split:
    """A split as it was read from a file."""

    path: Path
    classes: tuple[str, ...]
    parts: Mapping[str, SplitPart]

    def told(self, *names: str) -> str:
        """Return a line that says whose split is taken, for data sets of these names."""
        made = dict.fromkeys(part.dataset for part in self.parts.values() if part.dataset not in names)
        origin = f", which was made of {' and '.join(made)}" if made else ""
        return (
            f"split.file: the images are those of {self.path}{origin}; the split's seed, limits and sampling do not act"
        )

    def part(self, title: str) -> SplitPart:
        """Return the part of this title; raise BadInput if the split has none."""
        if title not in self.parts:
            raise BadInput(f"split.file {self.path}: it has no {title}{suggestion(title, self.parts)}")
        return self.parts[title]


def split_text(classes: Sequence[str], parts: Mapping[str, SplitPart]) -> str:
    """Return a split as JSON, a part a line."""
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


def _sha256(content: Mapping[str, Any]) -> str:
    """Return the sha256 of what a split says, however it is laid out."""
    said = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def says_same(text: bytes, now: str) -> bool:
    """Tell whether the text of a split.json says of the same images what `now` says, however it is laid out.

    Pictures whose files have other names now count as the same.
    """
    try:
        said = json.loads(text)
        signed = said.pop("sha256", None)  # an earlier adaptkit wrote none
        if signed is not None and signed != _sha256(said):
            return False
        wanted = json.loads(now)
        del wanted["sha256"]
        if signed is not None and _renamed(said["parts"], wanted["parts"]):
            wanted["parts"] = said["parts"]
        return bool(said == wanted)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _renamed(said: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Tell whether parts differ in names of pictures only: each has one other name, which none of them has now."""
    if said.keys() != now.keys():
        return False
    pairs: set[tuple[tuple[str, Any], tuple[str, Any]]] = set()
    for title, part in now.items():
        name, images, others = part["dataset"], said[title]["images"], part["images"]
        if said[title]["dataset"] != name or len(images) != len(others):
            return False
        pairs |= {((name, one), (name, other)) for one, other in zip(images, others, strict=True)}
    before, after = {one for one, _ in pairs}, {other for _, other in pairs}
    changed = [one for one, other in pairs if one != other]
    is_one_to_one = len(before) == len(after) == len(pairs)
    return is_one_to_one and all(isinstance(one[1], str) and one not in after for one in changed)


def read_split(path: Path) -> Split:
    """Return the split in a file; raise BadInput when it cannot be read as one."""
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
    if content.get("sha256", (found := _sha256(content))) != found:
        raise BadInput(
            f"split.file {path}: it is not what was written: its sha256 is {found}; if you have edited it on purpose, "
            'take the line "sha256" out, or write this there'
        )
    if others := sorted(content.keys() - {"classes", "parts", "sha256"}):
        known = ("classes", "parts", "sha256")
        raise BadInput(*(f"split.file {path}: unknown key {name!r}{suggestion(name, known)}" for name in others))
    if problems := _problems(split):
        raise BadInput(*(f"split.file {path}: {problem}" for problem in problems))
    return split


def _problems(split: Split) -> list[str]:
    """Return what is wrong with a split that somebody may have edited."""
    problems = [f"unknown part {title!r}{suggestion(title, PARTS)}" for title in split.parts if title not in PARTS]
    for title, part in split.parts.items():
        if twice := len(part.members) - len(set(part.members)):
            problems.append(f"its {title} has {twice} {'image' if twice == 1 else 'images'} more than once")
    for first, second in APART:
        one, other = split.parts.get(first), split.parts.get(second)
        if one and other and one.dataset == other.dataset and (both := {*one.members} & {*other.members}):
            problems.append(f"its {first} and its {second} share {len(both)} {'image' if len(both) == 1 else 'images'}")
    return problems


def positions(part: SplitPart, names: Sequence[str] | range, dataset: str) -> list[int]:
    """Return where a part's images are among those of a data set; raise BadInput for images that it does not have."""
    places = {name: place for place, name in enumerate(names)}
    gone = [member for member in part.members if member not in places]
    if gone:
        shown = ", ".join(map(str, gone[:5])) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        raise BadInput(f"split.file: {dataset} does not have, or no longer has, {shown}")
    return [places[member] for member in part.members]


def _member(value: object) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(value)
    return value


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value
