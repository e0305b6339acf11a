"""The reader `picture`: JPEG, PNG and other formats of Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.contracts import Raster, Reader


class Picture:
    """Pictures in formats of Pillow, such as JPEG and PNG."""

    name: ClassVar[str] = "picture"
    suffixes: ClassVar[tuple[str, ...]] = (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".avif"),
        *(".heif", ".heic", ".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".pfm", ".qoi", ".ico", ".icns", ".sgi", ".rgb", ".rgba", ".bw", ".pcx", ".dds", ".tga"),
    )

    def read(self, path: Path) -> Raster:
        """Return the values as they are stored: one band for grey pictures, 3 for colours, and further ones for alpha.

        Pictures are turned upright, and palettes are resolved.
        """
        from adaptkit.contracts import Raster
        from adaptkit.data.sets.read_picture import stored_values

        return Raster(stored_values(path))


@hookimpl
def adaptkit_readers() -> list[type[Reader]]:
    """Return the reader `picture`."""
    return [Picture]
