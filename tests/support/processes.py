"""Start the command line as processes that have already imported adaptkit, torch and MLflow.

A fresh `python -m adaptkit` spends four seconds of CPU time on its imports. These processes are forks of a server
(support.fork_server), one for each test process. Tests of the imports themselves start a fresh Python.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from support import fork_server


class Process:
    """A process of the command line, with the interface of `subprocess.Popen` that the tests use."""

    def __init__(self, answers: socket.socket, stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self._answers = answers.makefile("r")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when the process has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._answers.readline())
            self._answers.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what is left of standard output and standard error when the process has ended."""
        left: dict[str, str] = {}

        def read(name: str, stream: IO[str]) -> None:
            with stream:
                left[name] = stream.read()

        readers = [
            threading.Thread(target=read, args=(name, stream), daemon=True)
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr))
            if stream is not None and not stream.closed
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return left.get("stdout", ""), left.get("stderr", "")

    def send_signal(self, number: int) -> None:
        """Send a signal if the process runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


def start(
    *arguments: str,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    code: str = "",
) -> Process:
    """Start the command line with these arguments, or a program, in a folder (default: the current one).

    `environment` replaces all environment variables. The streams are descriptors; by default, standard input is empty,
    and the others are pipes.
    """
    request = {
        "arguments": arguments,
        "code": code,
        "folder": str((folder or Path()).resolve()),
        "environment": dict(os.environ if environment is None else environment),
    }
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as empty:
        pipes = [os.pipe() if stream is None else None for stream in (stdout, stderr)]
        ends = [stream if pipe is None else pipe[1] for stream, pipe in zip((stdout, stderr), pipes, strict=True)]
        handles = [theirs.fileno(), empty.fileno() if stdin is None else stdin, *ends]
        socket.send_fds(_server()[1], [json.dumps(request).encode()], handles)
        theirs.close()  # reading ends when the process of the server has ended
        for pipe in filter(None, pipes):
            os.close(pipe[1])
        return Process(ours, *(os.fdopen(pipe[0]) if pipe else None for pipe in pipes))


def run(*arguments: str, timeout: float | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line, as `start` does, until it has ended."""
    process = start(*arguments, **more)
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(arguments, process.wait(), output, errors)


@functools.cache
def _server() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the server of this test process, with which it ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, fork_server.__file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )

    def stop() -> None:
        ours.close()
        server.wait()

    atexit.register(stop)
    return server, ours
