"""Where a model's weights come from: the Hugging Face Hub, its cache on this machine, or a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor

from adaptkit import BadInput
from adaptkit.adapters.weight_files import SUFFIXES, file_digest, read_weight_file, stamp
from adaptkit_timm.configs import classifier_names
from adaptkit_timm.hub import fetch

#: the words for timm's own weights: its, and the one that all backbones of adaptkit take
PRETRAINED = ("pretrained", "default")


@dataclass(frozen=True)
class Weights:
    """Tensors by the names that timm gives them, and the number of classes (None: timm knows)."""

    tensors: Mapping[str, Tensor]
    classes: int | None

    def overlay(self) -> dict[str, Any]:
        """Return what timm is told, so that it loads these and leaves out a classifier of other classes."""
        own = {"state_dict": dict(self.tensors)}
        return own if self.classes is None else own | {"num_classes": self.classes, "label_offset": 0}


def load_weights(name: str, config: PretrainedCfg, source: str) -> Weights | None:
    """Return the weights that `source` (pretrained or default, none, or a path) stands for; None for none.

    Raises BadInput, in one line, when they cannot be had or do not fit the model.
    """
    if source == "none":
        return None
    if source in PRETRAINED:
        return Weights(_read(*stamp(fetch(name, config))), None)
    return _fitted(name, *stamp(_found(source)))


def weights_id(name: str, config: PretrainedCfg, source: str) -> str:
    """Return what tells these weights from others: the Hub's name and commit, or the sha256 of the file."""
    if source == "none":
        return "none"
    if source in PRETRAINED:
        folder = fetch(name, config).parent
        commit = f"@{folder.name[:12]}" if folder.parent.name == "snapshots" else ""
        return f"{config.hf_hub_id}{commit}"
    return f"sha256:{file_digest(_found(source))}"


def _found(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise BadInput(
            f"backbone.weights: must be pretrained, default, none or a file, and there is no file {source!r}"
        )
    return path


@functools.lru_cache(maxsize=1)
def _read(path: Path, _modified: int, _bytes: int) -> Mapping[str, Tensor]:
    """Return the tensors in a file by their names, in their order: it is read once for the models of an experiment."""
    if path.suffix not in SUFFIXES:
        raise BadInput(f"weights: {path} cannot be read: its name must end in {', '.join(SUFFIXES)}")
    return read_weight_file(path)


@functools.lru_cache(maxsize=1)
def _fitted(name: str, path: Path, modified: int, size: int) -> Weights:
    """Return a file's tensors under timm's names: they have them, timm converts them, or their order tells."""
    tensors = _read(path, modified, size)
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    # Models made only to look at draw nothing from the stream that the real one's weights come from.
    with torch.random.fork_rng(devices=[]):
        own = timm.create_model(name).state_dict()
        named = _by_name(tensors, own, config) or _converted(name, tensors) or _by_position(tensors, own, config)
    if named is None:
        raise BadInput(f"backbone.weights: {path} does not fit timm's {name}: {_difference(tensors, own)}")
    rows = next((len(named[key]) for key in named if key in classifier_names(config)), 0)
    return Weights(named, rows)


def _by_name(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], config: PretrainedCfg
) -> Mapping[str, Tensor] | None:
    """Return the tensors if they have the model's names, be it without the classifier."""
    missing, foreign = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    return tensors if not foreign and missing <= classifier_names(config) else None


def _converted(name: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Return what timm makes of a file of the model's authors; None if anything is left over or missing."""
    try:
        state = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(tensors)}
        ).state_dict()
    except Exception:  # a conversion trips in its own way over what it is not for
        return None
    return dict(state)


def _by_position(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], config: PretrainedCfg
) -> Mapping[str, Tensor] | None:
    """Return the tensors under the model's names if their number and all shapes agree, classes aside."""
    named = dict(zip(own, tensors.values(), strict=False))
    same = len(tensors) == len(own) and all(
        named[key].shape[1:] == own[key].shape[1:] and named[key].ndim == own[key].ndim
        if key in classifier_names(config)
        else named[key].shape == own[key].shape
        for key in own
    )
    return named if same else None


def _difference(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Say in a few words what the file has and the model has not."""
    if len(tensors) != len(own):
        return f"it holds {len(tensors)} tensors, the model {len(own)}"
    for (theirs, given), (ours, wanted) in zip(tensors.items(), own.items(), strict=True):
        if given.shape != wanted.shape:
            return f"its {theirs} is {list(given.shape)} where the model's {ours} is {list(wanted.shape)}"
    return "its tensors have other names"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().split("\n")[0]
