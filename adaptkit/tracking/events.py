"""What is told of a run to a tracking store, in order: each event is a line of the run's journal."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: what a run is called where it is made, before the store has given it an id
LOCAL_ID_TAG = "adaptkit.local_id"


@dataclass(frozen=True)
class Create:
    """A run begins; `at` is in milliseconds. `runs` are tags that hold the ids of other runs, here by local ids."""

    name: str
    at: int
    tags: Mapping[str, str]
    runs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reopen:
    """A run that the store has goes on."""

    run_id: str


@dataclass(frozen=True)
class Log:
    """Metrics (key, value, time in milliseconds, step), params and tags."""

    metrics: Sequence[tuple[str, float, int, int]] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """A data set that a run reads: `source` is JSON."""

    name: str
    digest: str
    source: str
    context: str


@dataclass(frozen=True)
class Put:
    """Files become artifacts: all in a `folder` of the journal. Where they are `signed`, they are read back."""

    folder: str
    path: str | None = None
    signed: bool = False


@dataclass(frozen=True)
class End:
    """A run has ended; `at` is in milliseconds."""

    status: str
    at: int


Event = Create | Reopen | Log | Input | Put | End
KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in (Create, Reopen, Log, Input, Put, End)}


def now() -> int:
    """Return the time in milliseconds, as MLflow counts it."""
    return int(time.time() * 1000)


def points(metrics: Mapping[str, float], step: int | None = None) -> tuple[tuple[str, float, int, int], ...]:
    """Return metrics as they are logged now."""
    # Without a step of its own (0), MLflow's page draws a bar for each run instead of a curve.
    at = now()
    return tuple((key, float(value), at, step or 0) for key, value in metrics.items())


def written(number: int, event: Event) -> str:
    """Return an event, and which of its run's it is, as one line."""
    return json.dumps({"number": number, "do": type(event).__name__.lower(), **dataclasses.asdict(event)})


def read(line: str) -> tuple[int, Event]:
    """Return the number and the event of a line; raise ValueError where it is none."""
    try:
        given: dict[str, Any] = json.loads(line)
        number = int(given.pop("number"))
        event: Event = KINDS[given.pop("do")](**given)
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no event: {error}") from None
    return number, event
