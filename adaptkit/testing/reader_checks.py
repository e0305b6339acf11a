"""Checks of a reader."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from adaptkit.contracts import Raster, Reader
from adaptkit.data.raw_values import Conversion, RawValuesError
from adaptkit.errors import listed
from adaptkit.testing.outcomes import CheckFailed, NotTried, described, require, watched

#: number of example files to read
FILES = 8


@dataclass(frozen=True)
class Decoding:
    """A reader, created by `create()`, and a folder with example files."""

    create: Callable[[], Reader]
    data_dir: Path

    def files(self) -> list[Path]:
        """Return the first files in the folder that the reader can read; raise NotTried if there are none."""
        suffixes = tuple(self.create().suffixes)
        files = sorted(path for path in self.data_dir.rglob("*") if path.name.lower().endswith(suffixes))[:FILES]
        if not files:
            raise NotTried(f"no file {' or '.join(suffixes)} in {self.data_dir}; name a folder with --data-dir")
        return files

    def rasters(self) -> dict[Path, Any]:
        """Return what the reader returns for each example file; raise NotTried if one cannot be read."""
        reader = self.create()
        try:
            with watched():
                return {path: reader.read(path) for path in self.files()}
        except NotTried:
            raise
        except Exception as error:
            raise NotTried("a file cannot be read") from error


def reads_its_files(decoding: Decoding) -> None:
    """Check that each example file gives a Raster of numbers."""
    reader = decoding.create()
    for path in decoding.files():
        try:
            with watched():
                raster: Any = reader.read(path)
        except Exception as error:
            raise CheckFailed(f"{path.name}: read() raises {described(error)}") from error
        require(isinstance(raster, Raster), f"{path.name}: read() returns {type(raster).__name__}, not a Raster")
        try:
            values, _ = Conversion(1).select(raster.values, raster.missing)
        except (RawValuesError, ValueError) as error:
            raise CheckFailed(f"{path.name}: {error}") from error
        names = raster.bands
        if names is not None:
            require(len(names) == len(values), f"{path.name}: {len(names)} names for {len(values)} bands")


def reads_the_same_each_time(decoding: Decoding) -> None:
    """Check that a file gives the same values when read twice."""
    again = decoding.rasters()
    for path, raster in decoding.rasters().items():
        same = numpy.array_equal(raster.values, again[path].values, equal_nan=raster.values.dtype.kind == "f")
        require(same, f"{path.name}: reading it twice gives different values")


def refuses_an_empty_file(decoding: Decoding) -> None:
    """Check that a file of 0 bytes raises an error."""
    reader = decoding.create()
    with tempfile.TemporaryDirectory() as folder:
        for suffix in reader.suffixes:
            path = Path(folder, f"empty{suffix}")
            path.touch()
            try:
                with watched():
                    reader.read(path)
            except Exception:
                continue
            raise CheckFailed(f"a file {suffix} of 0 bytes gives an image instead of an error")


def can_be_sent_to_workers(decoding: Decoding) -> None:
    """Check that the reader can be pickled, as worker processes decode images."""
    try:
        pickle.dumps(decoding.create())
    except Exception as error:
        raise CheckFailed(f"it cannot be pickled: {described(error)}") from error


def changes_no_global_state(decoding: Decoding) -> None:
    """Check that reading changes no global state."""
    decoding.rasters()  # imports happen here, before global state is compared
    reader = decoding.create()
    with watched() as changes:
        for path in decoding.files():
            reader.read(path)
    require(not changes, f"it changes {listed(changes)} for the whole process")


#: in the order of the output
CHECKS: dict[str, Callable[[Decoding], None]] = {
    "reads its files": reads_its_files,
    "reads the same each time": reads_the_same_each_time,
    "refuses an empty file": refuses_an_empty_file,
    "can be sent to workers": can_be_sent_to_workers,
    "changes no global state": changes_no_global_state,
}
