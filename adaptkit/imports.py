"""Import large packages, and read many records, without stopping for garbage, of which there is none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector off during a block: while torch or MLflow is imported, a tenth of the time is its.

    While a thousand runs are read from a database, it is more than half.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
