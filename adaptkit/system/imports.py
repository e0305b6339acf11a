"""Import large packages, and read many records, without stopping for garbage; import nothing that merely lies about."""

from __future__ import annotations

import gc
import os
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


#: keeps a Python that is started with -c or -m from looking for modules in the current folder before all others
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


@contextmanager
def safe_path() -> Iterator[None]:
    """Keep Pythons that are started during a block from taking what lies in the current folder for a module."""
    before = {name: os.environ.get(name) for name in SAFE_PATH}
    os.environ.update(SAFE_PATH)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
