"""`adaptkit cache`: list, verify and clear the cache."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import output_options
from adaptkit.system.folders import parse_size, shown_size

if TYPE_CHECKING:
    from adaptkit.api.cache import Entry

kinds_argument = click.argument("kinds", nargs=-1, metavar="[KIND]...")


@click.group()
def cache() -> None:
    """List, verify or clear the cache.

    \b
    Examples:
      adaptkit cache list
      adaptkit cache verify
      adaptkit cache clear --keep 2GB

    The cache holds trained bases, features of frozen layers, and results of image file checks. adaptkit computes
    removed entries again. The folder is ADAPTKIT_CACHE, or the platform's cache folder by default. KIND is bases,
    features, pictures or leftovers.
    """


@cache.command("list")
@kinds_argument
@output_options
def list_(kinds: tuple[str, ...], as_json: bool) -> None:
    """List the entries of the cache, the most recently used first.

    \b
    Example: adaptkit cache list bases
    """
    from adaptkit.api.cache import list_cache
    from adaptkit.cli.views.console import output, print_json, print_line
    from adaptkit.system.folders import cache_folder

    entries = list_cache(kinds)
    if as_json:
        print_json({"folder": str(cache_folder()), "entries": [_plain(entry) for entry in entries]})
        return
    console = output()
    print_line(console, f"{cache_folder()}: {_total(entries)}")
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
@click.option("--remove", is_flag=True, help="Remove damaged entries. They are computed again when they are needed.")
@output_options
def verify(kinds: tuple[str, ...], remove: bool, as_json: bool) -> None:
    """Verify the checksums of all entries.

    \b
    Example: adaptkit cache verify --remove

    Runs do not use damaged entries, but compute them again. The exit code is 1 if damaged entries remain.
    """
    from adaptkit.api.cache import remove_damaged, verify_cache
    from adaptkit.cli.views.console import output, print_json, print_line

    checked = list(verify_cache(kinds))
    damaged = [damage for _, damage in checked if damage is not None]
    left = remove_damaged(damaged) if remove else damaged
    if as_json:
        rows = [
            _plain(damage.entry) | {"reason": damage.reason, "removed": remove and damage not in left}
            for damage in damaged
        ]
        print_json({"read": len(checked), "damaged": rows})
    else:
        console = output()
        for damage in damaged:
            end = " (removed)" if remove and damage not in left else ""
            print_line(console, f"{damage.entry.path}: {damage.reason}{end}")
        print_line(console, f"{_total([entry for entry, _ in checked])} read, {len(damaged)} damaged")
    if left:
        sys.exit(1)


@cache.command()
@kinds_argument
@click.option("--unused-for", metavar="TIME", help="Remove only entries that were unused for this time: 12h, 30d.")
@click.option("--keep", metavar="SIZE", help="Keep the most recently used entries up to this size: 500MB, 2GB.")
@output_options
def clear(kinds: tuple[str, ...], unused_for: str | None, keep: str | None, as_json: bool) -> None:
    """Remove entries of the cache.

    \b
    Examples:
      adaptkit cache clear
      adaptkit cache clear features --unused-for 30d

    Entries that a process is using are not removed.
    """
    from adaptkit.api.cache import clear_cache
    from adaptkit.cli.options import parse_duration
    from adaptkit.cli.views.console import output, print_json, print_line

    seconds = 0.0 if unused_for is None else parse_duration("--unused-for", unused_for)
    removed, busy = clear_cache(kinds, seconds, 0 if keep is None else parse_size("--keep", keep))
    if as_json:
        print_json({"removed": [_plain(entry) for entry in removed], "in_use": [_plain(entry) for entry in busy]})
        return
    print_line(output(), f"Removed {_total(removed)}")
    for entry in busy:
        print_line(output(), f"{entry.path} is in use")


def _plain(entry: Entry) -> dict[str, Any]:
    return dataclasses.asdict(entry) | {"path": str(entry.path)}


def _total(entries: list[Entry]) -> str:
    count = "1 entry" if len(entries) == 1 else f"{len(entries):,} entries"
    return f"{count}, {shown_size(sum(entry.bytes for entry in entries))}"
