"""Write what a strategy changed to an adapter file, and put it back onto a fresh base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.adapters.weights import pack, unpack, write_bytes
from adaptkit.errors import BadInput

WEIGHTS, CARD = "adapter.safetensors", "adapter.json"


@dataclass(frozen=True)
class Inherited:
    """What an adapted model has from its base: parameters by name, and the values of buffers before training."""

    parameters: frozenset[str]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, base_tensors: Sequence[Tensor]) -> Inherited:
        """Note which of an adapted model's tensors were the base's, given the base's tensors before `adapt`."""
        own = {id(tensor) for tensor in base_tensors}
        return cls(
            frozenset(name for name, parameter in model.named_parameters() if id(parameter) in own),
            {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers() if id(buffer) in own},
        )

    def adapter(self, model: nn.Module) -> dict[str, Tensor]:
        """Return what the base does not have: trained and new parameters, new and moved buffers."""
        tensors = {
            name: parameter.detach()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad or name not in self.parameters
        }
        kept = set(model.state_dict())
        for name, buffer in model.named_buffers():
            before = self.buffers.get(name)
            if name in kept and (before is None or not torch.equal(before, buffer.cpu())):
                tensors[name] = buffer.detach()
        return tensors


def save_adapter(folder: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> dict[str, Path]:
    """Write the tensors and the card that says what they are; return the files by name."""
    content = pack(tensors)
    described = dict(card) | {"sha256": hashlib.sha256(content).hexdigest()}
    write_bytes(folder / WEIGHTS, content)
    write_bytes(folder / CARD, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())
    return {WEIGHTS: folder / WEIGHTS, CARD: folder / CARD}


def load_adapter(folder: Path, model: nn.Module, base_fingerprint: str) -> None:
    """Put an adapter onto an adapted fresh base, in place.

    Raises BadInput when the adapter belongs to another base, is damaged, or does not fit the model.
    """
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    content = (folder / WEIGHTS).read_bytes()
    if card["base_fingerprint"] != base_fingerprint:
        raise BadInput(f"the adapter was made for base {card['base_fingerprint'][:12]}, not {base_fingerprint[:12]}")
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise BadInput(f"{folder / WEIGHTS} is damaged: its sha256 is not the one in {CARD}")
    tensors = unpack(content)
    own = model.state_dict()
    foreign = [name for name in tensors if name not in own or own[name].shape != tensors[name].shape]
    if foreign:
        raise BadInput(f"the adapter does not fit the model: {', '.join(sorted(foreign)[:3])}")
    model.load_state_dict(tensors, strict=False)
