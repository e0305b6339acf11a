"""Read image files with the reader of each: as pictures, or as raw values that are converted to floats in 0..1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.contracts import Raster, Reader, Reading
from adaptkit.data.raw_values import Conversion, RawValuesError
from adaptkit.data.readers.arrays import NumpyFile
from adaptkit.data.readers.decode import is_picture
from adaptkit.data.readers.fits import Fits
from adaptkit.data.readers.picture import Picture
from adaptkit.data.readers.tiff import Tiff
from adaptkit.data.sets.read_picture import UnreadableError
from adaptkit.plugins.components import options_of

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

#: types of errors whose message alone says what is wrong
PLAIN_ERRORS = (ValueError, OSError)
BUILT_IN: tuple[type[Any], ...] = (Picture, NumpyFile, Fits, Tiff)


def suffixes_of(readers: Iterable[Reader | type[Reader]]) -> tuple[str, ...]:
    """Return the ends of the names of all files that these readers can read."""
    return tuple(dict.fromkeys(suffix for reader in readers for suffix in reader.suffixes))


def is_image_name(name: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a file is an image by the end of its name; a file whose name has no end may be a picture."""
    last = name.rpartition("/")[2].lower()
    return "." not in last or last.endswith(suffixes)


@dataclass(frozen=True)
class Readers:
    """The readers of image files; of several readers of a suffix, the last one is used."""

    readers: tuple[Reader, ...]

    def find(self, path: Path) -> Reader | None:
        """Return the reader of a file; None if it is read as a picture, as are files of unknown kinds."""
        name = path.name.lower()
        found: Reader | None = None
        longest = 0
        for reader in self.readers:
            length = max((len(suffix) for suffix in reader.suffixes if name.endswith(suffix)), default=0)
            if length >= longest and length:
                found, longest = reader, length
        is_plain = isinstance(found, Picture) or (isinstance(found, Tiff) and is_picture(path))
        return None if is_plain else found


def _options(reader: Reader) -> dict[str, Any]:
    return {key: getattr(reader, key) for key in options_of(type(reader))}


def readers_of(given: Sequence[Reader]) -> Readers:
    """Return readers, or the built-in ones if there are none."""
    return Readers(tuple(given) or tuple(cls() for cls in BUILT_IN))


@dataclass(frozen=True)
class RawFiles:
    """Image files whose raw values are converted to floats in 0..1."""

    readers: Readers
    conversion: Conversion

    @property
    def key(self) -> str:
        """Return the readers with their options, and the conversion, as text."""
        readers = [(type(reader).__qualname__, _options(reader)) for reader in self.readers.readers]
        return repr((readers, self.conversion))

    def raster(self, path: Path) -> Raster:
        """Return the raw values in a file; raise UnreadableError if it cannot be read."""
        reader = self.readers.find(path) or Picture()
        try:
            if reason := getattr(reader, "unavailable", ""):
                raise UnreadableError(reason)
            if not path.is_file():
                raise UnreadableError("not a file" if path.exists() else "there is no such file")
            raster: Any = reader.read(path)
        except UnreadableError:
            raise
        except Exception as error:  # readers of plugins raise many types of errors
            raise UnreadableError(_reason(error)) from error
        if not isinstance(raster, Raster):
            raise UnreadableError(f"reader {reader.name} returns {type(raster).__name__}, not a Raster")
        return raster

    def read(self, path: Path) -> tuple[NDArray[numpy.float32], int]:
        """Return the converted values in a file, float32 `[bands, size, size]`, and the number of missing values."""
        return converted(self.conversion, self.raster(path))


def converted(conversion: Conversion, raster: Raster) -> tuple[NDArray[numpy.float32], int]:
    """Return converted values, and the number of missing ones; raise UnreadableError if that fails."""
    try:
        chosen, absent = conversion.select(raster.values, raster.missing, raster.bands)
        count = int(absent.sum())
        return conversion.resized(conversion.stretched(chosen, absent)), count
    except RawValuesError as error:
        raise UnreadableError(str(error)) from error


def raw_files(reading: Reading) -> RawFiles:
    """Return how to read raw values with this configuration."""
    return RawFiles(readers_of(reading.readers), Conversion(reading.size, **reading.image))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, PLAIN_ERRORS) and text else f"damaged: {text or type(error).__name__}"
