"""Write and read the table of a run's predictions: `predictions.csv` and `predictions.parquet`.

Both files hold the same rows. adaptkit itself reads only the CSV, so that its results have one source; the Parquet file
is for other programs.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from adaptkit.events import Predictions, RunResult
from adaptkit.names import PREDICTIONS_FILE, PREDICTIONS_PARQUET_FILE
from adaptkit.system.files import read_file

#: columns that every table has; earlier versions of adaptkit did not write `group` and `fold`
REQUIRED = ("image", "test_set", "truth", "prediction", "base_prediction")
#: prefix of the columns with the probability of a class; no other column begins with it
PROBABILITY = "p_"
#: the probability of the predicted class, in tables of earlier versions of adaptkit
CONFIDENCE = "confidence"
#: columns for the ids of images: files, or other names
PATH, ID = "path", "id"
#: the end of the name of a file: a suffix that begins with a letter
SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}$")

#: columns of a table by name, as text
Table = Mapping[str, tuple[str, ...]]


def write_predictions(folder: Path, result: RunResult, is_base: bool = False) -> None:
    """Write a row for each prediction of each test set, as CSV and as Parquet.

    `base_prediction` is empty if the base has no head for these classes. Cells of a group or a fold that does not
    exist, and of unknown probabilities, are empty.
    """
    parts = [_part(name, rows, result.classes, is_base) for name, rows in result.predictions.items()]
    ids = [value for part in parts for value in part[ID] if value is not None]
    columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    identity = columns.pop(ID)
    if ids:
        columns = {PATH if all(map(SUFFIX.search, ids)) else ID: identity, **columns}
    base = columns.pop("base_prediction")
    probabilities = _probabilities(result)
    with (folder / PREDICTIONS_FILE).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*columns, *(f"{PROBABILITY}{name}" for name in result.classes), "base_prediction"])
        for row, shares, last in zip(zip(*columns.values(), strict=True), probabilities, base, strict=True):
            # `tolist` converts a row of numpy's numbers to Python's, which are formatted faster.
            cells = ["" if math.isnan(share) else probability_text(share) for share in shares.tolist()]
            writer.writerow([*row, *cells, last])
    _write_parquet(folder / PREDICTIONS_PARQUET_FILE, columns, result.classes, probabilities, base)


def probability_text(share: float) -> str:
    """Return a probability with seven significant digits, so that the logarithm of a small one is right as well."""
    return f"{share:.7g}"


def _part(name: str, rows: Predictions, classes: Sequence[str], is_base: bool) -> dict[str, list[Any]]:
    """Return the columns of one test set, without probabilities; missing values are None."""
    count = len(rows.truth)
    nothing = [None] * count
    base = rows.predicted if is_base else rows.base_predicted
    return {
        ID: nothing if rows.ids is None else list(map(_printable, rows.ids)),
        "image": rows.image.tolist(),
        "test_set": [name] * count,
        "group": nothing if rows.groups is None else list(map(_printable, rows.groups)),
        "fold": nothing if rows.fold is None else rows.fold.tolist(),
        "truth": [classes[number] for number in rows.truth],
        "prediction": [classes[number] for number in rows.predicted],
        "base_prediction": nothing if base is None else [classes[number] for number in base],
    }


def _printable(text: str) -> str:
    """Replace what UTF-8 cannot encode: bytes of a file name in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode()


def _probabilities(result: RunResult) -> numpy.ndarray[Any, Any]:
    """Return the probabilities of all rows, float32 `[n, classes]`; unknown ones are NaN."""
    parts = []
    for rows in result.predictions.values():
        unknown = numpy.full((len(rows.truth), len(result.classes)), numpy.nan)
        parts.append(unknown if rows.probabilities is None else rows.probabilities)
    return numpy.concatenate(parts).astype(numpy.float32)


def _write_parquet(
    path: Path,
    columns: Mapping[str, list[Any]],
    classes: Sequence[str],
    probabilities: numpy.ndarray[Any, Any],
    base: list[str | None],
) -> None:
    import pyarrow
    from pyarrow import parquet

    numbers = {"image": pyarrow.int64(), "fold": pyarrow.int64()}
    arrays = {name: pyarrow.array(values, numbers.get(name, pyarrow.string())) for name, values in columns.items()}
    for number, name in enumerate(classes):
        arrays[f"{PROBABILITY}{name}"] = pyarrow.array(probabilities[:, number], from_pandas=True)  # NaN is missing
    arrays["base_prediction"] = pyarrow.array(base, pyarrow.string())
    parquet.write_table(pyarrow.table(arrays), path)


def read_table(path: Path) -> Table:
    """Read a `predictions.csv` of this or an earlier version; raise ValueError if it is something else."""
    try:
        lines = csv.reader(io.StringIO(read_file(path, None).decode(), newline=""))
        heading = next(lines, [])
        columns = list(zip(*lines, strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    table = dict(zip(heading, columns, strict=False))
    if len(table) != len(columns) or len(table) != len(heading) or not table.keys() >= set(REQUIRED):
        raise ValueError("not a table of predictions")
    if CONFIDENCE not in table and not any(name.startswith(PROBABILITY) for name in table):
        raise ValueError("not a table of predictions")
    return table


def shares_of(table: Table) -> Iterator[dict[str, str]]:
    """Yield the known probabilities of each row by class, as text."""
    if CONFIDENCE in table:
        yield from ({name: share} for name, share in zip(table["prediction"], table[CONFIDENCE], strict=True))
        return
    by_class = {name[len(PROBABILITY) :]: cells for name, cells in table.items() if name.startswith(PROBABILITY)}
    for cells in zip(*by_class.values(), strict=True):
        yield dict(zip(by_class, cells, strict=True))


def classes_of(table: Table) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of the logits; None for a table of an earlier version."""
    names = tuple(name[len(PROBABILITY) :] for name in table if name.startswith(PROBABILITY))
    return names or None


def read_predictions(
    table: Table, classes: Sequence[str], tests: Sequence[str] = ("clean", "shifted")
) -> dict[str, Predictions]:
    """Return the predictions for these test sets of a run's table; raise ValueError if one is missing."""
    index = {name: number for number, name in enumerate(classes)}
    sets = numpy.array(table["test_set"])
    # Python converts the strings to numbers: numpy takes ten times as long.
    image = numpy.array(list(map(int, table["image"])))
    truth, predicted = (numpy.array([index[name] for name in table[key]]) for key in ("truth", "prediction"))
    base = numpy.array([index[name] if name else -1 for name in table["base_prediction"]])
    if CONFIDENCE in table:
        probabilities, confidence = None, _numbers(table[CONFIDENCE])
    else:
        by_class = [table.get(f"{PROBABILITY}{name}") for name in classes]
        if any(cells is None for cells in by_class):
            raise ValueError("its columns of probabilities are not the classes of the run")
        probabilities = numpy.stack([_numbers(cells or ()) for cells in by_class], axis=1)
        confidence = probabilities[numpy.arange(len(predicted)), predicted]
    predictions = {}
    for name in tests:
        rows = sets == name
        if not rows.any():
            raise ValueError(f"no {name} test set")
        known = probabilities is not None and not numpy.isnan(probabilities[rows]).any()
        fold = _cells(table, "fold", rows)
        predictions[name] = Predictions(
            image=image[rows],
            truth=truth[rows],
            predicted=predicted[rows],
            confidence=confidence[rows],
            base_predicted=base[rows] if (base[rows] >= 0).all() else None,
            probabilities=probabilities[rows] if probabilities is not None and known else None,
            ids=_cells(table, PATH, rows) or _cells(table, ID, rows),
            groups=_cells(table, "group", rows),
            fold=None if fold is None else numpy.array(list(map(int, fold))),
        )
    return predictions


def _numbers(cells: Sequence[str]) -> numpy.ndarray[Any, Any]:
    """Return numbers as float32; empty cells are NaN."""
    return numpy.array([float(cell or "nan") for cell in cells], dtype=numpy.float32)


def _cells(table: Table, name: str, rows: numpy.ndarray[Any, Any]) -> tuple[str, ...] | None:
    """Return the cells of a column in these rows; None if the column is missing or has no values there."""
    if name not in table:
        return None
    cells = tuple(itertools.compress(table[name], rows))
    return cells if any(cells) else None
