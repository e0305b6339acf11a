"""Read the rows of a CSV, TSV or Parquet file as text."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptkit.errors import BadInput, suggestion
from adaptkit.system.files import read_file
from adaptkit.system.streams import printable_line

TEXT = (".csv", ".tsv", ".txt")
PARQUET = (".parquet", ".pq")
#: characters that can separate the values of a row; the first is used if the header has none of them
DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Row:
    """The values of a row by column, and its number: the line in a text file, or the row in a Parquet file."""

    number: int
    values: Mapping[str, str]


@dataclass(frozen=True)
class Sheet:
    """A table of texts. `problems` are about its rows, by number; `unit` is what the numbers count: line or row.

    `unusable` are the types of columns that are not text, numbers or dates, by name; they are not in `columns`.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str
    problems: tuple[tuple[int, str], ...] = ()
    unusable: Mapping[str, str] = field(default_factory=dict)


def require_table(title: str, path: Path) -> None:
    """Raise BadInput, with the nearest name, if the path is not a file of a known kind."""
    try:
        if path.is_dir():
            raise BadInput(f"{title}: it is a folder; folder:PATH reads pictures in class folders")
        if not path.exists():
            folder = path.parent
            known = TEXT + PARQUET
            names = [item.name for item in folder.iterdir() if item.suffix.lower() in known] if folder.is_dir() else []
            hint = suggestion(path.name, names)
            raise BadInput(f"{title}: there is no such file{hint if hint.startswith('; did') else ''}")
    except OSError as error:
        raise BadInput(f"{title}: {error.strerror or error}") from None
    if path.suffix.lower() not in TEXT + PARQUET:
        raise BadInput(f"{title}: a table is a file .csv, .tsv or .parquet; save it in one of these formats")


def read_sheet(title: str, path: Path) -> Sheet:
    """Return the table in a file; raise BadInput if it cannot be read or has no rows."""
    sheet = _parquet(title, path) if path.suffix.lower() in PARQUET else _text(title, path)
    if not sheet.rows and not sheet.problems:
        raise BadInput(f"{title}: it has no rows below its header")
    return sheet


def _text(title: str, path: Path) -> Sheet:
    try:
        content = read_file(path)
    except OSError as error:
        raise BadInput(f"{title}: {error.strerror or error}") from None
    text = _decoded(title, content)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    lines = _lines(title, text, delimiter)
    _, header = next(lines, (0, None))
    if header is None:
        raise BadInput(f"{title}: it is empty")
    _require_distinct(title, header)
    rows, problems = [], []
    for number, cells in lines:
        if len(cells) < len(header) or any(cells[len(header) :]):
            problems.append((number, f"the row has {len(cells)} cells, but the header has {len(header)}"))
        else:
            rows.append(Row(number, {name: cell for name, cell in zip(header, cells, strict=False) if name}))
    return Sheet(tuple(filter(None, header)), tuple(rows), "line", tuple(problems))


def _decoded(title: str, content: bytes) -> str:
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise BadInput(f"{title}, line {line}: it is not UTF-8 text; save the table as CSV in UTF-8") from None
    if "\0" in text:
        raise BadInput(f"{title}: it is not a text file; save the table as CSV in UTF-8")
    return text.removeprefix("\ufeff")


def _delimiter(text: str) -> str:
    """Return the character that divides the header into most columns."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(DELIMITERS, key=lambda character: len(next(csv.reader([header], delimiter=character), [])))


def _lines(title: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the values of each row that has any, with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    start = 1
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield start, stripped
            start = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{title}, line {start}: {error}") from None


def _parquet(title: str, path: Path) -> Sheet:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadInput(f"{title}: Parquet files need pyarrow; pip install pyarrow, or save the table as CSV") from None
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _require_distinct(title, schema.names)
            unusable = {column.name: str(column.type) for column in schema if not _is_plain(column.type, pyarrow.types)}
            # pandas stores the index of a table as such a column.
            names = [name for name in schema.names if name not in unusable and not name.startswith("__index_level_")]
            table = file.read(columns=names, use_threads=False)
            columns = {name: [_written(value) for value in table.column(name).to_pylist()] for name in names}
    except BadInput:
        raise
    except Exception as error:  # pyarrow raises many types for damaged files, such as UnicodeDecodeError
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise BadInput(f"{title}: it cannot be read as Parquet: {reason}") from None
    cells = enumerate(zip(*columns.values(), strict=True), 1)
    rows = tuple(Row(number, dict(zip(names, values, strict=True))) for number, values in cells)
    return Sheet(tuple(names), rows, "row", unusable=unusable)


def _is_plain(kind: object, types: object) -> bool:
    """Return whether a type of pyarrow has values that can be written as text."""
    if types.is_dictionary(kind):  # type: ignore[attr-defined]
        kind = kind.value_type  # type: ignore[attr-defined]
    tests = ("is_nested", "is_binary", "is_large_binary", "is_fixed_size_binary")
    return not any(getattr(types, test)(kind) for test in tests)


def _written(value: object) -> str:
    """Return a value as text; missing values are empty, and whole numbers have no `.0`.

    pandas stores whole numbers as floats if one of them is missing.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _require_distinct(title: str, header: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(filter(None, header)).items() if count > 1]
    if repeated:
        names = ", ".join(printable_line(repr(name)) for name in repeated)
        raise BadInput(f"{title}: several columns have the name {names}; rename them")
