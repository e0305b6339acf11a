"""Which device, which precision, how many threads: what this machine offers, asked once for an experiment."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from adaptkit.errors import BadInput

#: whoever sets one of these has chosen the number of threads
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
#: torch's questions for what multiplies bfloat16 on x86; a processor with AMX tiles has AMX-BF16
X86_INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
#: of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def require_one_process() -> None:
    """Refuse to be one of several processes that torchrun started: each of them would make the same runs."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1":
        raise BadInput(
            "adaptkit trains a run in one process: start it without torchrun; `adaptkit sweep --jobs N` makes several "
            "runs at a time, `--engine ray --gpus-per-trial 1` gives each of them a GPU"
        )


def find_device(name: str) -> torch.device:
    """Return the device of that name, the fastest one for `auto`; raise BadInput when it is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        have = ", ".join(kind for kind, there in available.items() if there)
        raise BadInput(f"device: {name} is not available here; have: {have}")
    return torch.device(name)


def find_precision(name: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`; `auto` is bf16 where the device is known to compute it natively."""
    if name != "auto":
        return name
    return "bf16" if computes_bf16(device) else "fp32"


def precision_notices(precision: str, device: torch.device) -> tuple[str, ...]:
    """Return what the user must know of this precision on this device before training."""
    # Nothing tells whether Apple's GPU computes bf16 natively: there, nothing is claimed.
    if precision != "bf16" or device.type == "mps" or computes_bf16(device):
        return ()
    return (
        f"bf16 is emulated on this {'GPU' if device.type == 'cuda' else 'CPU'} and slower than fp32; "
        "--precision auto takes bf16 only where it is native",
    )


def computes_bf16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 matrices by instructions of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch leaves bfloat16 products to oneDNN or computes them slowly itself.
    if device.type != "cpu" or not _asked(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return False
    # On x86 oneDNN takes them with plain AVX-512 too, and emulates them then; on Arm it asks for the instructions.
    return platform.machine().lower() in ("aarch64", "arm64") or any(
        _asked(torch.cpu, name) for name in X86_INSTRUCTIONS
    )


def _asked(module: object, question: str) -> bool:
    # Private names: where this build of torch lacks one, bf16 is not known to be native.
    return bool(getattr(module, question, lambda: False)())


def keep_freed_memory() -> None:
    """Let this process keep the memory that a training step frees for the next step.

    Given back to the system, each page of it is cleared and mapped anew in every step. Only for processes of adaptkit's
    own; does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))


@contextmanager
def shared_threads(others: int, notice: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Compute with this experiment's share of the cores while `others` run on this machine; restore it afterwards.

    Does nothing where OMP_NUM_THREADS or MKL_NUM_THREADS is set.
    """
    before = torch.get_num_threads()
    if any(os.environ.get(name) for name in THREAD_VARIABLES):
        yield
        return
    cores = usable_cores()
    share = max(1, cores // (others + 1))
    if share < cores:
        notice(
            f"{others} other {'experiment runs' if others == 1 else 'experiments run'} on this machine: computing on "
            f"{share} of {cores} cores, on which the last digits of results depend; seconds will not be ranked"
        )
    if share < before:  # even setting the same number would change how torch divides work
        torch.set_num_threads(share)
    try:
        yield
    finally:
        if share < before:
            torch.set_num_threads(before)


@contextmanager
def recorded_threads(count: int | None, notice: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Compute on so many threads, as an earlier run did, if there are cores for them; restore the number afterwards.

    Does nothing where OMP_NUM_THREADS or MKL_NUM_THREADS is set.
    """
    before = torch.get_num_threads()
    if count is None or count == before or any(os.environ.get(name) for name in THREAD_VARIABLES):
        yield
        return
    if count > usable_cores():
        notice(f"the run computed on {count} threads, and there are {usable_cores()} cores here")
        yield
        return
    notice(f"computing on {count} thread{'s' * (count > 1)}, as the run did")
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """Return the cores that this process may use: torch's own choice, but no more than a container's quota."""
    from joblib import cpu_count  # type: ignore[import-untyped]

    return min(torch.get_num_threads(), int(cpu_count()))
