"""Consoles of the command line: results go to standard output, progress and notices to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from adaptkit.errors import without_secrets
from adaptkit.system.streams import printable

#: Width of the output when it is not a terminal: wide enough for every table.
FILE_WIDTH = 120


class PlainConsole(Console):
    """A console that escapes control characters, because text may come from untrusted files and stores."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text without secrets, with its control characters escaped."""
        return super().render_str(printable(without_secrets(text)), **options)


def output() -> Console:
    """Return the console of results."""
    return _console(sys.stdout.isatty(), stderr=False)


def messages() -> Console:
    """Return the console of progress and notices."""
    return _console(sys.stderr.isatty(), stderr=True)


def print_line(console: Console, line: str, style: str | None = None) -> None:
    """Print a line without markup and without wrapping."""
    console.print(line, markup=False, soft_wrap=True, style=style)


def print_json(document: object) -> None:
    """Print the JSON document of a command with `--json`; paths and dates become strings."""
    click.echo(json.dumps(document, indent=2, default=str))


@contextmanager
def resumable(console: Console) -> Iterator[None]:
    """If the block is interrupted, print that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        print_line(console, "Finished trials are kept. Run the same command again to continue.")
        raise


def _console(terminal: bool, stderr: bool) -> Console:
    # Without a terminal, disable ANSI codes, wrapping and live displays.
    return (
        PlainConsole(stderr=stderr, highlight=False, soft_wrap=False, emoji=False)
        if terminal
        else PlainConsole(
            stderr=stderr, highlight=False, no_color=True, force_terminal=False, width=FILE_WIDTH, emoji=False
        )
    )
