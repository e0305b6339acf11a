"""Write adapters, the tensors that a strategy changed, to files, and load them onto a fresh base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.adapters.weights import pack, unpack
from adaptkit.errors import BadInput
from adaptkit.names import ADAPTER_CARD_FILE, ADAPTER_WEIGHTS_FILE
from adaptkit.system.files import read_file, write_bytes


@dataclass(frozen=True)
class Inherited:
    """The tensors of an adapted model that belong to its base: names of parameters, and initial values of buffers."""

    parameters: frozenset[str]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, base_tensors: Sequence[Tensor]) -> Inherited:
        """Find the base's tensors in an adapted model; `base_tensors` are those of the model before `adapt`."""
        base_ids = {id(tensor) for tensor in base_tensors}
        return cls(
            frozenset(name for name, parameter in model.named_parameters() if id(parameter) in base_ids),
            {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers() if id(buffer) in base_ids},
        )

    def adapter(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that the base does not have: trained and new parameters, changed and new buffers."""
        tensors = {
            name: parameter.detach()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad or name not in self.parameters
        }
        state_names = set(model.state_dict())
        for name, buffer in model.named_buffers():
            before = self.buffers.get(name)
            if name in state_names and (before is None or not torch.equal(before, buffer.cpu())):
                tensors[name] = buffer.detach()
        return tensors


def save_adapter(folder: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> dict[str, Path]:
    """Write an adapter's tensors and the card that describes them; return the files by name."""
    content = pack(tensors)
    described = dict(card) | {"sha256": hashlib.sha256(content).hexdigest()}
    described["card_sha256"] = card_digest(described)
    write_bytes(folder / ADAPTER_WEIGHTS_FILE, content)
    write_bytes(folder / ADAPTER_CARD_FILE, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())
    return {ADAPTER_WEIGHTS_FILE: folder / ADAPTER_WEIGHTS_FILE, ADAPTER_CARD_FILE: folder / ADAPTER_CARD_FILE}


def card_digest(card: Mapping[str, Any]) -> str:
    """Return the sha256 of a card, without the sha256 that it contains itself."""
    content = {key: value for key, value in card.items() if key != "card_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def read_card(path: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """Read a card (JSON); raise BadInput unless it has these keys with values of these types."""
    try:
        card = json.loads(read_file(path))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise BadInput(f"{path} is damaged: it is not JSON") from None
    if not isinstance(card, dict):
        raise BadInput(f"{path} is damaged: it is a JSON {type(card).__name__}, not an object")
    if missing := [key for key in types if key not in card]:
        raise BadInput(f"{path} is damaged, or not written by adaptkit: it lacks {', '.join(missing)}")
    # bool is a subclass of int: reject true and false in place of a number.
    wrong = [key for key, kind in types.items() if not isinstance(card[key], kind) or isinstance(card[key], bool)]
    if wrong:
        raise BadInput(f"{path} is damaged: {', '.join(wrong)} cannot be {', '.join(repr(card[key]) for key in wrong)}")
    return card


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; raise BadInput if it is damaged or has another sha256."""
    try:
        content = read_file(path, None)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    if sha256 is not None and (actual := hashlib.sha256(content).hexdigest()) != sha256:
        raise BadInput(f"{path} is damaged: its sha256 is {actual}, and {ADAPTER_CARD_FILE} says {sha256}")
    try:
        return unpack(content)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise BadInput(f"{path} is damaged: {' '.join(str(error).split())}") from None


def load_adapter(folder: Path, model: nn.Module, base_fingerprint: str, *, free_rows: bool = False) -> tuple[str, ...]:
    """Load an adapter into a fresh base that its strategy has adapted, in place; return the names of its tensors.

    With `free_rows`, a tensor may have another number of rows than the model's: a fitted head can hold a row for each
    training image. Raises BadInput if the adapter belongs to a base with another fingerprint, is damaged, or does not
    fit the model.
    """
    card = read_card(folder / ADAPTER_CARD_FILE, {"base_fingerprint": str, "sha256": str, "card_sha256": str})
    if card_digest(card) != card["card_sha256"]:
        raise BadInput(
            f"{folder / ADAPTER_CARD_FILE} was changed since the adapter was written: its checksum does not match"
        )
    if card["base_fingerprint"] != base_fingerprint:
        raise BadInput(f"the adapter was made for base {card['base_fingerprint']}, not {base_fingerprint}")
    tensors = read_weights(folder / ADAPTER_WEIGHTS_FILE, card["sha256"])
    fit_adapter(tensors, model, free_rows=free_rows)
    return tuple(tensors)


def fit_adapter(tensors: Mapping[str, Tensor], model: nn.Module, *, free_rows: bool = False) -> None:
    """Load an adapter's tensors into an adapted model, in place; raise BadInput if they do not fit."""
    state = model.state_dict()
    problems = {
        "has tensors that are not the model's": [name for name in tensors if name not in state],
        "has tensors of another shape or type than the model's": [
            name
            for name, tensor in tensors.items()
            if name in state and _layout(state[name], free_rows) != _layout(tensor, free_rows)
        ],
        "has numbers that are not finite": [
            name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()
        ],
        "lacks tensors that are trained": [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name in state and name not in tensors
        ],
    }
    lines = [
        f"the adapter does not fit the model: it {what}: {', '.join(sorted(names)[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for what, names in problems.items()
        if names
    ]
    if lines:
        raise BadInput(*lines)
    for name, tensor in tensors.items():
        if state[name].shape != tensor.shape:
            _replace(model, name, tensor)
    model.load_state_dict(dict(tensors), strict=False)


def _layout(tensor: Tensor, free_rows: bool) -> tuple[object, ...]:
    return tensor.dtype, tensor.ndim, tensor.shape[1:] if free_rows else tensor.shape


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer by an empty one with the shape of a tensor."""
    place, _, key = name.rpartition(".")
    module = model.get_submodule(place)
    empty = torch.empty_like(tensor, device=getattr(module, key).device)
    if key in module._parameters:
        setattr(module, key, nn.Parameter(empty, requires_grad=getattr(module, key).requires_grad))
    else:
        setattr(module, key, empty)
