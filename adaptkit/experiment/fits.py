"""The results of the trainings of one run: one, or one for each fold; how they are kept, and combined."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptkit.adapters.weights import pack, unpack
from adaptkit.data.domains import TestSet
from adaptkit.data.protocols import Fit
from adaptkit.data.split_files import with_folds
from adaptkit.events import Epoch, Predictions
from adaptkit.experiment.inner_tuning import FitTuning
from adaptkit.names import ADAPTER_CARD_FILE, ADAPTER_WEIGHTS_FILE
from adaptkit.system.files import read_file, write_bytes
from adaptkit.training.objective import predictions_of

#: names of tensors in a fold's file
LOGITS, FILES = "logits/", "files/"


@dataclass(frozen=True)
class FitResult:
    """The result of one training: logits by test set on the CPU, epochs, adapter files, and metrics of one model.

    The logits of the target test set are those of the images that this training evaluates. `correct` is the number of
    these images that are right at each severity of the shift. `prefix` names the last frozen layers. `tuning` is how
    this training chose its values, if it did.
    """

    logits: Mapping[str, Tensor]
    epochs: tuple[Epoch, ...]
    files: Mapping[str, Path]
    metrics: Mapping[str, float]
    correct: Mapping[float, int]
    prefix: str
    tuning: FitTuning | None = None


def write_fit(path: Path, result: FitResult) -> None:
    """Write the result of a finished fold, with its adapter, to one file, atomically. Raises OSError."""
    tensors = {f"{LOGITS}{name}": values for name, values in result.logits.items()}
    for name, file in result.files.items():
        tensors[f"{FILES}{name}"] = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
    facts = {
        "epochs": [dataclasses.asdict(epoch) for epoch in result.epochs],
        "metrics": dict(result.metrics),
        "correct": [[severity, count] for severity, count in result.correct.items()],
        "prefix": result.prefix,
        "tuning": None if result.tuning is None else dataclasses.asdict(result.tuning),
    }
    tensors["facts"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    write_bytes(path, pack(tensors))


def read_fit(path: Path, folder: Path) -> FitResult:
    """Read the result of a finished fold, and write its adapter to a folder.

    Raises FileNotFoundError if there is none, and ValueError or KeyError if the file is damaged.
    """
    tensors = unpack(read_file(path, None))
    facts: dict[str, Any] = json.loads(bytes(tensors["facts"].tolist()))
    files = {}
    for name in (ADAPTER_WEIGHTS_FILE, ADAPTER_CARD_FILE):
        files[name] = folder / name
        write_bytes(files[name], bytes(tensors[f"{FILES}{name}"].tolist()))
    return FitResult(
        logits={name.removeprefix(LOGITS): tensor for name, tensor in tensors.items() if name.startswith(LOGITS)},
        epochs=tuple(Epoch(**epoch) for epoch in facts["epochs"]),
        files=files,
        metrics=facts["metrics"],
        correct={float(severity): int(count) for severity, count in facts["correct"]},
        prefix=str(facts["prefix"]),
        tuning=None if facts["tuning"] is None else FitTuning.read(facts["tuning"]),
    )


def split_of(text: str, fits: Sequence[Fit], pool: int) -> str:
    """Return the content of a run's split.json: that of the experiment, with the folds of the run if it has any."""
    if len(fits) == 1:
        return text
    folds = torch.empty(pool, dtype=torch.int64)
    for number, fit in enumerate(fits):
        assert fit.evaluated is not None
        folds[fit.evaluated] = number
    return with_folds(text, folds.tolist())


def mean_epochs(results: Sequence[FitResult]) -> tuple[Epoch, ...]:
    """Return the epochs of one training, or for each epoch the means over the folds."""
    if len(results) == 1:
        return results[0].epochs
    return tuple(_mean_epoch(epochs) for epochs in zip(*(result.epochs for result in results), strict=True))


def _mean_epoch(epochs: Sequence[Epoch]) -> Epoch:
    means: dict[str, Any] = {}
    for item in dataclasses.fields(Epoch):
        values = [getattr(epoch, item.name) for epoch in epochs]
        means[item.name] = None if None in values else sum(values) / len(values)
    return Epoch(**{**means, "number": epochs[0].number, "fold": None})


def pooled_predictions(
    results: Sequence[FitResult],
    fits: Sequence[Fit],
    tests: Mapping[str, TestSet],
    base_logits: Mapping[str, Tensor],
) -> dict[str, Predictions]:
    """Return the predictions of a run by test set.

    With folds, each target image has the prediction of the model that has not seen it, and the source test images have
    those of all models, one model after the other.
    """
    pooled = {}
    for name, test in tests.items():
        rows = [_evaluated(name, fit, test) for fit in fits]
        index = torch.cat(rows)
        folds = torch.cat([torch.full((len(part),), number) for number, part in enumerate(rows)])
        logits = torch.cat([result.logits[name] for result in results])
        if name == "shifted" and len(fits) > 1:  # in the order of the images
            order = index.argsort(stable=True)
            index, folds, logits = index[order], folds[order], logits[order]
        base = base_logits.get(name)
        predictions = predictions_of(
            logits,
            image=test.index[index],
            truth=test.labels[index],
            base_logits=None if base is None else base[index.to(base.device)],
            ids=_at(test.ids, index),
            groups=_at(test.groups, index),
        )
        pooled[name] = dataclasses.replace(predictions, fold=folds.numpy()) if len(fits) > 1 else predictions
    return pooled


def _at(values: tuple[str, ...] | None, index: Tensor) -> tuple[str, ...] | None:
    return None if values is None else tuple(values[position] for position in index.tolist())


def _evaluated(name: str, fit: Fit, test: TestSet) -> Tensor:
    return fit.evaluated if name == "shifted" and fit.evaluated is not None else torch.arange(len(test))
