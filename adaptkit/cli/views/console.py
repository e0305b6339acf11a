"""Where the command line writes: results to standard output, progress and notices to standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from adaptkit.errors import without_secrets
from adaptkit.system.streams import printable

#: Wide enough for every table when nobody looks at the output.
FILE_WIDTH = 120


class PlainConsole(Console):
    """A console on which no text can act: names in it come from files and stores of whoever made them."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it is printed, whatever was in it for the terminal written out."""
        return super().render_str(printable(without_secrets(text)), **options)


def output() -> Console:
    """Return the console of results."""
    return _console(sys.stdout.isatty(), stderr=False)


def messages() -> Console:
    """Return the console of progress and notices."""
    return _console(sys.stderr.isatty(), stderr=True)


@contextmanager
def going_on(console: Console) -> Iterator[None]:
    """Say after an interruption that nothing of what is done will be done again."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("What is done is kept: the same command goes on.")
        raise


def _console(terminal: bool, stderr: bool) -> Console:
    # Without a terminal: no ANSI codes, no wrapping at a width that nobody chose, no live display.
    return (
        PlainConsole(stderr=stderr, highlight=False, soft_wrap=False, emoji=False)
        if terminal
        else PlainConsole(
            stderr=stderr, highlight=False, no_color=True, force_terminal=False, width=FILE_WIDTH, emoji=False
        )
    )
