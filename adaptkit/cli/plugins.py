"""`adaptkit plugins`: list, check and create plugins."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import FolderType, output_options, plugin_option, split_pairs, traceback_option
from adaptkit.cli.views.console import output, print_json, print_line
from adaptkit.errors import BadInput, suggestion
from adaptkit.plugins.components import Component
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins
from adaptkit.system.files import expanded
from adaptkit.system.streams import printable

if TYPE_CHECKING:
    from adaptkit.testing import Verdict


@click.group(invoke_without_command=True)
@plugin_option
@output_options
@click.pass_context
def plugins(context: click.Context, plugin: tuple[str, ...], as_json: bool) -> None:
    """List, check or create plugins.

    \b
    Examples:
      adaptkit plugins list
      adaptkit plugins check lora
      adaptkit plugins new my-method
    """
    if context.invoked_subcommand is None:
        show(plugin, as_json)
    elif plugin or as_json:
        raise click.UsageError(f"options go after the command: adaptkit plugins {context.invoked_subcommand} ...")


@plugins.command("list")
@plugin_option
@output_options
def list_(plugin: tuple[str, ...], as_json: bool) -> None:
    """List the components of plugins, with origins and problems.

    \b
    Example: adaptkit plugins list
    """
    show(plugin, as_json)


@plugins.command()
@click.argument("what", metavar="NAME|PATH")
@click.option(
    "-o", "options", multiple=True, metavar="KEY=VALUE", help="Option to check with, e.g. rank=4. Repeatable."
)
@click.option(
    "--data-dir",
    type=FolderType(),
    default=Path("data"),
    help="Folder of data sets, or of example files.  [default: data]",
)
@plugin_option
@output_options
def check(what: str, options: tuple[str, ...], data_dir: Path, plugin: tuple[str, ...], as_json: bool) -> None:
    """Check that a plugin works, on small models.

    \b
    Examples:
      adaptkit plugins check lora -o rank=4
      adaptkit plugins check my_plugin.py

    NAME is a strategy, backbone, data set, reader, shift, engine or installed plugin. PATH is a Python file with hooks.
    The exit code is 1 if a check fails.
    """
    check_plugin(what, options, data_dir=data_dir, files=plugin, as_json=as_json)


@plugins.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["strategy", "backbone", "dataset", "shift"]),
    default="strategy",
    show_default=True,
    help="Kind of class that the plugin adds.",
)
@click.option(
    "--output",
    type=FolderType(),
    default=Path(),
    metavar="DIR",
    help="Folder to create the package in.  [default: .]",
)
@traceback_option
def new(name: str, kind: str, output: Path) -> None:
    """Create a plugin: an installable package with a test.

    \b
    Example: adaptkit plugins new my-method
    """
    from adaptkit.scaffold import write_package

    written = write_package(name, kind, output)
    click.echo(f"Wrote {written.folder}. Next:\n")
    # pip takes a path with extras only if it is absolute or begins with a dot.
    place = written.folder if written.folder.is_absolute() else f".{os.sep}{written.folder}"
    click.echo(f"  adaptkit plugins check {shlex.quote(str(written.module))}")
    click.echo(f"  pip install -e {shlex.quote(f'{place}[test]')}")
    click.echo(f"  {written.example}")
    click.echo(f"  pytest {shlex.quote(str(written.folder))}")


def show(files: tuple[str, ...], as_json: bool) -> None:
    """Print all plugins, including those that could not be loaded."""
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
        print_json(document)
        return
    from rich.markup import escape
    from rich.table import Table

    console = output()
    table = Table("name", "kind", "from", "state", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(escape(row[key]) for key in ("name", "kind", "origin", "state")))
    console.print(table)
    print_line(console, f"Python: {sys.executable}")
    for fault in loaded.faults:
        click.echo(f"Warning: {printable(str(fault))}", err=True)


def list_offers(loaded: Plugins) -> list[dict[str, Any]]:
    """Return a row for each component, and for each plugin that only watches runs or could not be loaded."""
    rows = []
    taken = {fault.taken for fault in loaded.faults}
    for kind, components in loaded.components.items():
        for component in components.values():
            state = "offered twice" if (kind, component.name) in taken else component.unavailable or "ok"
            rows.append({"name": component.shown, "kind": kind, "origin": component.origin, "state": state})
    providers = {row["origin"] for row in rows}
    for source in loaded.sources:
        wrong = [fault.message for fault in loaded.faults if fault.source == source and not fault.works]
        if wrong:
            rows.append({"name": "-", "kind": "-", "origin": source.origin, "state": "; ".join(wrong)})
        elif source.origin not in providers:
            rows.append({"name": "-", "kind": "watches runs", "origin": source.origin, "state": "ok"})
    return rows


MARKS = {"passed": "[green]ok[/]", "failed": "[red]FAILED[/]", "not tried": "[dim]-[/]"}


def check_plugin(what: str, options: Sequence[str], data_dir: Path, files: Sequence[str], as_json: bool) -> None:
    """Check all offers of a name, an installed plugin or a file. Exit with 1 if a check fails."""
    is_file = not Path(what).is_dir() and (what.endswith(".py") or os.sep in what or Path(what).is_file())
    plugins = load_plugins([*files, what] if is_file else files)
    problems: list[str] = []
    values = split_pairs("-o", options, problems)
    if problems:
        raise BadInput(*problems)
    components = _find_components(plugins, str(expanded(what).absolute()) if is_file else what)
    if values and len(components) > 1:
        names = ", ".join(component.name for component in components)
        raise BadInput(f"-o: {what} provides {len(components)} classes; name one of {names}")

    from adaptkit.testing import checks, try_all

    argument = what.partition(":")[2] if not is_file else ""
    results: dict[str, list[Verdict]] = {}
    for component in components:
        title = f"{component.kind} {component.name}"
        if component.argument and not argument:
            raise BadInput(f"{title} needs a name after a colon: {component.shown}")
        results[title] = try_all(checks(component.cls, values, argument=argument, data_dir=data_dir))
    failed = any(verdict.word == "failed" for verdicts in results.values() for verdict in verdicts)
    if as_json:
        document = [
            {"name": component.name, "kind": component.kind, "origin": component.origin, "checks": _records(verdicts)}
            for component, verdicts in zip(components, results.values(), strict=True)
        ]
        print_json(document)
    else:
        for title, verdicts in results.items():
            _print(title, verdicts)
    if failed:
        raise click.exceptions.Exit(1)


def _find_components(plugins: Plugins, what: str) -> list[Component]:
    """Return the components of a name, an installed plugin or a file; raise BadInput if it is unknown or broken."""
    bare = what.partition(":")[0]
    named = [plugins.find(kind, what) for kind, components in plugins.components.items() if bare in components]
    if named:
        return named
    origins = {source.origin for source in plugins.sources if what in (source.origin, source.origin.split(" ")[0])}
    broken = [str(fault) for fault in plugins.faults if fault.origin in origins and not fault.works]
    if broken:
        raise BadInput(*broken)
    every = [component for components in plugins.components.values() for component in components.values()]
    provided = [component for component in every if component.origin in origins]
    available = [component for component in provided if not component.unavailable]
    if not available and origins:
        reasons = [f"{component.name} cannot be used: {component.unavailable}" for component in provided]
        raise BadInput(f"{what} has nothing to check: {'; '.join(reasons) or 'it only watches runs'}")
    if not available and Path(what).is_dir():
        raise BadInput(f"{what} is a folder; check its .py file, or install it with pip and check its plugin by name")
    if not available:
        names = {component.name for component in every} | {source.origin.split(" ")[0] for source in plugins.sources}
        unloaded = "".join(f" ({fault})" for fault in plugins.faults if not fault.works)
        raise BadInput(f"unknown name {what!r}{suggestion(what, names - {'built-in'})}{unloaded}")
    return available


def _records(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(verdict) for verdict in verdicts]


def _print(title: str, verdicts: Sequence[Verdict]) -> None:
    """Print a table with a row for each check and a column for each model, then the reasons of failures."""
    from rich.markup import escape
    from rich.table import Table

    console = output()
    subjects = list(dict.fromkeys(verdict.subject for verdict in verdicts if verdict.subject not in ("options", "all")))
    table = Table(title, *subjects, box=None, pad_edge=False, header_style="bold")
    for check in dict.fromkeys(verdict.check for verdict in verdicts):
        marks = {verdict.subject: MARKS[verdict.word] for verdict in verdicts if verdict.check == check}
        if len(marks) == 1 and next(iter(marks)) in ("options", "all"):
            table.add_row(check, *marks.values())
        else:
            table.add_row(check, *(marks.get(subject, "") for subject in subjects))
    console.print(table)
    counts = {word: sum(verdict.word == word for verdict in verdicts) for word in MARKS}
    failures = dict.fromkeys(
        (verdict.word, verdict.check, verdict.reason) for verdict in verdicts if verdict.word == "failed"
    )
    for _, check, reason in failures:
        on = [verdict.subject for verdict in verdicts if (verdict.check, verdict.reason) == (check, reason)]
        console.print(f"[red]FAILED[/] {check} ({escape(', '.join(on))}): {escape(reason)}", soft_wrap=True)
    skipped = dict.fromkeys(verdict.reason for verdict in verdicts if verdict.word == "not tried")
    for reason in skipped:
        on = list(dict.fromkeys(v.subject for v in verdicts if v.word == "not tried" and v.reason == reason))
        console.print(f"[dim]not tried[/] ({escape(', '.join(on))}): {escape(reason)}", soft_wrap=True)
    console.print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['not tried']} not tried\n")
