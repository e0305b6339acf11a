"""Write and read checkpoints: the state of training after an epoch, in one file that is written atomically."""

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
MODEL, OPTIMIZER, RANDOM, STRATEGY = "model", "optimizer", "random", "strategy"
#: exceptions that a damaged file can cause
DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after an epoch: tensors by name, and everything else as plain JSON types."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Return the records of the epochs so far."""
        return tuple(Epoch(**epoch) for epoch in self.facts["epochs"])

    @property
    def step(self) -> int:
        """Return the number of training steps so far."""
        return int(self.facts["step"])

    def misfit(self, model: nn.Module) -> str | None:
        """Return why this checkpoint does not fit a model that is ready to be trained, or None if it fits."""
        model_shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in _moving(model).items()}
        saved_shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in self._under(MODEL).items()}
        if model_shapes != saved_shapes:
            return "its tensors are not those that the model trains"
        if self.facts["frozen"] != fingerprint(_frozen(model)):
            return "its frozen weights differ"
        return None

    def _under(self, prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}/"
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


#: receives the checkpoint after each epoch, or the reason why the model cannot be checkpointed
Keep = Callable[[Checkpoint | str], None]


class TrainingState:
    """A training in progress: model, random numbers and strategy, which checkpoints save and restore.

    The model must be passed before the first step.
    """

    def __init__(self, model: nn.Module, stream: RandomStream, strategy: object = None) -> None:
        self._model, self._stream, self._strategy = model, stream, strategy
        # Computed once: frozen weights do not change, and hashing those of a large model is slow.
        self._frozen = fingerprint(_frozen(model))
        self._condition = _condition(model)

    def capture(self, epochs: Sequence[Epoch], step: int, optimizer: torch.optim.Optimizer) -> Checkpoint | str:
        """Return a checkpoint, or the reason why it would be incomplete."""
        if (reason := uncaptured(self._model)) is not None:
            return reason
        if _condition(self._model) != self._condition:
            return "the model keeps state outside the tensors that are trained"
        tensors = {f"{MODEL}/{name}": tensor for name, tensor in _moving(self._model).items()}
        slots: dict[str, dict[str, Any]] = {}
        # The content of `optimizer.state_dict()`, which would import PyTorch's compiler.
        for number, parameter in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state.get(parameter, {}).items():
                slot: Any = value
                if isinstance(value, Tensor):
                    tensors[f"{OPTIMIZER}/{number}/{key}"] = value
                    # A fused optimizer reads its state in memory order, so strides must be restored.
                    slot = {"strides": list(value.stride()), "on": value.device.type}
                slots.setdefault(str(number), {})[key] = slot
        drawn, numbers = self._stream.state()
        tensors |= {f"{RANDOM}/{name}": tensor for name, tensor in drawn.items()}
        kept = self._strategy.state_dict() if has_state(self._strategy) else {}  # type: ignore[attr-defined]
        tensors |= {f"{STRATEGY}/{key}": value for key, value in kept.items() if isinstance(value, Tensor)}
        facts = {
            STRATEGY: {key: value for key, value in kept.items() if not isinstance(value, Tensor)},
            "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
            "step": step,
            "frozen": self._frozen,
            OPTIMIZER: slots,
            RANDOM: numbers,
        }
        return Checkpoint(tensors, facts)

    def restore(self, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
        """Restore a checkpoint of this model, in place: other objects may hold its tensors."""
        moving = _moving(self._model)
        for name, tensor in checkpoint._under(MODEL).items():
            # `data` leaves the tensors' version counters unchanged; cached features depend on those of frozen layers.
            moving[name].data.copy_(tensor)
        optimizer_state, parameters = checkpoint._under(OPTIMIZER), _parameters(optimizer)
        for number, slots in checkpoint.facts[OPTIMIZER].items():
            parameter = parameters[int(number)]
            optimizer.state[parameter] = {
                key: _with_strides(optimizer_state[f"{number}/{key}"], slot, parameter.device)
                if isinstance(slot, dict)
                else slot
                for key, slot in slots.items()
            }
        if has_state(self._strategy):
            kept = {**checkpoint.facts[STRATEGY], **checkpoint._under(STRATEGY)}
            self._strategy.load_state_dict(kept)  # type: ignore[attr-defined]
        self._stream.restore(checkpoint._under(RANDOM), checkpoint.facts[RANDOM])


def has_state(strategy: object) -> bool:
    """Return whether a strategy has a state that checkpoints save."""
    return all(callable(getattr(strategy, name, None)) for name in ("state_dict", "load_state_dict"))


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def uncaptured(model: nn.Module) -> str | None:
    """Return which state of a model a checkpoint would miss, or None if none is known."""
    if watched(model):
        return "the model has hooks"
    if any(type(layer).get_extra_state is not nn.Module.get_extra_state for layer in model.modules()):
        return "a layer has extra state"
    try:
        kept_outside(model)
    except Exception as error:  # pickling raises many kinds of errors
        return f"the state of a layer cannot be compared ({type(error).__name__})"
    return None


def write_checkpoint(path: Path, checkpoint: Checkpoint, run: str) -> None:
    """Write the checkpoint of a run; if that fails, an earlier file stays unchanged. Raises OSError."""
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
    """Read the checkpoint of a run; raise FileNotFoundError if it is missing, ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
        facts = json.loads(metadata["facts"])
        if metadata["format"] != FORMAT or metadata["sha256"] != _digest(tensors, metadata["facts"]):
            raise ValueError("its checksum does not match")
        if facts["run"] != run:
            raise ValueError("it belongs to another run")
        checkpoint = Checkpoint(tensors, facts)
        if [epoch.number for epoch in checkpoint.epochs] != list(range(1, len(checkpoint.epochs) + 1)):
            raise ValueError("an epoch is missing")
        return checkpoint
    except FileNotFoundError:
        raise
    except SafetensorError:
        raise ValueError("it is truncated or not a checkpoint") from None
    except DAMAGE as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _moving(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters and all buffers by name."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**trained, **dict(model.named_buffers())}


def _frozen(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _condition(model: nn.Module) -> list[Any]:
    """Return properties that must not change during training, because a checkpoint does not save them."""
    names = [(name, tensor.shape, tensor.dtype) for name, tensor in _moving(model).items()]
    frozen = [(name, id(tensor), tensor._version) for name, tensor in _frozen(model).items()]
    try:
        outside: Any = kept_outside(model)
    except Exception:  # reported by `uncaptured`
        outside = None
    return [names, frozen, outside]


def _with_strides(tensor: Tensor, slot: Mapping[str, Any], device: torch.device) -> Tensor:
    """Return a tensor with the device and the strides that were recorded."""
    strides = [int(stride) for stride in slot["strides"]]
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    if min(strides, default=0) < 0 or (tensor.numel() and reach >= tensor.numel()):
        raise ValueError("the strides of a tensor are invalid")
    place = torch.device("cpu") if slot["on"] == "cpu" else device
    restored = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=place)
    return restored.copy_(tensor)


def _copied(tensor: Tensor) -> Tensor:
    # Always a copy: safetensors rejects tensors that share memory.
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    return hashlib.sha256(f"{fingerprint(tensors)}\n{facts}".encode()).hexdigest()
