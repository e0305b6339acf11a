"""Join a Ray cluster, or start one on this machine, without the output of Ray; count the trials that fit on it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from adaptkit.errors import BadInput

if TYPE_CHECKING:
    from adaptkit_ray import Ray

#: Seconds to wait for an answer from a cluster; Ray itself would try for more than a minute.
CONNECT_SECONDS = 5.0


def check(options: Ray, device: str) -> None:
    """Raise BadInput if the device and the GPUs of trials contradict each other, or no cluster answers."""
    gpus = options.gpus_per_trial
    if gpus and device not in ("auto", "cuda"):
        raise BadInput(f"ray.gpus_per_trial={gpus:g}: trials with --device {device} use no GPU")
    if not gpus and device == "cuda":
        raise BadInput(
            "--device cuda: with --engine ray, set the share of a GPU for each trial, "
            "as in --engine-option gpus_per_trial=0.25"
        )
    address = _address(options)
    if address not in ("auto", "local"):
        _require_answer(address)


@contextmanager
def joined(options: Ray) -> Iterator[Sequence[str]]:
    """Connect to the cluster during the block, which receives the names of its other machines.

    If the caller has initialised Ray, that connection is used and stays open. A cluster that was started here is
    stopped. Raises BadInput if no cluster answers at the address, or if all of its machines are too small for a trial.
    """
    import ray

    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            _connect(_address(options))
        if slots(options) == 0:
            raise BadInput(_too_large(options))
        # Ray reports lost machines on standard output, where the sweep may print JSON.
        with redirect_stdout(sys.stderr):
            yield _other_machines()
    finally:
        if is_ours:
            ray.shutdown()


def slots(options: Ray) -> int:
    """Return the number of trials that can run in parallel on the current machines of the cluster."""
    return sum(_slots_of(resources, options) for resources in _machines().values())


def _other_machines() -> list[str]:
    import ray

    names = {str(node["NodeManagerHostname"]) for node in ray.nodes() if node["Alive"]}
    return sorted(names - {socket.gethostname()})


def _address(options: Ray) -> str:
    # By default, Ray would join any cluster on this machine. Here, the user must request that with `auto`.
    return options.address or os.environ.get("RAY_ADDRESS") or "local"


def _require_answer(address: str) -> None:
    """Raise BadInput if nothing listens at an address."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise BadInput(f"ray.address: write HOST:PORT of the cluster's head, as in 10.0.0.5:6379, not {address}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"ray.address: no Ray cluster answers at {address} ({reason})") from None


def _connect(address: str) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The log repeats the messages of exceptions.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    more: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, logging_level=logging.CRITICAL, **more)
    except Exception as error:  # of many types: another version, no token, no memory
        line = (str(error).strip() or type(error).__name__).split("\n")[0]
        where = "Ray cannot be started here" if address == "local" else f"ray.address: cannot join {address}"
        # `ray start` requires the token of the user, if one exists. A joining process sends it only with this variable.
        may_ask = address != "local" and "RAY_AUTH_MODE" not in os.environ
        hint = "; if the cluster asks for a token, set RAY_AUTH_MODE=token" if may_ask else ""
        raise BadInput(f"{where}: {line}{hint}") from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray's handler would not close runs


def _machines() -> Mapping[str, Mapping[str, float]]:
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _slots_of(resources: Mapping[str, float], options: Ray) -> int:
    """Return the number of trials that can run in parallel on one machine.

    A trial with a share of a GPU runs on a single GPU.
    """
    by_cpu = int(resources.get("CPU", 0) // options.cpus_per_trial)
    share, gpus = options.gpus_per_trial, resources.get("GPU", 0)
    if share == 0:
        return by_cpu
    # Floating-point division may give slightly less than the whole number.
    return min(by_cpu, int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-6))


def _too_large(options: Ray) -> str:
    cpus, gpus = options.cpus_per_trial, options.gpus_per_trial
    have = [f"{machine.get('CPU', 0):g} CPUs and {machine.get('GPU', 0):g} GPUs" for machine in _machines().values()]
    return (
        f"no machine of the Ray cluster has {cpus} CPU{'s' * (cpus > 1)} and {gpus:g} GPUs for a trial; its machines "
        f"have {'; '.join(dict.fromkeys(have))}: change ray.cpus_per_trial or ray.gpus_per_trial"
    )
