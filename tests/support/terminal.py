"""Run commands on a pseudo-terminal, for tests."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios

from support.processes import start


def on_a_terminal(*arguments: str, width: int) -> tuple[int, str]:
    """Run a command on a pseudo-terminal of this width; return its exit code and its output."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = dict(os.environ, TERM="xterm-256color", COLUMNS=str(width))
    process = start(*arguments, environment=environment, stdin=child, stdout=child, stderr=child)
    os.close(child)
    printed = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        printed += part
    os.close(parent)
    return process.wait(), printed.decode()
