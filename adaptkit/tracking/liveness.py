"""Tell whether the process that makes a run still lives, from the run's tags."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.names import (
    ERROR_TAG,
    HOST_TAG,
    KIND_TAG,
    PID_TAG,
    PROCESS_SEEN_TAG,
    TIME_EPOCH_SECONDS,
    TIME_TRAIN_SECONDS,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

#: seconds by which the system's record of a process's start may be off
TOLERANCE = 2.0


def lives(tags: Mapping[str, str]) -> bool | None:
    """Tell whether the process named by `adaptkit.host` and `adaptkit.pid` is there; None where that cannot be seen.

    One that began after `adaptkit.process_seen` is another process with the same number.
    """
    pid = tags.get(PID_TAG, "")
    if tags.get(HOST_TAG) != socket.gethostname() or not pid.isdigit():
        return None
    if os.name != "posix":  # elsewhere, signal 0 is no question
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return None
    seen, began = _number(tags.get(PROCESS_SEEN_TAG, "")), _start(int(pid))
    if seen is None or began is None:
        return True
    return began <= seen + TOLERANCE


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _start(pid: int) -> float | None:
    """Return the Unix time at which a process began, where Linux tells it (proc(5): field 22 of stat, in ticks)."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return None


PAGE = 1000
#: metrics whose times tell that a run lives: those of its epochs, and those of its end
HEARTBEAT = (TIME_EPOCH_SECONDS, TIME_TRAIN_SECONDS)
#: seconds, and how many times its longest epoch, after which a run that gives no sign is called silent
LEAST_SILENCE, EPOCHS_OF_SILENCE = 900.0, 5


@dataclass(frozen=True)
class StaleRun:
    """A run on record as running; `lives` tells whether its process does, None where that cannot be seen.

    Of one that cannot be seen, `last_sign` is when it was last heard of (Unix time), and `silent` tells whether that is
    longer ago than its epochs take.
    """

    run_id: str
    name: str
    place: str
    lives: bool | None
    last_sign: float | None = None
    silent: bool = False


def unfinished(client: MlflowClient, experiments: Sequence[str]) -> list[StaleRun]:
    """Return adaptkit's runs in these experiments that are on record as running, the earliest first."""
    found: list[StaleRun] = []
    token: str | None = None
    while experiments:
        page = client.search_runs(
            list(experiments),
            "attributes.status = 'RUNNING'",
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        for run in page:
            tags = run.data.tags
            if KIND_TAG in tags:
                place = f"process {tags.get('adaptkit.pid', '?')} on {tags.get('adaptkit.host', '?')}"
                name = run.info.run_name or run.info.run_id
                alive = lives(tags)
                heard = (None, False) if alive is not None else _heard_of(client, run)
                found.append(StaleRun(run.info.run_id, name, place, alive, *heard))
        token = page.token
        if not token:
            break
    return found


def _heard_of(client: MlflowClient, run: MlflowRun) -> tuple[float, bool]:
    """Return when a run last gave a sign, and whether it is silent: each epoch's metrics are its heartbeat."""
    signs, epochs = [(run.info.start_time or 0) / 1000], [0.0]
    for key in (key for key in HEARTBEAT if key in run.data.metrics):
        history = client.get_metric_history(run.info.run_id, key)
        signs += [point.timestamp / 1000 for point in history]
        epochs += [point.value for point in history if key == HEARTBEAT[0]]
    return max(signs), time.time() - max(signs) > max(LEAST_SILENCE, EPOCHS_OF_SILENCE * max(epochs))


def end_stale(client: MlflowClient, runs: Iterable[StaleRun]) -> None:
    """End runs whose process is gone, or is taken for gone, as killed."""
    for run in runs:
        reason = "its process is gone" if run.lives is False else "nothing was heard of it for long"
        client.set_tag(run.run_id, ERROR_TAG, reason)
        client.set_terminated(run.run_id, "KILLED")
