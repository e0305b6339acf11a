"""Write a trained model in formats that others read: one file a format, imported when it is asked for."""

from __future__ import annotations

import importlib

from adaptkit.errors import BadInput, suggestion
from adaptkit.exports.formats import Format

#: format -> the module that holds it
FORMATS = {
    "merged": "adaptkit.exports.merged",
    "peft": "adaptkit.exports.peft",
    "torch-export": "adaptkit.exports.torch_export",
    "onnx": "adaptkit.exports.onnx",
    "mlflow": "adaptkit.exports.mlflow_model",
}


def find_format(name: str) -> Format:
    """Return the format of that name; raise BadInput, with the nearest, when there is none."""
    if name not in FORMATS:
        raise BadInput(f"--to: unknown format {name!r}{suggestion(name, FORMATS)}")
    found: Format = importlib.import_module(FORMATS[name]).FORMAT
    return found
