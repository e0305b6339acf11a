"""Formats of exported models: write files, read them for verification, and describe them in the README."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from adaptkit.errors import BadInput, suggestion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.models.trained import TrainedRun

Logits = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Exported:
    """Input of an export: the run, its merged model (on the CPU, in evaluation mode), and two example images."""

    trained: TrainedRun
    model: nn.Module
    example: Tensor


@dataclass(frozen=True)
class Format:
    """A format of exported models.

    `require` raises BadInput for a run that the format cannot hold, before anything is written. `write` writes the
    files to an empty folder. `read` loads the files and returns functions from images `[n, c, h, w]` to logits by name,
    which verify the export. `usage` returns the README's section on loading the model. `tolerance` is the largest
    difference of logits, relative for logits above 1. `scaled` says whether the files contain the temperature of a
    calibrated model; if not, their card and the code of the README do.
    """

    name: str
    require: Callable[[TrainedRun], None]
    write: Callable[[Path, Exported], None]
    read: Callable[[Path, TrainedRun], dict[str, Logits]]
    usage: Callable[[TrainedRun], str]
    tolerance: float = 1e-4
    scaled: bool = True


def anything(trained: TrainedRun) -> None:
    """Accept every run."""


def plain_only(trained: TrainedRun) -> None:
    """Raise BadInput unless the merged model of the run is the plain backbone, with equal values of tied tensors."""
    merged = trained.merged()
    if not trained.is_plain(merged):
        raise BadInput(
            f"strategy {trained.card['strategy']} adds layers that cannot be merged into the plain backbone; "
            "export with --to torch-export, onnx or mlflow"
        )
    state = merged.state_dict()
    for names in _tied(trained.base()):
        if not all(torch.equal(state[names[0]], state[name]) for name in names[1:]):
            raise BadInput(
                f"backbone {trained.card['backbone']} ties {', '.join(names)}, and strategy {trained.card['strategy']} "
                "gave them different values; export with --to torch-export, onnx or mlflow"
            )


def _tied(model: nn.Module) -> list[list[str]]:
    """Return the names of tensors that a model uses in several places, in groups."""
    places: dict[int, list[str]] = defaultdict(list)
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        places[id(tensor)].append(name)
    kept = set(model.state_dict())
    return [names for names in places.values() if len(names) > 1 and kept.issuperset(names)]


#: module of each format
FORMATS = {
    "merged": "adaptkit.models.formats.merged",
    "peft": "adaptkit.models.formats.peft",
    "torch-export": "adaptkit.models.formats.torch_export",
    "onnx": "adaptkit.models.formats.onnx",
    "mlflow": "adaptkit.models.formats.mlflow_model",
}


def find_format(name: str) -> Format:
    """Return the format of this name; raise BadInput with the nearest name for an unknown one."""
    if name not in FORMATS:
        raise BadInput(f"--to: unknown format {name!r}{suggestion(name, FORMATS)}")
    chosen: Format = importlib.import_module(FORMATS[name]).FORMAT
    return chosen
