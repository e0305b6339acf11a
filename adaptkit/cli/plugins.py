"""List, try and begin plugins."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import Folder, json_option, plugin_option
from adaptkit.printing import printable

if TYPE_CHECKING:
    from adaptkit.plugins import Plugins


@click.group(invoke_without_command=True)
@plugin_option
@json_option
@click.pass_context
def plugins(context: click.Context, plugin: tuple[str, ...], as_json: bool) -> None:
    """List plugins, try them, or begin one.

    \b
    Examples:
      adaptkit plugins list
      adaptkit plugins check lora
      adaptkit plugins new my-method
    """
    if context.invoked_subcommand is None:
        show(plugin, as_json)
    elif plugin or as_json:
        raise click.UsageError(f"options go behind the command: adaptkit plugins {context.invoked_subcommand} ...")


@plugins.command("list")
@plugin_option
@json_option
def list_(plugin: tuple[str, ...], as_json: bool) -> None:
    """List what plugins offer, where it comes from and what is wrong with it.

    \b
    Example: adaptkit plugins list
    """
    show(plugin, as_json)


@plugins.command()
@click.argument("what", metavar="NAME|PATH")
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="Option of what is tried: rank=4. Repeatable.")
@click.option("--data-dir", type=Folder(), default=Path("data"), help="Where data sets are read from.")
@plugin_option
@json_option
def check(what: str, options: tuple[str, ...], data_dir: Path, plugin: tuple[str, ...], as_json: bool) -> None:
    """Try what a plugin offers on small models: does it keep what adaptkit relies on?

    NAME is a strategy, backbone, data set, shift or engine, or an installed plugin; PATH a file with hooks. Exits with
    1 when a check fails.

    \b
    Examples:
      adaptkit plugins check lora -o rank=4
      adaptkit plugins check my_plugin.py
    """
    from adaptkit.cli.checking import check_plugin

    check_plugin(what, options, data_dir, plugin, as_json)


@plugins.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["strategy", "backbone", "dataset", "shift"]),
    default="strategy",
    show_default=True,
    help="What it adds.",
)
@click.option(
    "--output",
    type=Folder(),
    default=Path(),
    metavar="DIR",
    help="Where its folder goes.  [default: .]",
)
def new(name: str, kind: str, output: Path) -> None:
    """Begin a plugin: write a package that can be installed, with a test that tries what it adds.

    \b
    Example: adaptkit plugins new my-method
    """
    from adaptkit.scaffold import write_package

    written = write_package(name, kind, output)
    click.echo(f"Wrote {written.folder}. Next:\n")
    click.echo(f"  pip install -e {written.folder}")
    click.echo(f"  {written.example}")
    click.echo(f"  adaptkit plugins check {name}")
    click.echo(f"  pytest {written.folder}")


def show(files: tuple[str, ...], as_json: bool) -> None:
    """Print the plugins that can be found, loaded or not."""
    from adaptkit.loading import load_plugins

    loaded = load_plugins(files)
    rows = list_offers(loaded)
    if as_json:
        document = {
            "python": sys.executable,
            "offers": rows,
            "plugins": [
                {
                    "origin": source.origin,
                    "kind": source.kind,
                    "path": source.path,
                    "offers": [f"{row['kind']} {row['name']}" for row in rows if row["origin"] == source.origin],
                }
                for source in loaded.sources
                if not any(fault.source == source and not fault.works and not fault.taken for fault in loaded.faults)
            ],
            "faults": [
                {"origin": fault.origin, "message": fault.message, "hint": fault.source.hint, "works": fault.works}
                for fault in loaded.faults
            ],
        }
        click.echo(json.dumps(document, indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    from adaptkit.cli.terminal import output

    console = output()
    shown = Table("name", "kind", "from", "state", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        shown.add_row(*(escape(row[key]) for key in ("name", "kind", "origin", "state")))
    console.print(shown)
    console.print(f"Python: {sys.executable}", markup=False, soft_wrap=True)
    for fault in loaded.faults:
        click.echo(f"Warning: {printable(str(fault))}", err=True)


def list_offers(loaded: Plugins) -> list[dict[str, Any]]:
    """Return a row for everything that is offered, for plugins that only watch runs, and for those not loaded."""
    rows = []
    taken = {fault.taken for fault in loaded.faults}
    for kind, offers in loaded.offers.items():
        for offer in offers.values():
            state = "offered twice" if (kind, offer.name) in taken else offer.unavailable or "ok"
            rows.append({"name": offer.shown, "kind": kind, "origin": offer.origin, "state": state})
    offering = {row["origin"] for row in rows}
    for source in loaded.sources:
        wrong = [fault.message for fault in loaded.faults if fault.source == source and not fault.works]
        if wrong:
            rows.append({"name": "-", "kind": "-", "origin": source.origin, "state": "; ".join(wrong)})
        elif source.origin not in offering:
            rows.append({"name": "-", "kind": "watches runs", "origin": source.origin, "state": "ok"})
    return rows
