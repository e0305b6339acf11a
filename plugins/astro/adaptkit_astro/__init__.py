"""Radio galaxies of the FIRST survey as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit import hookimpl

if TYPE_CHECKING:
    from adaptkit.contracts import Corpus, Reading

#: default width and height of images in pixels
SIDE = 64


class FirstGalaxies:
    """2,158 radio galaxies of the FIRST survey, grey, 4 classes; scholarly, educational and private use; no network.

    The images are those of the package firstgalaxydata (Griese and others, 2023). Columns of the images: `catalogue`,
    which is also `domain`, `split`, `ra` and `dec` in degrees, and `group`: galaxies whose images overlap on the sky.
    """

    name: ClassVar[str] = "first-galaxies"

    def __init__(self, size: int = SIDE) -> None:
        self._size = size

    def at(self, reading: Reading) -> FirstGalaxies:
        """Return the data set with images of this size."""
        return FirstGalaxies(reading.size)

    def load(self, data_dir: Path) -> Corpus:
        """Return the images, which are decoded on access; `data_dir` is not used."""
        from adaptkit_astro.galaxies import read_corpus

        return read_corpus(self._size)


@hookimpl
def adaptkit_datasets() -> list[type]:
    """Return the data set `first-galaxies`."""
    return [FirstGalaxies]
