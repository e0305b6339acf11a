"""Print where nobody reads any more, or the disk is full: progress is dropped, results that are lost are an error."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

from adaptkit.errors import AdaptkitError


class OutputLost(AdaptkitError):
    """Report results that could not be printed; of a reader that has gone, it is told by the exit code alone."""

    def __init__(self, error: OSError) -> None:
        gone = error.errno == errno.EPIPE
        super().__init__(*([] if gone else [f"cannot print: {error.strerror or error}"]))
        self.exit_code = 128 + getattr(signal, "SIGPIPE", 13) if gone else 1


class _Stream:
    """A stream like another one, which fails once: what is written afterwards goes nowhere."""

    def __init__(self, stream: TextIO | None) -> None:
        # None: it was closed before Python began.
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self._error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, and note whether it could be."""
        if text == "":  # Click tries streams with it; written to some of them, nothing is too much
            return 0
        count = len(text)
        with self._noted():
            count = self._stream.write(text)
        return count

    def flush(self) -> None:
        """Flush, and note whether it could be."""
        with self._noted():
            self._stream.flush()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = error
            # Else Python would try to write the rest as it exits, and exit with a code of its own.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
        self._tell()

    def _tell(self) -> None:
        """Say nothing of what was not written."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Messages(_Stream):
    """Standard error: no run fails since nobody hears of it."""


class Results(_Stream):
    """Standard output: whoever asked for results is told that they are not there."""

    def _tell(self) -> None:
        if self._error is not None:
            raise OutputLost(self._error) from None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Let both standard streams be of this kind."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Results(sys.stdout), Messages(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def printable(text: str, keep: str = "\n\t") -> str:
    """Return a text with all that would act on a terminal, or cannot be encoded, written out as Python does.

    Escape sequences and marks that turn the direction of writing are among it; spaces and the signs to `keep` are not.
    """
    if text.isprintable():
        return text
    return "".join(sign if _is_plain(sign) or sign in keep else _written(sign) for sign in text)


def printable_line(text: str) -> str:
    """Return a text, such as a path, as one line that can be printed: line breaks and tabs are written out too."""
    return printable(text, keep="")


def _is_plain(sign: str) -> bool:
    # Of all spaces Python takes only the plain one for printable; files are named with others, too.
    return sign.isprintable() or unicodedata.category(sign) == "Zs"


def _written(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
