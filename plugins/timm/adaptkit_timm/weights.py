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
from adaptkit_timm.configs import HUB, PACKAGED, architecture_of, classifier_names
from adaptkit_timm.hub import fetch

#: names of timm's weights; all backbones accept `default`
PRETRAINED = ("pretrained", "default")

#: sha256 of files with other names whose tensors are in the order of timm's model, and the name of that model
KNOWN_ORDER = {packaged.sha256: packaged.architecture for packaged in PACKAGED.values()}


@dataclass(frozen=True)
class Weights:
    """Tensors by timm's names, and the number of classes (None: as in timm's config)."""

    tensors: Mapping[str, Tensor]
    classes: int | None

    def overlay(self) -> dict[str, Any]:
        """Return config values with which timm loads these weights, without a classifier for other classes."""
        values = {"state_dict": dict(self.tensors)}
        return values if self.classes is None else values | {"num_classes": self.classes, "label_offset": 0}


def load_weights(name: str, config: PretrainedCfg, source: str, by: str) -> Weights | None:
    """Return the weights of `source` (pretrained, default, or a path), or None for `none`.

    `by` says how the tensors of a file are assigned: by name, or by position if their names fit nothing. Raises
    BadInput if the weights cannot be loaded or do not fit the model.
    """
    if source == "none":
        return None
    architecture = architecture_of(name)
    if source in PRETRAINED and name in PACKAGED:
        return _fitted(architecture, *stamp(PACKAGED[name].path(name)), in_order=True)
    if source in PRETRAINED:
        of_hub = config.num_classes if name.startswith(HUB) else None
        return Weights(_read(*stamp(fetch(name, config))), of_hub)
    path = _existing_file(source)
    in_order = by == "position" or KNOWN_ORDER.get(file_digest(path)) == architecture.partition(".")[0]
    return _fitted(architecture, *stamp(path), in_order=in_order)


def weights_id(name: str, config: PretrainedCfg, source: str) -> str:
    """Return an identifier of these weights: the Hub's name and commit, or the sha256 of the file."""
    if source == "none":
        return "none"
    if source in PRETRAINED and name in PACKAGED:
        return f"sha256:{PACKAGED[name].sha256}"
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
def _fitted(name: str, path: Path, modified: int, size: int, *, in_order: bool) -> Weights:
    """Return the tensors of a file under timm's names: by name, by timm's conversion, or `in_order` by position."""
    tensors = _read(path, modified, size)
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    # Temporary models must not affect the random numbers of the real model.
    with torch.random.fork_rng(devices=[]):
        expected = timm.create_model(name).state_dict()
        named, ordered = _by_name(tensors, expected, config), None
        if named is None:
            converted = _converted(name, tensors)
            if converted is not None and _are_same(converted, _converted(name, dict(reversed(tensors.items())))):
                named = converted
            else:  # timm converts files of a few models, such as NextViT, by position
                ordered = converted or _by_position(tensors, expected, config)
    if named is None and in_order:
        named = ordered
    if named is None:
        difference = _difference(tensors, expected)
        if ordered is not None:
            difference += (
                "; if they are in the order of timm's, --set backbone.weights_by=position assigns them by position"
            )
        raise BadInput(f"backbone.weights: {path} does not fit timm's {name}: {difference}")
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


def _are_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None) -> bool:
    return second is not None and all(torch.equal(first[key], second[key]) for key in first)


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
    for theirs, ours in zip(tensors, expected, strict=True):
        if tensors.keys() != expected.keys() and theirs != ours:
            return f"its tensors have other names, such as {theirs} where the model has {ours}"
        if ours in tensors and tensors[ours].shape != expected[ours].shape:
            return f"its {ours} has shape {list(tensors[ours].shape)}, the model's {list(expected[ours].shape)}"
    return "its tensors have another order"
