"""Join a Ray cluster or start one on this machine, quietly, and count how many trials it runs at a time."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from adaptkit.errors import BadInput

if TYPE_CHECKING:
    from adaptkit.sweeps.engines import Setting

#: Ray itself tries for more than a minute
KNOCK_SECONDS = 5.0
#: not a number of trials that any cluster runs: a bound where a trial asks for nothing of a kind
ANY = 10**6


def check_request(setting: Setting, device: str) -> None:
    """Raise BadInput unless Ray is there, what a trial asks for can be had at all, and somebody is at the address."""
    if importlib.util.find_spec("ray") is None:
        raise BadInput("--engine ray needs ray: pip install 'adaptkit-vision[ray]'")
    cpus, gpus = setting.cpus_per_trial, setting.gpus_per_trial
    problems = []
    if cpus < 1:
        problems.append(f"--cpus-per-trial: must be at least 1, not {cpus}")
    if not 0 <= gpus < ANY or (gpus > 1 and gpus != int(gpus)):
        problems.append(f"--gpus-per-trial: must be a part of one GPU or a whole number, not {gpus:g}")
    elif gpus and device not in ("auto", "cuda"):
        problems.append(f"--gpus-per-trial {gpus:g}: with --device {device}, trials use no GPU")
    elif not gpus and device == "cuda":
        problems.append("--device cuda: with --engine ray, say what a trial gets of a GPU, as in --gpus-per-trial 0.25")
    if problems:
        raise BadInput(*problems)
    address = _address(setting)
    if address not in ("auto", "local"):
        _knock(address)


@contextmanager
def joined(setting: Setting) -> Iterator[None]:
    """Be connected to the cluster during a block; leave it afterwards, and end what was started for it.

    A Ray that the caller has initialised is used, and left as it is. Raises BadInput when there is no cluster at the
    address, or no machine of it offers what one trial asks for.
    """
    import ray

    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            _connect(_address(setting))
        if slots(setting) == 0:
            raise BadInput(_too_much(setting))
        # Ray says on standard output that a machine is lost, among what may be JSON.
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if is_ours:
            ray.shutdown()


def slots(setting: Setting) -> int:
    """Return how many trials the cluster, as it is now, runs at a time."""
    return sum(_room(resources, setting) for resources in _machines().values())


def foreign_hosts() -> list[str]:
    """Return the names of the cluster's machines that are not this one."""
    import ray

    names = {str(node["NodeManagerHostname"]) for node in ray.nodes() if node["Alive"]}
    return sorted(names - {socket.gethostname()})


def _address(setting: Setting) -> str:
    # Ray's own default joins whatever cluster it finds on this machine: that has to be asked for, as `auto`.
    return setting.ray_address or os.environ.get("RAY_ADDRESS") or "local"


def _knock(address: str) -> None:
    """Raise BadInput unless somebody listens at an address."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise BadInput(f"--ray-address: write HOST:PORT of the cluster's head, as in 10.0.0.5:6379, not {address}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"--ray-address: no Ray cluster answers at {address} ({reason})") from None


def _connect(address: str) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What it has to say, its exceptions say as well; and results are printed here.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    more: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, logging_level=logging.CRITICAL, **more)
    except Exception as error:  # a dozen kinds: another version, no token, no memory, nobody there
        line = (str(error).strip() or type(error).__name__).split("\n")[0]
        where = "Ray cannot be started here" if address == "local" else f"--ray-address: cannot join {address}"
        # `ray start` asks for the user's token where there is one; who joins sends it only when told to.
        may_ask = address != "local" and "RAY_AUTH_MODE" not in os.environ
        hint = "; if the cluster asks for a token, set RAY_AUTH_MODE=token" if may_ask else ""
        raise BadInput(f"{where}: {line}{hint}") from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which closes no run


def _machines() -> Mapping[str, Mapping[str, float]]:
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _room(resources: Mapping[str, float], setting: Setting) -> int:
    """Return how many trials one machine runs at a time; a part of a GPU is a part of one of them."""
    room = int(resources.get("CPU", 0) // setting.cpus_per_trial)
    share, gpus = setting.gpus_per_trial, resources.get("GPU", 0)
    if share == 0:
        return room
    # 1 / 0.1 is a little less than ten for a computer.
    return min(room, int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-6))


def _too_much(setting: Setting) -> str:
    cpus, gpus = setting.cpus_per_trial, setting.gpus_per_trial
    have = [f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs" for found in _machines().values()]
    return (
        f"a trial asks for {cpus} CPU{'s' * (cpus > 1)} and {gpus:g} GPUs (--cpus-per-trial, --gpus-per-trial), which "
        f"no machine of the Ray cluster has; it has machines with {'; '.join(dict.fromkeys(have))}"
    )
