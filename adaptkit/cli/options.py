"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


class NamedPath(click.Path):
    """A path; an empty one, which would mean the current folder, is refused with the reason `empty`."""

    empty = "it names no file"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail(self.empty, param, ctx)
        return super().convert(value, param, ctx)


class Folder(NamedPath):
    """The path of a folder."""

    empty = "it names no folder; the current one is called ."


class Pictures(NamedPath):
    """The path of a picture, or of a folder of pictures."""

    empty = "'' names no picture and no folder; the current one is called ."


plugin_option = click.option(
    "--plugin", "plugin", multiple=True, type=click.Path(), metavar="PATH", help="Python file with hooks. Repeatable."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def split_pairs(option: str, pairs: Sequence[str], problems: list[str]) -> dict[str, str]:
    """Return `key=value` arguments as a dictionary; note those that are not."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            found[key.strip()] = value.strip()
        else:
            problems.append(f"{option} {pair}: write key=value")
    return found
