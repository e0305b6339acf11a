"""Tell errors of memory that ran out from all others."""

from __future__ import annotations

#: what torch and what lies below it say, where the error is a plain RuntimeError
SAYINGS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "std::bad_alloc",
    "bad allocation",
)
#: what may help
HINT = "the device's memory is too small; a smaller --batch-size may help"
BASE_HINT = "the device's memory is too small for the base; a smaller --set base.batch_size=N may help"


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error, or what it was raised from, says that no more memory could be had."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError | OSError) and any(saying in str(error) for saying in SAYINGS):
        return True
    return error.__cause__ is not None and lacks_memory(error.__cause__)
