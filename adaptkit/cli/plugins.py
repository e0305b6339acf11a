"""List plugins: where they come from, what they offer, what is wrong with them."""

from __future__ import annotations

import json
import sys

import click

from adaptkit.cli.options import json_option, plugin_option
from adaptkit.plugins import load_plugins


@click.command()
@plugin_option
@json_option
def plugins(plugin: tuple[str, ...], as_json: bool) -> None:
    """List plugins, what they offer and what is wrong with them.

    \b
    Example: adaptkit plugins
    """
    loaded = load_plugins(plugin)
    offered: dict[str, list[str]] = {}
    for kind, offers in loaded.offers.items():
        for offer in offers.values():
            offered.setdefault(offer.origin, []).append(f"{kind} {offer.name}")
    origins = [name for name, plugin in loaded.manager.list_name_plugin() if plugin is not None]
    if as_json:
        document = {
            "python": sys.executable,
            "plugins": [{"origin": origin, "offers": offered.get(origin, [])} for origin in origins],
            "faults": [{"origin": fault.origin, "message": fault.message} for fault in loaded.faults],
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"Python: {sys.executable}")
    for origin in origins:
        click.echo(f"{origin}: {', '.join(offered.get(origin, [])) or 'watches runs'}")
    for fault in loaded.faults:
        click.echo(f"Warning: {fault}", err=True)
