"""Own the processes that share one run: who they are, what they tell each other, and what happens when one fails.

Not torch's DistributedDataParallel: it wraps a module, but what is trained here may be another network in each epoch
(a divided one), it watches layers with hooks, which forbid the division, and it weighs processes, not images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from adaptkit.errors import AdaptkitError, BadInput, FailedAlone, ProcessLost, RunFailed, located
from adaptkit.training.shortage import lacks_memory
from adaptkit.training.torchrun import place

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

#: The first process may wait for another experiment's base; whether a process still lives, torchrun sees at once.
WAIT = timedelta(days=7)
#: the mark of an error that all processes have
KNOWN = "_known_to_all_processes"
#: bytes of gradients that are summed at once
BUCKET = 32 << 20


@contextmanager
def joined(device: Callable[[], torch.device]) -> Iterator[Processes]:
    """Meet the processes that torchrun started beside this one; `device()` is what they compute on."""
    here = place()
    if here.count == 1:
        yield ALONE
        return
    import torch
    from torch import distributed

    kind = device().type
    if kind == "mps":
        raise BadInput("device: mps cannot be shared by processes; use --device cpu, or one process")
    if kind == "cuda":
        if here.local_rank >= torch.cuda.device_count():
            raise BadInput(f"device: {torch.cuda.device_count()} GPUs are too few for a process on each")
        torch.cuda.set_device(here.local_rank)
    ours = not distributed.is_initialized()
    if ours:
        with _talking():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=WAIT)
    try:
        yield Processes(here.rank, here.count)
    except BaseException:
        # NCCL would wait here for a process that is lost; the connections end with this process.
        ours = ours and kind != "cuda"
        raise
    finally:
        if ours:
            distributed.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees them; all of them must call the same methods in turn."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Tell whether this is the process that prints, tracks and writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch, which may be empty; the parts differ by one image at most."""
        return batch if self.count == 1 else batch.tensor_split(self.count)[self.rank]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block with all processes; if it fails in one of them, it fails in all."""
        if self.count == 1:
            yield
            return
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        self._agree(error)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Let an error in the block that the other processes do not know of end this process, and so all of them."""
        try:
            yield
        except Exception as error:
            if self.count == 1 or isinstance(error, ProcessLost) or getattr(error, KNOWN, False):
                raise
            raise FailedAlone(f"process {self.rank} fails: {located(error)}") from error

    def from_first(self, decide: Callable[[], T]) -> T:
        """Return what the first process decides, or raise what stops it, in all of them."""
        if self.count == 1:
            return decide()
        from torch import distributed

        decided: list[Any] = [None]
        with self.together():
            if self.leads:
                decided = [decide()]
        with _talking():
            distributed.broadcast_object_list(decided, src=0)
        found: T = decided[0]
        return found

    @contextmanager
    def combined(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Let the block make this process's part of the gradients; afterwards each is the sum of all parts.

        If it fails in one process, it fails in all.
        """
        if self.count == 1:
            yield
            return
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        self._sum_gradients(parameters, error)

    def total(self, numbers: Tensor) -> Tensor:
        """Return the sum of what the processes have counted."""
        if self.count == 1:
            return numbers
        return _reduced(numbers.clone())

    def average_statistics(self, model: nn.Module) -> None:
        """Give all processes the mean of the running statistics that their parts of the batches have moved."""
        if self.count == 1:
            return
        for layer in moving(model):
            for buffer in layer.buffers(recurse=False):
                if buffer.is_floating_point():
                    buffer.copy_(_reduced(buffer.clone()) / self.count)
                else:  # how many batches there were: a process without an image counts none
                    buffer.copy_(_reduced(buffer.clone(), "MAX"))

    def require_same(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Raise RunFailed in all processes unless they hold the same bits."""
        if self.count == 1:
            return
        from adaptkit.adapters.weights import fingerprint

        held = self._gathered(fingerprint({name: tensor.detach().cpu() for name, tensor in tensors.items()}))
        if len(set(held)) > 1:
            raise _known(RunFailed(f"the processes do not hold the same weights {when} training"))

    def _agree(self, error: Exception | None) -> None:
        told: tuple[type[AdaptkitError], tuple[str, ...]] | None = None
        if error is not None and lacks_memory(error):
            told = RunFailed, (f"the memory of process {self.rank}'s device is too small",)
        elif isinstance(error, AdaptkitError):
            told = type(error), error.problems
        elif error is not None:
            told = ProcessLost, (f"process {self.rank} fails: {located(error)}",)
        found = self._gathered(told)
        if error is not None:
            raise _known(error)
        for kind, problems in filter(None, found):
            raise _known(kind(*problems))

    def _gathered(self, thing: T) -> list[T]:
        from torch import distributed

        found: list[Any] = [None] * self.count
        with _talking():
            distributed.all_gather_object(found, thing)
        return found

    def _sum_gradients(self, parameters: Sequence[nn.Parameter], error: Exception | None) -> None:
        import torch

        # On the CPU: a process that is lost shows here, before anything waits for it on a GPU.
        told = _reduced(torch.tensor([error is not None, *(p.grad is not None for p in parameters)], dtype=torch.int32))
        failures, *given = told.tolist()
        if failures:
            self._agree(error)
        # A parameter that no process has used has no gradient, as in a process alone.
        used = [parameter for parameter, holders in zip(parameters, given, strict=True) if holders]
        for bucket in _buckets(used):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = _reduced(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            sizes = [gradient.numel() for gradient in gradients]
            for parameter, gradient, piece in zip(bucket, gradients, flat.split(sizes), strict=True):
                gradient.copy_(piece.view_as(gradient))
                parameter.grad = gradient


ALONE = Processes()


def moving(model: nn.Module) -> list[nn.Module]:
    """Return the layers whose running statistics training moves, as the model's modes are now."""
    return [layer for layer in model.modules() if layer.training and hasattr(layer, "running_mean")]


def uneven(model: nn.Module) -> str | None:
    """Name what makes training by several processes another one than by one: batch statistics, random draws."""
    from torch import nn

    kinds = {
        "batch statistics": lambda layer: hasattr(layer, "running_mean"),
        "dropout": lambda layer: isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0,
    }
    found = [name for name, fits in kinds.items() if any(layer.training and fits(layer) for layer in model.modules())]
    return " and ".join(found) or None


def _known(error: Exception) -> Exception:
    setattr(error, KNOWN, True)
    return error


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield neighbours of one number format, so many that their gradients are summed at once."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        held = sum(other.nbytes for other in bucket)
        if bucket and (held + parameter.nbytes > BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _reduced(tensor: Tensor, how: str = "SUM") -> Tensor:
    from torch import distributed

    with _talking():
        distributed.all_reduce(tensor, op=getattr(distributed.ReduceOp, how))
    return tensor


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost("another process of this run has ended, or cannot be reached") from error
