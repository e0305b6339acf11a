"""Connect an engine to its machines, and warn about a tracking store that these machines cannot reach."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaptkit.contracts import Engine
    from adaptkit.tracking.store import Store


def connected(engine: Engine) -> AbstractContextManager[Sequence[str]]:
    """Connect an engine to its machines during the block, which receives the names of the other machines."""
    connection: AbstractContextManager[Sequence[str]] = (
        engine.connect() if hasattr(engine, "connect") else nullcontext(())
    )
    return connection


def store_notices(store: Store, machines: Sequence[str]) -> tuple[str, ...]:
    """Return notices about a tracking store that other machines may not reach."""
    if not machines or not store.uri.startswith("sqlite"):
        return ()
    return (
        f"the tracking store is a file on this machine, but trials also run on {', '.join(machines)}: share its folder "
        "with them, or use an MLflow server (--tracking-uri http://HOST:PORT)",
    )
