"""Code for exported models that reads image files without adaptkit: the modules with which adaptkit reads them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.data.raw_values import RAW_VALUES, READERS

if TYPE_CHECKING:
    from adaptkit.models.trained import TrainedRun


def write_reader(folder: Path, trained: TrainedRun) -> None:
    """Copy the modules that read image files as in training into the folder of an exported model."""
    from adaptkit.data import raw_values
    from adaptkit.data.readers import decode
    from adaptkit.data.sets import read_picture

    modules = [read_picture, raw_values, decode] if RAW_VALUES in trained.described_preprocessing else [read_picture]
    for module in modules:
        source = inspect.getsource(module).replace(f"from {read_picture.__name__} import", "from read_picture import")
        (folder / f"{module.__name__.rpartition('.')[2]}.py").write_text(source, encoding="utf-8")


def reading(trained: TrainedRun, *modules: str) -> str:
    """Return Python code that imports `modules` and defines `card` and `read(path)`, for the README."""
    others = "\n".join(f"import {name}" for name in sorted({"torch", *modules}))
    if RAW_VALUES in trained.described_preprocessing:
        return f"""\
import json

{others}
from decode import decode
from raw_values import Conversion

card = json.load(open("model.json", encoding="utf-8"))
convert = Conversion.of(card["preprocessing"]["{RAW_VALUES}"])


def read(path):
    values, missing, names = decode(path, card["preprocessing"]["{READERS}"])
    return torch.from_numpy(convert(values, missing, names))
"""
    return f"""\
import json

{others}
from read_picture import read_picture

card = json.load(open("model.json", encoding="utf-8"))


def read(path):
    return torch.from_numpy(read_picture(path, card["size"], card["channels"])) / 255
"""


def reading_modules(trained: TrainedRun) -> str:
    """Return the sentence about the modules that read image files, for the README."""
    if RAW_VALUES in trained.described_preprocessing:
        return (
            "`decode.py` and `raw_values.py` read image files as in training; they need NumPy, Pillow, and astropy for "
            "FITS or\ntifffile for TIFF."
        )
    return "`read_picture.py` reads image files as in training; it needs NumPy and Pillow."
