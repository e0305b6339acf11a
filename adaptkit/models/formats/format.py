"""What a format is: how it is written, and how its files give logits again."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.errors import BadInput, suggestion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.models.trained import TrainedRun

Logits = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Exported:
    """What is exported: a run, its merged model on the CPU in evaluation mode, and two of its images as an example."""

    trained: TrainedRun
    model: nn.Module
    example: Tensor


@dataclass(frozen=True)
class Format:
    """A format of exported models.

    `require` raises BadInput for a run that cannot be written so, before anything is. `write` puts the files into an
    empty folder. `read` returns, from the files alone, the functions from images `[n, c, h, w]` to logits that the
    export is verified by, named. `usage` is the README's Markdown on how to use the files. Logits may differ by
    `tolerance`, large ones by that share.
    """

    name: str
    require: Callable[[TrainedRun], None]
    write: Callable[[Path, Exported], None]
    read: Callable[[Path, TrainedRun], dict[str, Logits]]
    usage: Callable[[TrainedRun], str]
    tolerance: float = 1e-4


def anything(trained: TrainedRun) -> None:
    """Take every run."""


def plain_only(trained: TrainedRun) -> None:
    """Take runs whose merged model is the plain backbone; raise BadInput for others."""
    if not trained.is_plain(trained.merged()):
        raise BadInput(
            f"strategy {trained.card['strategy']} leaves layers of its own in the model, which the plain backbone has "
            "not: export with --to torch-export, onnx or mlflow"
        )


#: format -> the module that holds it
FORMATS = {
    "merged": "adaptkit.models.formats.merged",
    "peft": "adaptkit.models.formats.peft",
    "torch-export": "adaptkit.models.formats.torch_export",
    "onnx": "adaptkit.models.formats.onnx",
    "mlflow": "adaptkit.models.formats.mlflow_model",
}


def find_format(name: str) -> Format:
    """Return the format of that name; raise BadInput, with the nearest, when there is none."""
    if name not in FORMATS:
        raise BadInput(f"--to: unknown format {name!r}{suggestion(name, FORMATS)}")
    found: Format = importlib.import_module(FORMATS[name]).FORMAT
    return found
