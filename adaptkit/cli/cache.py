"""Show what the cache holds, find what is damaged, and make room."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import json_option
from adaptkit.system.folders import parse_size, shown_size

if TYPE_CHECKING:
    from adaptkit.api.cache import Entry

kinds_argument = click.argument("kinds", nargs=-1, metavar="[KIND]...")


@click.group()
def cache() -> None:
    """Show what the cache holds, find what is damaged, make room.

    All of it can be computed again: bases, features of frozen layers, which picture files are sound. It lies in
    ADAPTKIT_CACHE, by default in the platform's cache folder. KIND is bases, features, pictures or leftovers.

    \b
    Examples:
      adaptkit cache list
      adaptkit cache verify
      adaptkit cache clear --keep 2GB
    """


@cache.command("list")
@kinds_argument
@json_option
def list_(kinds: tuple[str, ...], as_json: bool) -> None:
    """List what is kept, the latest used first.

    \b
    Example: adaptkit cache list bases
    """
    from adaptkit.api.cache import list_cache
    from adaptkit.cli.views.console import output
    from adaptkit.system.folders import cache_folder

    entries = list_cache(kinds)
    if as_json:
        click.echo(json.dumps({"folder": str(cache_folder()), "entries": [_plain(one) for one in entries]}, indent=2))
        return
    console = output()
    console.print(f"{cache_folder()}: {_many(entries)}", markup=False, soft_wrap=True)
    if entries:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading, justify in (("kind", "left"), ("name", "left"), ("size", "right"), ("used", "left")):
            table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for entry in entries:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
            table.add_row(entry.kind, entry.path.name, shown_size(entry.bytes), when)
        console.print(table)


@cache.command()
@kinds_argument
@click.option("--remove", is_flag=True, help="Remove what is damaged: it is computed anew when it is needed.")
@json_option
def verify(kinds: tuple[str, ...], remove: bool, as_json: bool) -> None:
    """Read everything and name what does not hold what was written; exits with 1 if anything damaged stays.

    Whatever is damaged is never used: a run that needs it computes it anew.

    \b
    Example: adaptkit cache verify --remove
    """
    from adaptkit.api.cache import remove_damaged, verify_cache
    from adaptkit.cli.views.console import output

    tried = list(verify_cache(kinds))
    damaged = [damage for _, damage in tried if damage is not None]
    left = remove_damaged(damaged) if remove else damaged
    if as_json:
        rows = [
            _plain(damage.entry) | {"reason": damage.reason, "removed": remove and damage not in left}
            for damage in damaged
        ]
        click.echo(json.dumps({"read": len(tried), "damaged": rows}, indent=2))
    else:
        console = output()
        for damage in damaged:
            end = " (removed)" if remove and damage not in left else ""
            console.print(f"{damage.entry.path}: {damage.reason}{end}", markup=False, soft_wrap=True)
        console.print(f"{_many([entry for entry, _ in tried])} read, {len(damaged)} damaged", markup=False)
    if left:
        sys.exit(1)


@cache.command()
@kinds_argument
@click.option("--unused-for", metavar="TIME", help="Only what was not used for so long: 12h, 30d.")
@click.option("--keep", metavar="SIZE", help="Leave so much, the latest used: 500MB, 2GB.")
@json_option
def clear(kinds: tuple[str, ...], unused_for: str | None, keep: str | None, as_json: bool) -> None:
    """Remove what is kept: all of it, or what was not used for long. What a process uses stays.

    \b
    Examples:
      adaptkit cache clear
      adaptkit cache clear features --unused-for 30d
    """
    from adaptkit.api.cache import clear_cache
    from adaptkit.cli.options import parse_duration
    from adaptkit.cli.views.console import output

    seconds = 0.0 if unused_for is None else parse_duration("--unused-for", unused_for)
    removed, busy = clear_cache(kinds, seconds, 0 if keep is None else parse_size("--keep", keep))
    if as_json:
        found = {"removed": removed, "in_use": busy}
        click.echo(json.dumps({name: [_plain(one) for one in entries] for name, entries in found.items()}, indent=2))
        return
    output().print(f"Removed {_many(removed)}", markup=False)
    for entry in busy:
        output().print(f"{entry.path} is in use", markup=False, soft_wrap=True)


def _plain(entry: Entry) -> dict[str, Any]:
    return dataclasses.asdict(entry) | {"path": str(entry.path)}


def _many(entries: list[Entry]) -> str:
    what = "1 entry" if len(entries) == 1 else f"{len(entries):,} entries"
    return f"{what}, {shown_size(sum(entry.bytes for entry in entries))}"
