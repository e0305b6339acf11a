"""`adaptkit ui`: start `mlflow ui` on a store and print the link to its runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from adaptkit.cli.options import store_option, traceback_option
from adaptkit.errors import AdaptkitError, BadInput
from adaptkit.system.imports import SAFE_PATH
from adaptkit.system.signals import held, interruptible, require_none
from adaptkit.system.streams import printable
from adaptkit.tracking.address import UI_PORT, Address

if TYPE_CHECKING:
    from mlflow import MlflowClient

START_SECONDS = 120.0  # measured: 4 s on an idle machine, 24 s on a busy one
STOP_SECONDS = 10.0  # for requests in progress
#: Runs `python -m mlflow` and stops all its processes when standard input closes, for example if adaptkit is killed.
SERVE = """
import os, runpy, signal, threading

def wait():
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)

threading.Thread(target=wait, daemon=True).start()
runpy.run_module("mlflow", run_name="__main__", alter_sys=True)
"""


@click.command()
@click.option(
    "--experiment", metavar="NAME", help="MLflow experiment to link to.  [default: $MLFLOW_EXPERIMENT_NAME or adaptkit]"
)
@store_option
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help=f"Port on this machine.  [default: {UI_PORT}, or the next free one]",
)
@traceback_option
def ui(experiment: str | None, tracking_uri: str | None, port: int | None) -> None:
    """Open the runs in MLflow.

    \b
    Example: adaptkit ui

    This starts MLflow's web server and prints a link to the charts of the runs. Press Ctrl-C to stop it. `mlflow ui`
    shows the same page, but it starts more slowly and needs several times the memory.
    """
    from adaptkit.tracking.store import errors_as_lines, open_existing

    with interruptible():
        address, client = open_existing(tracking_uri)
        with errors_as_lines(address):
            experiment_id = find_experiment(address, client, experiment)
        words = "Look at the runs:" if experiment_id else "Look at the experiments:"
        if address.is_server:
            click.echo(printable(f"{words}  {address.runs_url(experiment_id)}"))
            return
        port = free_port(UI_PORT) if port is None else checked_port(port)
        click.echo(printable(f"Starting MLflow on {address.shown}"), err=True)
        with server(address, port) as process:
            click.echo(f"{words}  {address.runs_url(experiment_id, port)}")
            click.echo("Press Ctrl-C to stop it.", err=True)
            process.wait()
            raise AdaptkitError(f"`mlflow ui` stopped with exit code {process.returncode}")


def find_experiment(address: Address, client: MlflowClient, name: str | None) -> str | None:
    """Return the id of the experiment. Without a name, return None if the store does not have the default one."""
    from adaptkit.tracking.store import existing_experiment, experiment_name

    if name is None:
        default = client.get_experiment_by_name(experiment_name(client, address, None))
        return str(default.experiment_id) if default is not None and default.lifecycle_stage == "active" else None
    return existing_experiment(address, client, name)


def checked_port(port: int) -> int:
    """Return the port. Raise BadInput if it is in use."""
    if not _is_free(port):
        raise BadInput(f"--port: {port} is in use; choose another port, or leave the option out for the next free one")
    return port


def free_port(first: int) -> int:
    """Return the first free port, starting at `first`."""
    for port in range(first, first + 100):
        if _is_free(port):
            return port
    raise BadInput(f"no port from {first} to {first + 99} is free; choose one with --port")


@contextmanager
def server(address: Address, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mlflow ui` on a store during the block, which starts after the first response of the server.

    Raises AdaptkitError if the server does not start.
    """
    command = [sys.executable, "-c", SERVE, "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as empty, tempfile.TemporaryFile() as log:
        environment = {
            **os.environ,
            **SAFE_PATH,
            # Uvicorn searches this folder for modules first. Its default is the current folder.
            "UVICORN_APP_DIR": empty,
            # MLflow starts its web server by name.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            # Every user of the machine can read command lines, and the address may contain a password.
            "MLFLOW_BACKEND_STORE_URI": address.uri,
            # Only language models use MLflow's jobs. These need 14 processes, twice the time and five times the memory.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
        }
        process = None
        try:
            with held():
                # A new session: its processes can be stopped together, and do not receive Ctrl-C.
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
                )
            require_none()
            _wait_until_up(process, port, log=log, address=address)
            yield process
        finally:
            if process is not None:
                _stop(process)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name == "posix":  # like the server; on other systems, the option would share a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: IO[bytes], address: Address) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            lines = log.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
            raise AdaptkitError(f"`mlflow ui` did not start: {address.without_secrets(last)}")
        if _answers(port):
            return
        time.sleep(0.1)
    raise AdaptkitError(f"`mlflow ui` did not answer within {START_SECONDS:.0f} s")


def _answers(port: int) -> bool:
    # urllib would use the proxy of the environment.
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server and all its processes, including those that outlive the first one."""
    until = time.monotonic() + STOP_SECONDS
    left = _signal_all(process, signal.SIGTERM)
    while left and time.monotonic() < until:
        time.sleep(0.05)
        process.poll()  # an ended process counts as alive until it is polled
        left = _signal_all(process, 0)
    if left:
        _signal_all(process, signal.SIGKILL)
    process.communicate()


def _signal_all(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to the process and its children. Return whether one of them exists."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
