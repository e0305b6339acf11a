"""Load weights from the Hugging Face Hub, its local cache, or a file."""

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
from adaptkit.adapters.weights import SUFFIXES, file_digest, read_weight_file, stamp
from adaptkit_timm.configs import classifier_names
from adaptkit_timm.hub import fetch

#: names of timm's weights; all backbones accept `default`
PRETRAINED = ("pretrained", "default")


@dataclass(frozen=True)
class Weights:
    """Tensors by timm's names, and the number of classes (None: as in timm's config)."""

    tensors: Mapping[str, Tensor]
    classes: int | None

    def overlay(self) -> dict[str, Any]:
        """Return config values with which timm loads these weights, without a classifier for other classes."""
        values = {"state_dict": dict(self.tensors)}
        return values if self.classes is None else values | {"num_classes": self.classes, "label_offset": 0}


def load_weights(name: str, config: PretrainedCfg, source: str) -> Weights | None:
    """Return the weights of `source` (pretrained, default, or a path), or None for `none`.

    Raises BadInput if the weights cannot be loaded or do not fit the model.
    """
    if source == "none":
        return None
    if source in PRETRAINED:
        return Weights(_read(*stamp(fetch(name, config))), None)
    return _fitted(name, *stamp(_existing_file(source)))


def weights_id(name: str, config: PretrainedCfg, source: str) -> str:
    """Return an identifier of these weights: the Hub's name and commit, or the sha256 of the file."""
    if source == "none":
        return "none"
    if source in PRETRAINED:
        folder = fetch(name, config).parent
        commit = f"@{folder.name[:12]}" if folder.parent.name == "snapshots" else ""
        return f"{config.hf_hub_id}{commit}"
    return f"sha256:{file_digest(_existing_file(source))}"


def _existing_file(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise BadInput(f"backbone.weights: must be pretrained, default, none or an existing file, got {source!r}")
    return path


@functools.lru_cache(maxsize=1)
def _read(path: Path, _modified: int, _bytes: int) -> Mapping[str, Tensor]:
    """Return the tensors of a file by name, in order. Cached, since the models of an experiment share them."""
    if path.suffix not in SUFFIXES:
        raise BadInput(f"weights: {path} cannot be read: its name must end in {', '.join(SUFFIXES)}")
    return read_weight_file(path)


@functools.lru_cache(maxsize=1)
def _fitted(name: str, path: Path, modified: int, size: int) -> Weights:
    """Return the tensors of a file under timm's names: by name, by timm's conversion, or by position."""
    tensors = _read(path, modified, size)
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    # Temporary models must not affect the random numbers of the real model.
    with torch.random.fork_rng(devices=[]):
        expected = timm.create_model(name).state_dict()
        named = (
            _by_name(tensors, expected, config) or _converted(name, tensors) or _by_position(tensors, expected, config)
        )
    if named is None:
        raise BadInput(f"backbone.weights: {path} does not fit timm's {name}: {_difference(tensors, expected)}")
    rows = next((len(named[key]) for key in named if key in classifier_names(config)), 0)
    return Weights(named, rows)


def _by_name(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: PretrainedCfg
) -> Mapping[str, Tensor] | None:
    """Return the tensors if they have the names of the model; the classifier may be missing."""
    missing, foreign = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    return tensors if not foreign and missing <= classifier_names(config) else None


def _converted(name: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Return the tensors after timm's conversion of an author's file, or None if any are unused or missing."""
    try:
        state = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(tensors)}
        ).state_dict()
    except Exception:  # conversions raise many types for other files
        return None
    return dict(state)


def _by_position(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: PretrainedCfg
) -> Mapping[str, Tensor] | None:
    """Return the tensors under the names of the model if number and shapes match, except the number of classes."""
    named = dict(zip(expected, tensors.values(), strict=False))
    same = len(tensors) == len(expected) and all(
        named[key].shape[1:] == expected[key].shape[1:] and named[key].ndim == expected[key].ndim
        if key in classifier_names(config)
        else named[key].shape == expected[key].shape
        for key in expected
    )
    return named if same else None


def _difference(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describe briefly how the tensors of a file differ from those of the model."""
    if len(tensors) != len(expected):
        return f"it has {len(tensors)} tensors, the model has {len(expected)}"
    for (theirs, actual), (ours, wanted) in zip(tensors.items(), expected.items(), strict=True):
        if actual.shape != wanted.shape:
            return f"its {theirs} has shape {list(actual.shape)}, the model's {ours} {list(wanted.shape)}"
    return "its tensors have different names"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().split("\n")[0]
