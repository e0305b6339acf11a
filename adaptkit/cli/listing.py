"""List what can be named on the command line: strategies, data sets, backbones, shifts."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable
from typing import Any

import click

from adaptkit.cli.options import json_option, plugin_option
from adaptkit.plugins.components import Component, options_of
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.settings import DEFAULT_LR


def listing(kind: str, plural: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command that lists the offers of one kind; the function's docstring is its help."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.command(plural, help=function.__doc__)
        @click.option("--all", "everything", is_flag=True, help="Those that cannot be used here, too, with the reason.")
        @plugin_option
        @json_option
        def command(everything: bool, plugin: tuple[str, ...], as_json: bool) -> None:
            loaded = load_plugins(plugin)
            loaded.require_sound()
            offers = [offer for offer in loaded.components[kind].values() if everything or not offer.unavailable]
            if as_json:
                click.echo(json.dumps([describe(offer) for offer in offers], indent=2, default=str))
            else:
                print_offers(offers)

        return command

    return decorate


@listing("strategy", "strategies")
def strategies() -> None:
    """List strategies, their options, defaults and where they come from.

    \b
    Example: adaptkit strategies
    """


@listing("dataset", "datasets")
def datasets() -> None:
    """List data sets, for --dataset and --target.

    \b
    Example: adaptkit datasets
    """


@listing("backbone", "backbones")
def backbones() -> None:
    """List backbones, for --backbone.

    \b
    Example: adaptkit backbones
    """


@listing("shift", "shifts")
def shifts() -> None:
    """List shifts, for --shift name=amount,name=amount.

    \b
    Example: adaptkit shifts
    """


def describe(offer: Component) -> dict[str, Any]:
    """Return an offer as plain JSON types."""
    record: dict[str, Any] = {"name": offer.name, "summary": offer.summary, "origin": offer.origin}
    if offer.argument:
        record["argument"] = offer.argument
    if offer.unavailable:
        record["unavailable"] = offer.unavailable
    if offer.kind == "strategy":
        record["lr"] = getattr(offer.cls, "lr", DEFAULT_LR)
    if offer.kind != "dataset":
        record["options"] = [
            {
                "name": name,
                "type": _type_name(offer.cls, name),
                "required": _default(field) is dataclasses.MISSING,
                "default": None if _default(field) is dataclasses.MISSING else _default(field),
                "help": field.metadata.get("help", ""),
            }
            for name, field in options_of(offer.cls).items()
        ]
    return record


def print_offers(offers: list[Component]) -> None:
    """Print offers as a table, with the options of each below it."""
    from rich.markup import escape

    from adaptkit.cli.views.console import output

    console = output()
    width = max((len(offer.shown) for offer in offers), default=0)
    for offer in offers:
        console.print(
            f"[bold]{offer.shown:<{width}}[/]  {escape(offer.summary)}  [dim]({escape(offer.origin)})[/]",
            soft_wrap=True,
        )
        if offer.unavailable:
            console.print(f"{'':{width}}    cannot be used: {offer.unavailable}", markup=False, soft_wrap=True)
        for option in describe(offer).get("options", []):
            value = "VALUE (required)" if option["required"] else option["default"]
            if offer.kind == "shift":
                usage = f"{offer.name}=AMOUNT"
            elif offer.kind == "backbone":
                usage = f"--set backbone.{option['name']}={value}"
            else:
                usage = f"-o {option['name']}={value}"
            console.print(f"{'':{width}}    {usage}  {option['help']}", markup=False, soft_wrap=True)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _type_name(cls: type[Any], option: str) -> str:
    hint = typing.get_type_hints(cls)[option]
    return getattr(hint, "__name__", str(hint))
