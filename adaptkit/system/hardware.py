"""Choose the device, the precision and the number of threads on this machine."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from adaptkit.errors import BadInput

#: environment variables with which users set the number of threads
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
#: torch's functions that detect instructions for bfloat16 on x86; processors with AMX tiles have AMX-BF16
X86_INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
#: constants from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def require_one_process() -> None:
    """Raise BadInput in one of several processes of torchrun: each process would repeat the same runs."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1":
        raise BadInput(
            "adaptkit trains a run in one process: start it without torchrun; `adaptkit sweep --jobs N` runs several "
            "trials at a time, and `--engine ray --gpus-per-trial 1` gives each of them a GPU"
        )


def find_device(name: str) -> torch.device:
    """Return the device of this name, or the fastest one for `auto`; raise BadInput if it is not available."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        choices = ", ".join(kind for kind, is_available in available.items() if is_available)
        raise BadInput(f"device: {name} is not available on this machine; choose {choices}")
    return torch.device(name)


def find_precision(name: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`; `auto` means bf16 if the device computes it natively."""
    if name != "auto":
        return name
    return "bf16" if computes_bf16(device) else "fp32"


def precision_notices(precision: str, device: torch.device) -> tuple[str, ...]:
    """Return notices about this precision on this device."""
    # torch cannot detect whether Apple's GPUs compute bf16 natively.
    if precision != "bf16" or device.type == "mps" or computes_bf16(device):
        return ()
    return (
        f"bf16 is emulated on this {'GPU' if device.type == 'cuda' else 'CPU'} and slower than fp32; "
        "--precision auto uses bf16 only if it is native",
    )


def computes_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions that multiply bfloat16 matrices."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch computes bfloat16 products with oneDNN, or slowly without it.
    if device.type != "cpu" or not _is_true(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return False
    # On x86, oneDNN also emulates bfloat16 with plain AVX-512; on Arm, it checks for the instructions.
    return platform.machine().lower() in ("aarch64", "arm64") or any(
        _is_true(torch.cpu, name) for name in X86_INSTRUCTIONS
    )


def _is_true(module: object, name: str) -> bool:
    # These functions are private: if torch lacks one, assume that bf16 is not native.
    return bool(getattr(module, name, lambda: False)())


def keep_freed_memory() -> None:
    """Keep the memory that a training step frees in this process, for the next step.

    Otherwise the system clears and maps each page again in every step. Call this only in processes that adaptkit
    started itself. It has no effect without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))


@contextmanager
def shared_threads(others: int, notice: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Limit the threads of a block to a fair share of the cores while `others` run on this machine.

    Has no effect if OMP_NUM_THREADS or MKL_NUM_THREADS is set.
    """
    before = torch.get_num_threads()
    if any(os.environ.get(name) for name in THREAD_VARIABLES):
        yield
        return
    cores = usable_cores()
    share = max(1, cores // (others + 1))
    if share < cores:
        notice(
            f"{others} other {'experiment is' if others == 1 else 'experiments are'} running on this machine: this one "
            f"uses {share} of {cores} cores; the last digits of results may differ, and times will not be compared"
        )
    if share < before:  # setting the same number would also change how torch divides work
        torch.set_num_threads(share)
    try:
        yield
    finally:
        if share < before:
            torch.set_num_threads(before)


@contextmanager
def recorded_threads(count: int | None, notice: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Use as many threads in a block as an earlier run, if there are enough cores.

    Has no effect if OMP_NUM_THREADS or MKL_NUM_THREADS is set.
    """
    before = torch.get_num_threads()
    if count is None or count == before or any(os.environ.get(name) for name in THREAD_VARIABLES):
        yield
        return
    if count > usable_cores():
        notice(f"the run used {count} threads, but this machine has only {usable_cores()} cores")
        yield
        return
    notice(f"using {count} thread{'s' * (count > 1)}, as in the run")
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """Return the number of cores for this process: torch's choice, limited by the quota of a container."""
    from joblib import cpu_count  # type: ignore[import-untyped]

    return min(torch.get_num_threads(), int(cpu_count()))
