"""The data set `table:FILE`: images of the user that a CSV, TSV or Parquet file lists with their labels."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.contracts import Reading
from adaptkit.data.columns import DOMAIN, GROUP
from adaptkit.data.sets.file_pixels import SIDE, ImageFiles, checked_files, skipped
from adaptkit.data.sets.layout import Part, assigned, roles_of
from adaptkit.data.sets.table_files import Row, Sheet, read_sheet, require_table
from adaptkit.errors import BadInput, suggestion
from adaptkit.hookspecs import hookimpl
from adaptkit.system.files import expanded
from adaptkit.system.streams import printable_line

if TYPE_CHECKING:
    from adaptkit.contracts import Corpus, Dataset, Images

IMAGE, LABEL, SPLIT, ID = "image", "label", "split", "id"
#: what a column means -> usual names of such columns
NAMES = {
    IMAGE: ("path", "file", "image", "filename"),
    LABEL: ("label", "class", "target"),
    SPLIT: ("split", "set"),
    GROUP: ("group", "patient", "source", "field"),
    DOMAIN: ("domain", "site", "survey"),
    ID: ("id",),
}
REQUIRED = (IMAGE, LABEL)
#: value of a setting for a column that the table does not have
NONE = "none"
#: maximum number of problems that are listed one by one
SHOWN = 20


@dataclass(frozen=True)
class Table:
    """Your own images, listed with their labels in a CSV, TSV or Parquet file.

    Paths of images are relative to the folder of the file. Settings such as `table.image` name the columns.
    """

    name: ClassVar[str] = "table"
    argument: ClassVar[str] = "FILE"

    path: str

    def __post_init__(self) -> None:
        """Raise BadInput if the file does not exist, together with the problems of other settings."""
        require_table(f"{self.name}:{self.path}", expanded(self.path))

    def at(self, reading: Reading) -> Table:
        """Return the data set with this configuration for reading image files."""
        return _ReadTable(self.path, reading)

    def load(self, data_dir: Path) -> Corpus:
        """Return the images after decoding each file once as a check; `data_dir` is not used."""
        return _load(f"{self.name}:{self.path}", expanded(self.path), Reading(SIDE))


@dataclass(frozen=True)
class _ReadTable(Table):
    reading: Reading

    def load(self, data_dir: Path) -> Corpus:
        return _load(f"{self.name}:{self.path}", expanded(self.path), self.reading)


@dataclass(frozen=True)
class Listed:
    """The rows of a table by image, and its columns by meaning; `repeated` are the numbers of left out rows."""

    title: str
    sheet: Sheet
    columns: Mapping[str, str]
    rows: Mapping[str, Row]
    repeated: Sequence[int]

    def value(self, name: str, meaning: str) -> str:
        """Return the value of an image in the column with this meaning."""
        return self.rows[name].values[self.columns[meaning]]

    @property
    def notices(self) -> tuple[str, ...]:
        """Return the notice about the columns, and one about repeated rows if there are any."""
        labels = {self.value(name, LABEL) for name in self.rows}
        counts = [_count(len(self.rows), "image"), _count(len(labels), "class")]
        for meaning in (GROUP, DOMAIN):
            if meaning in self.columns:
                counts.append(_count(len({self.value(name, meaning) for name in self.rows}), meaning))
        columns = ", ".join(f"{meaning}={printable_line(column)}" for meaning, column in self.columns.items())
        notice = f"{self.title}: {columns}; {', '.join(counts)}"
        if not self.repeated:
            return (notice,)
        more = f" and {len(self.repeated) - 3} more" if len(self.repeated) > 3 else ""
        numbers = f"{', '.join(map(str, self.repeated[:3]))}{more}"
        return notice, f"{self.title}: rows that repeat an image are left out: {self.sheet.unit} {numbers}"


def _count(count: int, noun: str) -> str:
    plural = {"class": "classes"}.get(noun, f"{noun}s")
    return f"{count:,} {noun if count == 1 else plural}"


def _load(title: str, path: Path, reading: Reading) -> Corpus:
    from adaptkit.contracts import Corpus

    root = path.parent
    sheet = read_sheet(title, path)
    columns = columns_of(title, sheet, reading.columns)
    roles = _roles(title, sheet, columns)
    listed, problems = _listed(title, root, sheet, columns=columns, roles=roles)
    files = checked_files(title, root, list(listed.rows), reading)
    bad = files.bad
    if not reading.skip_bad:
        problems += [(listed.rows[name].number, f"{printable_line(name)}: {reason}") for name, reason in bad.items()]
    if problems:
        raise BadInput(*_messages(title, sheet.unit, problems, bad=0 if reading.skip_bad else len(bad)))
    parts, notices = _parts(listed, roles)
    notices = listed.notices + notices
    if bad:
        parts = [part.without(title, bad) for part in parts]
        notices += (skipped(title, bad),)
    notices += files.notices(title)
    train, *test = (_images(listed, files, part) for part in parts)
    return Corpus(train, test[0] if test else None, notices, files.conversion)


def columns_of(title: str, sheet: Sheet, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the column with each meaning: the chosen one, or the one with a usual name, in any case.

    Raises BadInput for a chosen column that is not in the table, for several candidates, and if there is no column of
    images or labels.
    """
    columns: dict[str, str] = {}
    problems = []
    for meaning, names in NAMES.items():
        column = chosen.get(meaning)
        if column == NONE and NONE not in sheet.columns:
            if meaning in REQUIRED:
                problems.append(f"table.{meaning}: {title} needs a column for it")
            continue
        if column is not None:
            if column in sheet.columns:
                columns[meaning] = column
            elif column in sheet.unusable:
                problems.append(_unusable(title, column, sheet.unusable[column]))
            else:
                problems.append(f"table.{meaning}: {title} has no column {column!r}{suggestion(column, sheet.columns)}")
            continue
        candidates = [name for name in sheet.columns if name.lower() in names and name not in chosen.values()]
        if len(candidates) > 1:
            texts = " and ".join(map(repr, candidates))
            problems.append(
                f"{title}: columns {texts} may both be the {meaning}; choose one with --set "
                f"table.{meaning}={candidates[0]}"
            )
        elif candidates:
            columns[meaning] = candidates[0]
        elif meaning in REQUIRED:
            problems.append(_missing(title, sheet, meaning))
    if problems:
        raise BadInput(*problems)
    return columns


def _missing(title: str, sheet: Sheet, meaning: str) -> str:
    """Return the problem that no column has a usual name."""
    usual = NAMES[meaning]
    for name, kind in sheet.unusable.items():
        if name.lower() in usual:
            return _unusable(title, name, kind)
    others = ", ".join(map(printable_line, sheet.columns[:10]))
    more = f" and {len(sheet.columns) - 10} more" if len(sheet.columns) > 10 else ""
    return (
        f"{title}: no column is named {', '.join(usual[:-1])} or {usual[-1]}; name the column of the {meaning}s with "
        f"--set table.{meaning}=COLUMN; columns: {others}{more}"
    )


def _unusable(title: str, column: str, kind: str) -> str:
    return f"{title}: column {column!r} holds {printable_line(kind[:40])}, not text; images must be files of their own"


def _roles(title: str, sheet: Sheet, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the role of each known value in the column of the split: train, val or test."""
    if SPLIT not in columns:
        return {}
    column = columns[SPLIT]
    roles = roles_of(dict.fromkeys(row.values[column] for row in sheet.rows))
    if sheet.rows and "train" not in roles.values():
        raise BadInput(
            f"{title}: column {column!r} has no value train, so no images to train on; rename its values to train, "
            "val and test, or ignore it with --set table.split=none"
        )
    return roles


def _listed(
    title: str, root: Path, sheet: Sheet, *, columns: Mapping[str, str], roles: Mapping[str, str]
) -> tuple[Listed, list[tuple[int, str]]]:
    """Return the rows by image, and the problems of rows by number."""
    rows: dict[str, Row] = {}
    by_id: dict[str, Row] = {}
    repeated: list[int] = []
    problems = list(sheet.problems)
    for row in sheet.rows:
        # Some systems write é as two characters.
        label = unicodedata.normalize("NFC", row.values[columns[LABEL]])
        row = Row(row.number, {**row.values, columns[LABEL]: label})
        name = _name(root, row.values[columns[IMAGE]])
        texts = list(_faults_of(row, columns, roles))
        if not texts:
            first = rows.setdefault(name, row)
            if first is not row:
                text = _conflict(name, row, first, unit=sheet.unit, columns=columns, roles=roles)
                texts = [text] if text else []
                if not text:
                    repeated.append(row.number)
            elif ID in columns and (other := by_id.setdefault(row.values[columns[ID]], row)) is not row:
                value = printable_line(row.values[columns[ID]])
                texts = [f"id {value!r} is also in {sheet.unit} {other.number}; an id stands for one image"]
        problems += [(row.number, text) for text in texts]
    return Listed(title, sheet, columns=columns, rows=rows, repeated=repeated), problems


def _name(root: Path, text: str) -> str:
    """Return the path of an image as its name; a path of Windows is read on other systems too."""
    if "\\" in text and not os.path.exists(root / text):
        text = text.replace("\\", "/")
    return Path(os.path.normpath(text)).as_posix() if text else ""


def _faults_of(row: Row, columns: Mapping[str, str], roles: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with the values of a row."""
    for meaning, column in columns.items():
        value = row.values[column]
        if not value and meaning != SPLIT:
            hint = "" if meaning in REQUIRED else f"; --set table.{meaning}=none ignores the column"
            yield f"{column} is empty{hint}"
        elif meaning == LABEL and not value.isprintable():
            yield f"label {printable_line(value)!r} has characters that cannot be printed"
        elif meaning == SPLIT and value not in roles:
            yield f"{column} is {printable_line(value)!r}, not train, val or test"


def _conflict(
    name: str, row: Row, first: Row, *, unit: str, columns: Mapping[str, str], roles: Mapping[str, str]
) -> str:
    """Return how two rows of the same image contradict each other; empty if they do not."""

    def differs(meaning: str) -> bool:
        return meaning in columns and row.values[columns[meaning]] != first.values[columns[meaning]]

    image, where = f"image {printable_line(name)}", f"{unit} {first.number}"
    if differs(LABEL):
        ours, theirs = (printable_line(each.values[columns[LABEL]]) for each in (row, first))
        return f"{image} has two labels: {ours!r} here, {theirs!r} in {where}"
    if differs(SPLIT):
        ours, theirs = (printable_line(each.values[columns[SPLIT]]) for each in (row, first))
        return f"{image} is in {ours} here and in {theirs} in {where}"
    for meaning in (GROUP, DOMAIN, ID):
        if differs(meaning):
            return f"{image} has another {meaning} than in {where}"
    return ""


def _parts(listed: Listed, roles: Mapping[str, str]) -> tuple[list[Part], tuple[str, ...]]:
    """Return the training images, the test images if the table has a split, and notices.

    The order of the rows does not matter.
    """
    names = sorted(listed.rows)

    def by_label(chosen: Sequence[str]) -> Part:
        files: dict[str, list[str]] = {}
        for name in chosen:
            files.setdefault(listed.value(name, LABEL), []).append(name)
        return Part({label: tuple(files[label]) for label in sorted(files)})

    if len({*roles.values()}) > 1:
        split = {value: by_label([name for name in names if listed.value(name, SPLIT) == value]) for value in roles}
        parts, notice = assigned(listed.title, split, roles)
        return parts, (notice,)
    part = by_label(names)
    if len(part.files) == 1:
        raise BadInput(f"{listed.title}: there is only one class, {next(iter(part.files))!r}; at least two are needed")
    return [part], ()


def _images(listed: Listed, files: ImageFiles, part: Part) -> Images:
    import torch

    from adaptkit.contracts import Images

    counts = torch.tensor([len(names) for names in part.files.values()])
    names = tuple(part.names)
    kept = [name for name in listed.sheet.columns if name not in {listed.columns.get(key) for key in (*REQUIRED, ID)}]
    sources = {name: name for name in kept} | {
        meaning: listed.columns[meaning] for meaning in (GROUP, DOMAIN) if meaning in listed.columns
    }
    return Images(
        files.pixels(names),
        torch.arange(len(counts)).repeat_interleave(counts),
        tuple(part.files),
        ids=tuple(listed.value(name, ID) for name in names) if ID in listed.columns else names,
        columns={key: tuple(listed.rows[name].values[column] for name in names) for key, column in sources.items()},
    )


def _messages(title: str, unit: str, problems: Sequence[tuple[int, str]], *, bad: int) -> list[str]:
    """Return a message for each of the first problems, in the order of the rows, and how many others there are.

    `bad` is the number of problems that are files, which `--skip-bad-images` leaves out.
    """
    lines = [f"{title}, {unit} {number}: {text}" for number, text in sorted(problems)]
    skip = ""
    if bad:
        files = (
            "files that cannot be read" if bad == len(lines) else f"only the {_count(bad, 'file')} that cannot be read"
        )
        skip = f"; --skip-bad-images leaves out {files}"
    if len(lines) > SHOWN:
        return [*lines[:SHOWN], f"{title}: {len(lines) - SHOWN} more problems, {len(lines)} in all{skip}"]
    return [*lines, f"{title}: {_count(len(lines), 'problem')}{skip}"] if skip else lines


@hookimpl
def adaptkit_datasets() -> list[type[Dataset]]:
    """Return the data set `table`."""
    return [Table]
