"""Options that several commands share."""

from __future__ import annotations

import click

plugin_option = click.option(
    "--plugin", "plugin", multiple=True, type=click.Path(), metavar="PATH", help="Python file with hooks. Repeatable."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
