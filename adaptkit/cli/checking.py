"""Try what plugins offer, and tell what each of them keeps."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import split_pairs
from adaptkit.cli.terminal import output
from adaptkit.errors import BadInput, suggestion
from adaptkit.loading import load_plugins
from adaptkit.offers import Offer
from adaptkit.plain_files import expanded
from adaptkit.plugins import Plugins

if TYPE_CHECKING:
    from adaptkit.testing import Verdict

MARKS = {"passed": "[green]ok[/]", "failed": "[red]FAILED[/]", "not tried": "[dim]-[/]"}


def check_plugin(what: str, options: Sequence[str], data_dir: Path, files: Sequence[str], as_json: bool) -> None:
    """Try all that a name, an installed plugin or a file stands for, print it, and exit with 1 if something fails."""
    is_file = what.endswith(".py") or os.sep in what or Path(what).is_file()
    plugins = load_plugins([*files, what] if is_file else files)
    problems: list[str] = []
    given = split_pairs("-o", options, problems)
    if problems:
        raise BadInput(*problems)
    offers = _offers(plugins, str(expanded(what).absolute()) if is_file else what)
    if given and len(offers) > 1:
        raise BadInput(f"-o: {what} offers {len(offers)} things; name one of {', '.join(o.name for o in offers)}")

    from adaptkit.testing import checks, try_all

    argument = what.partition(":")[2] if not is_file else ""
    results: dict[str, list[Verdict]] = {}
    for offer in offers:
        if offer.argument and not argument:
            raise BadInput(f"{offer.kind} {offer.name} needs a name after a colon: {offer.shown}")
        found = checks(offer.cls, given, argument=argument, data_dir=data_dir)
        results[f"{offer.kind} {offer.name}"] = try_all(found)
    failed = any(verdict.word == "failed" for verdicts in results.values() for verdict in verdicts)
    if as_json:
        document = [
            {"name": offer.name, "kind": offer.kind, "origin": offer.origin, "checks": _records(verdicts)}
            for offer, verdicts in zip(offers, results.values(), strict=True)
        ]
        click.echo(json.dumps(document, indent=2))
    else:
        for title, verdicts in results.items():
            _print(title, verdicts)
    if failed:
        raise click.exceptions.Exit(1)


def _offers(plugins: Plugins, what: str) -> list[Offer]:
    """Return what a name, an installed plugin or a file offers; raise BadInput for one that is not there or broken."""
    bare = what.partition(":")[0]
    named = [plugins.find(kind, what) for kind, offers in plugins.offers.items() if bare in offers]
    if named:
        return named
    origins = {source.origin for source in plugins.sources if what in (source.origin, source.origin.split(" ")[0])}
    broken = [str(fault) for fault in plugins.faults if fault.origin in origins and not fault.works]
    if broken:
        raise BadInput(*broken)
    every = [offer for offers in plugins.offers.values() for offer in offers.values()]
    offered = [offer for offer in every if offer.origin in origins and not offer.unavailable]
    if not offered and origins:
        reasons = [f"{offer.name} cannot be used: {offer.unavailable}" for offer in every if offer.origin in origins]
        raise BadInput(f"{what} offers nothing that can be tried: {'; '.join(reasons) or 'it watches runs'}")
    if not offered:
        known = {offer.name for offer in every} | {source.origin.split(" ")[0] for source in plugins.sources}
        unloaded = "".join(f" ({fault})" for fault in plugins.faults if not fault.works)
        raise BadInput(f"nothing is called {what!r}{suggestion(what, known - {'built-in'})}{unloaded}")
    return offered


def _records(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(verdict) for verdict in verdicts]


def _print(title: str, verdicts: Sequence[Verdict]) -> None:
    """Print a table with a row for each check and a column for each thing it was tried on; then the reasons."""
    from rich.markup import escape
    from rich.table import Table

    console = output()
    subjects = list(dict.fromkeys(verdict.subject for verdict in verdicts if verdict.subject not in ("options", "all")))
    table = Table(title, *subjects, box=None, pad_edge=False, header_style="bold")
    for check in dict.fromkeys(verdict.check for verdict in verdicts):
        found = {verdict.subject: MARKS[verdict.word] for verdict in verdicts if verdict.check == check}
        if len(found) == 1 and next(iter(found)) in ("options", "all"):
            table.add_row(check, *list(found.values()))
        else:
            table.add_row(check, *(found.get(subject, "") for subject in subjects))
    console.print(table)
    counts = {word: sum(verdict.word == word for verdict in verdicts) for word in MARKS}
    told = dict.fromkeys(
        (verdict.word, verdict.check, verdict.reason) for verdict in verdicts if verdict.word == "failed"
    )
    for _, check, reason in told:
        on = [verdict.subject for verdict in verdicts if (verdict.check, verdict.reason) == (check, reason)]
        console.print(f"[red]FAILED[/] {check} ({escape(', '.join(on))}): {escape(reason)}", soft_wrap=True)
    skipped = dict.fromkeys(verdict.reason for verdict in verdicts if verdict.word == "not tried")
    for reason in skipped:
        on = list(dict.fromkeys(v.subject for v in verdicts if v.word == "not tried" and v.reason == reason))
        console.print(f"[dim]not tried[/] ({escape(', '.join(on))}): {escape(reason)}", soft_wrap=True)
    console.print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['not tried']} not tried\n")
