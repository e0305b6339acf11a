"""Code for exported models that reads image files without adaptkit: the module with which adaptkit reads them."""

from __future__ import annotations

import inspect
from pathlib import Path

READER = "read_picture.py"


def write_reader(folder: Path) -> None:
    """Copy the module that decodes image files into the folder of an exported model."""
    from adaptkit.data.sets import read_picture

    (folder / READER).write_text(inspect.getsource(read_picture), encoding="utf-8")


def reading(*modules: str) -> str:
    """Return Python code that imports `modules` and defines `card` and `read(path)`, for the README."""
    others = "\n".join(f"import {name}" for name in sorted({"torch", *modules}))
    return f"""\
import json

{others}
from read_picture import read_picture

card = json.load(open("model.json", encoding="utf-8"))


def read(path):
    return torch.from_numpy(read_picture(path, card["size"], card["channels"])) / 255
"""
