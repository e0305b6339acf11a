"""Handle closed pipes, full disks and encodings: drop messages that cannot be printed, and fail if results are lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from adaptkit.errors import AdaptkitError


class OutputLost(AdaptkitError):
    """Results could not be printed. After a closed pipe, only the exit code shows this."""

    def __init__(self, error: OSError) -> None:
        is_closed = error.errno == errno.EPIPE
        super().__init__(*([] if is_closed else [f"cannot print: {error.strerror or error}"]))
        self.exit_code = 128 + getattr(signal, "SIGPIPE", 13) if is_closed else 1


#: characters of sentences and tables -> similar ASCII characters, for streams that cannot encode them
SIMILAR = {
    "\N{EN DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{MIDDLE DOT}": ".",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{RIGHTWARDS ARROW}": "->",
    **dict.fromkeys("─━╸╺", "-"),
}


class _Stream:
    """Wrap a stream; after its first error, all further output is dropped.

    Characters that the stream cannot encode are replaced by similar ones, or by escapes such as `\\u65e5`.
    """

    #: Click and Rich need not replace any character
    encoding = "utf-8"

    def __init__(self, stream: TextIO | None) -> None:
        # None: the stream was closed before Python started.
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self._error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, and handle an error."""
        if text == "":  # Click writes it as a test; on a full device, even this fails
            return 0
        count = len(text)
        with self.handle_errors():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(_encodable(text, self._stream.encoding))
        return count

    def flush(self) -> None:
        """Flush the stream, and handle an error."""
        with self.handle_errors():
            self._stream.flush()

    @contextlib.contextmanager
    def handle_errors(self) -> Iterator[None]:
        """Handle errors of the stream in the block."""
        try:
            yield
        except OSError as error:
            self._error = error
            # Otherwise Python would try again to write when it exits, and change the exit code.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
        self._report()

    def _report(self) -> None:
        """Ignore the error; subclasses may raise it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _encodable(text: str, encoding: str) -> str:
    """Return a text without the characters that an encoding does not have."""

    def plain(character: str) -> str:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return SIMILAR.get(character) or _escaped(character)
        return character

    return "".join(map(plain, text))


class Messages(_Stream):
    """Standard error: lost messages do not make a run fail."""


class Results(_Stream):
    """Standard output: lost results are an error."""

    def _report(self) -> None:
        if self._error is not None:
            raise OutputLost(self._error) from None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Replace both standard streams by these wrappers for the duration of a block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Results(sys.stdout), Messages(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_file(path: Path) -> None:
    """Write the bytes of a file to standard output."""
    output = sys.stdout
    handled = output.handle_errors() if isinstance(output, _Stream) else contextlib.nullcontext()
    with path.open("rb") as content, handled:
        shutil.copyfileobj(content, output.buffer)
        output.flush()


def printable(text: str, keep: str = "\n\t") -> str:
    """Escape all characters that control a terminal or cannot be encoded, such as escape sequences.

    Spaces and the characters in `keep` remain unchanged.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_plain(c) or c in keep else _escaped(c) for c in text)


def printable_line(text: str) -> str:
    """Return a text, such as a path, as one line that can be printed: line breaks and tabs are escaped too."""
    return printable(text, keep="")


def _is_plain(character: str) -> bool:
    # Python counts only the ASCII space as printable, but names of files contain others.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
