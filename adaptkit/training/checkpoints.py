"""Checkpoints: all that training changes after an epoch, as one file that is whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.adapters.weights import fingerprint
from adaptkit.events import Epoch
from adaptkit.training.frozen.division import watched
from adaptkit.training.frozen.trial import kept_outside
from adaptkit.training.seeding import RandomStream

FORMAT = "adaptkit checkpoint 1"
MODEL, OPTIMIZER, RANDOM = "model", "optimizer", "random"
#: what reading a damaged file, or one that says odd things, raises
DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Checkpoint:
    """A training after some epoch: tensors by name, and all else in plain JSON types."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Return the records of the epochs so far."""
        return tuple(Epoch(**epoch) for epoch in self.facts["epochs"])

    @property
    def step(self) -> int:
        """Return how many steps were taken."""
        return int(self.facts["step"])

    def misfit(self, model: nn.Module) -> str | None:
        """Say why this is no checkpoint of a model, as it is before it is trained; None if it is one."""
        ours = {name: (tensor.shape, tensor.dtype) for name, tensor in _moving(model).items()}
        kept = {name: (tensor.shape, tensor.dtype) for name, tensor in self._under(MODEL).items()}
        if ours != kept:
            return "it holds other tensors than the model trains"
        if self.facts["frozen"] != fingerprint(_frozen(model)):
            return "it belongs to other frozen weights"
        return None

    def _under(self, prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}/"
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


#: what is done with the checkpoint after each epoch, or with the reason why there is none
Keep = Callable[[Checkpoint | str], None]


class TrainingState:
    """What a training is made of: the model, as it is before the first step, its optimizer and its random numbers."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, stream: RandomStream) -> None:
        self._model, self._optimizer, self._stream = model, optimizer, stream
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # Once: frozen weights do not change, and those of a large model take long to read.
        self._frozen = fingerprint(_frozen(model))
        self._condition = _condition(model)

    def capture(self, epochs: Sequence[Epoch], step: int) -> Checkpoint | str:
        """Return a checkpoint, or the reason why it would not hold all that training changes."""
        if (reason := unseen(self._model)) is not None:
            return reason
        if _condition(self._model) != self._condition:
            return "the model keeps something outside of the tensors that are trained"
        tensors = {f"{MODEL}/{name}": tensor for name, tensor in _moving(self._model).items()}
        slots: dict[str, dict[str, Any]] = {}
        # `optimizer.state_dict()` would import PyTorch's compiler; what is in it is here.
        for number, parameter in enumerate(self._parameters):
            for key, value in self._optimizer.state.get(parameter, {}).items():
                slot: Any = value
                if isinstance(value, Tensor):
                    tensors[f"{OPTIMIZER}/{number}/{key}"] = value
                    # A fused optimizer takes numbers as they lie in memory, not by their indices.
                    slot = {"strides": list(value.stride()), "on": value.device.type}
                slots.setdefault(str(number), {})[key] = slot
        drawn, numbers = self._stream.state()
        tensors |= {f"{RANDOM}/{name}": tensor for name, tensor in drawn.items()}
        facts = {
            "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
            "step": step,
            "frozen": self._frozen,
            OPTIMIZER: slots,
            RANDOM: numbers,
        }
        return Checkpoint(tensors, facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this model: in place, since others may hold parts of it."""
        moving = _moving(self._model)
        for name, tensor in checkpoint._under(MODEL).items():
            # The version of a frozen layer's tensors stays as it was: others take another one for other values.
            moving[name].data.copy_(tensor)
        kept = checkpoint._under(OPTIMIZER)
        for number, slots in checkpoint.facts[OPTIMIZER].items():
            parameter = self._parameters[int(number)]
            self._optimizer.state[parameter] = {
                key: _laid(kept[f"{number}/{key}"], slot, parameter.device) if isinstance(slot, dict) else slot
                for key, slot in slots.items()
            }
        self._stream.restore(checkpoint._under(RANDOM), checkpoint.facts[RANDOM])


def unseen(model: nn.Module) -> str | None:
    """Say what a model keeps where no checkpoint sees it; None if nothing shows."""
    if watched(model):
        return "the model has hooks"
    if any(type(layer).get_extra_state is not nn.Module.get_extra_state for layer in model.modules()):
        return "a layer has extra state"
    try:
        kept_outside(model)
    except Exception as error:  # whatever pickling trips over
        return f"what a layer keeps cannot be compared ({type(error).__name__})"
    return None


def write_checkpoint(path: Path, checkpoint: Checkpoint, run: str) -> None:
    """Write the checkpoint of a run: whole, or the file stays as it was. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: _copied(tensor) for name, tensor in checkpoint.tensors.items()}
    facts = json.dumps({**checkpoint.facts, "run": run})
    metadata = {"format": FORMAT, "facts": facts, "sha256": _digest(tensors, facts)}
    part = path.with_name(f"{path.name}.part")
    try:
        save_file(tensors, part, metadata)
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(str(error)) from None


def read_checkpoint(path: Path, run: str) -> Checkpoint:
    """Read the checkpoint of a run; raise FileNotFoundError if there is none, ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
        facts = json.loads(metadata["facts"])
        if metadata["format"] != FORMAT or metadata["sha256"] != _digest(tensors, metadata["facts"]):
            raise ValueError("its content does not have its checksum")
        if facts["run"] != run:
            raise ValueError("it is another run's")
        checkpoint = Checkpoint(tensors, facts)
        if [epoch.number for epoch in checkpoint.epochs] != list(range(1, len(checkpoint.epochs) + 1)):
            raise ValueError("it lacks an epoch")
        return checkpoint
    except FileNotFoundError:
        raise
    except SafetensorError:
        raise ValueError("it is cut short, or no checkpoint") from None
    except DAMAGE as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _moving(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, and all buffers."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**trained, **dict(model.named_buffers())}


def _frozen(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _condition(model: nn.Module) -> list[Any]:
    """Return what stays as it is while a model is trained, if a checkpoint shall hold the rest."""
    names = [(name, tensor.shape, tensor.dtype) for name, tensor in _moving(model).items()]
    frozen = [(name, id(tensor), tensor._version) for name, tensor in _frozen(model).items()]
    try:
        outside: Any = kept_outside(model)
    except Exception:  # `unseen` says so
        outside = None
    return [names, frozen, outside]


def _laid(tensor: Tensor, slot: Mapping[str, Any], device: torch.device) -> Tensor:
    """Return a tensor on the device, and in the order in memory, that it had."""
    strides = [int(stride) for stride in slot["strides"]]
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    if min(strides, default=0) < 0 or (tensor.numel() and reach >= tensor.numel()):
        raise ValueError("a tensor's strides are none")
    place = torch.device("cpu") if slot["on"] == "cpu" else device
    laid = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=place)
    return laid.copy_(tensor)


def _copied(tensor: Tensor) -> Tensor:
    # A copy in any case: safetensors refuses tensors that share their memory.
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    return hashlib.sha256(f"{fingerprint(tensors)}\n{facts}".encode()).hexdigest()
