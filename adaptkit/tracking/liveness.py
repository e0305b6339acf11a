"""Find stale runs: runs that count as running although their process has ended."""

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
from adaptkit.tracking.search import search_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

#: maximum error, in seconds, of the start time of a process as the system reports it
TOLERANCE = 2.0


def lives(tags: Mapping[str, str]) -> bool | None:
    """Return whether the process of a run with these tags exists; None if that cannot be determined on this machine.

    A process that started after the time in the tags is another process with the same id.
    """
    pid = tags.get(PID_TAG, "")
    if tags.get(HOST_TAG) != socket.gethostname() or not pid.isdigit():
        return None
    if os.name != "posix":  # on other systems, signal 0 ends the process
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return None
    recorded_at, started_at = _number(tags.get(PROCESS_SEEN_TAG, "")), _start(int(pid))
    if recorded_at is None or started_at is None:
        return True
    return started_at <= recorded_at + TOLERANCE


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _start(pid: int) -> float | None:
    """Return the Unix time at which a process started (on Linux: field 22 of /proc/PID/stat, in ticks); else None."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return None


#: metrics whose timestamps are the heartbeat of a run: one is logged in each epoch, the other at the end
HEARTBEAT = (TIME_EPOCH_SECONDS, TIME_TRAIN_SECONDS)
#: a run is silent after this number of seconds without a heartbeat, and after this multiple of its longest epoch
LEAST_SILENCE, EPOCHS_OF_SILENCE = 900.0, 5


@dataclass(frozen=True)
class StaleRun:
    """A run that counts as running; `lives` is whether its process exists, None if that cannot be determined.

    If that cannot be determined, `last_heartbeat` is the Unix time of the last heartbeat. `silent` is true if the last
    heartbeat is much longer ago than an epoch takes.
    """

    run_id: str
    name: str
    place: str
    lives: bool | None
    last_heartbeat: float | None = None
    silent: bool = False


def unfinished(client: MlflowClient, experiments: Sequence[str]) -> list[StaleRun]:
    """Return adaptkit's runs in these experiments that count as running, in the order in which they started."""
    stale = []
    for run in search_runs(client, experiments, status="RUNNING"):
        tags = run.data.tags
        if KIND_TAG not in tags:
            continue
        alive = lives(tags)
        last_heartbeat, silent = (None, False) if alive is not None else _heartbeat(client, run)
        stale.append(
            StaleRun(
                run_id=run.info.run_id,
                name=run.info.run_name or run.info.run_id,
                place=f"process {tags.get(PID_TAG, '?')} on {tags.get(HOST_TAG, '?')}",
                lives=alive,
                last_heartbeat=last_heartbeat,
                silent=silent,
            )
        )
    return stale


def _heartbeat(client: MlflowClient, run: MlflowRun) -> tuple[float, bool]:
    """Return the time of a run's last heartbeat, and whether the run counts as silent."""
    signs, epochs = [(run.info.start_time or 0) / 1000], [0.0]
    for key in (key for key in HEARTBEAT if key in run.data.metrics):
        history = client.get_metric_history(run.info.run_id, key)
        signs += [point.timestamp / 1000 for point in history]
        epochs += [point.value for point in history if key == HEARTBEAT[0]]
    return max(signs), time.time() - max(signs) > max(LEAST_SILENCE, EPOCHS_OF_SILENCE * max(epochs))


def end_stale(client: MlflowClient, runs: Iterable[StaleRun]) -> None:
    """End stale and silent runs as killed."""
    for run in runs:
        reason = "its process has ended" if run.lives is False else "it has not logged anything for a long time"
        client.set_tag(run.run_id, ERROR_TAG, reason)
        client.set_terminated(run.run_id, "KILLED")
