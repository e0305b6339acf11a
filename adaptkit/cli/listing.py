"""List the components of plugins: strategies, data sets, backbones, shifts, metrics and engines."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from adaptkit.cli.options import output_options, plugin_option
from adaptkit.plugins.components import KINDS, PLAIN, Component, is_fitted, options_of
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.request import default_lr

#: A plugin with more components than this is listed in one line, unless `--all` is given.
MOST_LISTED = 12

#: kind -> example of a command that uses a component of this kind, and the form of its options
USAGES = {
    "strategy": ("run -s {}", " -o {}={}"),
    "dataset": ("run -s lora --dataset {}", ""),
    "backbone": ("run -s lora --backbone {}", " --set backbone.{}={}"),
    "shift": ("run -s lora --shift {}", ""),
    "metric": ("run -s lora --metric {}", ""),
    "engine": ("sweep -s lora --grid lr=1e-3,1e-2 --engine {}", " --engine-option {}={}"),
}

BUILT_IN = "built-in"

JSON_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}


def listing(kind: str, plural: str) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a command to list the components of one kind.

    The docstring of the decorated function is the help of the command.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.command(plural, help=function.__doc__)
        @click.argument("names", nargs=-1, metavar="[NAME]...")
        @click.option("--all", "everything", is_flag=True, help="Also list large collections and unavailable entries.")
        @plugin_option
        @output_options
        def command(names: tuple[str, ...], everything: bool, plugin: tuple[str, ...], as_json: bool) -> None:
            from adaptkit.cli.views.console import print_json

            plugins = load_plugins(plugin)
            plugins.require_sound()
            components = select_components(plugins, kind, names=names, everything=everything)
            if as_json:
                print_json([describe(component) for component in components])
            elif names:
                for component in components:
                    print_details(component)
            else:
                print_components(
                    components,
                    {source.origin: source.kind for source in plugins.sources},
                    plural=plural,
                    everything=everything,
                )

        return command

    return decorate


@listing("strategy", "strategies")
def strategies() -> None:
    """List strategies, or show the options of one.

    \b
    Examples:
      adaptkit strategies
      adaptkit strategies lora
    """


@listing("dataset", "datasets")
def datasets() -> None:
    """List data sets.

    \b
    Example: adaptkit datasets

    `--dataset` and `--target` take these names. NAME?COLUMN=VALUE selects rows of a data set with columns, as in
    'table:labels.csv?site=A'.
    """


@listing("backbone", "backbones")
def backbones() -> None:
    """List backbones, or show the options of one.

    \b
    Examples:
      adaptkit backbones
      adaptkit backbones torchvision
    """


@listing("shift", "shifts")
def shifts() -> None:
    """List shifts with their amounts.

    \b
    Examples:
      adaptkit shifts
      adaptkit shifts rotate

    Shifts are written as in `--shift rotate=45,noise=0.3` and applied in this order.
    """


@listing("metric", "metrics")
def metrics() -> None:
    """List metrics, which score the predictions of runs.

    \b
    Example: adaptkit metrics

    Every run records all of them on the target, as `final/shifted_NAME`. `--metric NAME` chooses the one that decides.
    """


@listing("engine", "engines")
def engines() -> None:
    """List engines, which run the trials of sweeps.

    \b
    Example: adaptkit engines
    """


def select_components(plugins: Plugins, kind: str, names: Sequence[str], everything: bool) -> list[Component]:
    """Return the components with these names; without names, the available ones, or all with `everything`.

    Raises BadInput for an unknown name.
    """
    components = plugins.components[kind]
    bare = dict.fromkeys(name.partition(":")[0] for name in names)
    if names:
        return [components[name] if name in components else plugins.find(kind, name) for name in bare]
    return [component for component in components.values() if everything or not component.unavailable]


def describe(component: Component) -> dict[str, Any]:
    """Return a component as plain JSON types."""
    record: dict[str, Any] = {"name": component.name, "summary": component.summary, "origin": component.origin}
    if component.argument:
        record["argument"] = component.argument
    if component.unavailable:
        record["unavailable"] = component.unavailable
    if component.kind == "metric":
        record |= {key: getattr(component.cls, key) for key in ("title", "unit", "higher_is_better")}
    if component.kind == "strategy":
        record["lr"] = None if is_fitted(component.cls) else default_lr(component.cls)
        rates = {} if is_fitted(component.cls) else {kind: default_lr(component.cls, kind) for kind in KINDS}
        record |= {"lr_by_backbone": rates} if len(set(rates.values())) > 1 else {}
    if component.kind != "dataset":
        record["options"] = [
            {
                "name": name,
                "type": _type_name(component.cls, name),
                "required": _default(field) is dataclasses.MISSING,
                "default": None if _default(field) is dataclasses.MISSING else _default(field),
                "help": field.metadata.get("help", ""),
            }
            for name, field in options_of(component.cls).items()
        ]
    return record


def print_components(components: Sequence[Component], kinds: Mapping[str, str], plural: str, everything: bool) -> None:
    """Print a line for each component: the built-in ones, then those of each plugin under the plugin's name.

    `kinds` maps each origin to its kind: built-in, installed, file or object.
    """
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    from adaptkit.cli.views.console import output, print_line

    groups: dict[str, list[Component]] = {}
    order = {BUILT_IN: 0, "installed": 1, "file": 2, "object": 3}
    for component in sorted(components, key=lambda component: order[kinds[component.origin]]):
        groups.setdefault(_short_origin(component.origin), []).append(component)
    rows = {
        title: list(_rows(title, members, plural=plural, everything=everything)) for title, members in groups.items()
    }
    width = max((len(name) for lines in rows.values() for name, _ in lines), default=0)
    console = output()
    for number, (title, lines) in enumerate(rows.items()):
        if number:
            console.print()
        console.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(min_width=width, no_wrap=True)
        table.add_column(overflow="fold")
        for name, summary in lines:
            table.add_row(escape(name), escape(summary))
        console.print(Padding(table, (0, 0, 0, 2)))
    if any(options_of(component.cls) for component in components):
        print_line(console, f"\nShow the options of one: adaptkit {plural} NAME")


def _rows(title: str, components: Sequence[Component], plural: str, everything: bool) -> Iterator[tuple[str, str]]:
    """Yield the name and the summary of each component of a plugin, or one row for a large collection."""
    if title != BUILT_IN and len(components) > MOST_LISTED and not everything:
        prefix = os.path.commonprefix([component.name for component in components])  # noqa: RUF071 - names, not paths
        yield f"{prefix}*", f"{len(components)} {plural}; list them with adaptkit {plural} --all"
        return
    for component in components:
        reason = f" Cannot be used: {component.unavailable}." if component.unavailable else ""
        yield _usage_name(component), f"{component.summary}{reason}"


def _short_origin(origin: str) -> str:
    """Return the origin of a component, without the module of a built-in one."""
    return BUILT_IN if origin.startswith(f"{BUILT_IN} ") else origin


def _usage_name(component: Component) -> str:
    """Return the name to write on the command line, with the amount of a shift."""
    if component.kind == "shift":
        ((name, amount),) = options_of(component.cls).items()
        return f"{component.name}={amount.metadata.get('unit', name).upper()}"
    return component.shown


def print_details(component: Component) -> None:
    """Print the summary of a component, its options with type, range and default, and an example."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from adaptkit.cli.views.console import output, print_line

    console = output()
    console.print(
        f"[bold]{escape(_usage_name(component))}[/]  [dim]{escape(_short_origin(component.origin))}[/]", soft_wrap=True
    )
    print_line(console, component.summary)
    if component.unavailable:
        print_line(console, f"Cannot be used: {component.unavailable}")
    if component.kind == "strategy" and is_fitted(component.cls):
        print_line(console, "Learning rate: none; the head is fitted to features of the frozen base")
    elif component.kind == "strategy":
        rates = {kind: default_lr(component.cls, kind) for kind in KINDS}
        shown = ", ".join(f"{rate:g} ({kind})" for kind, rate in rates.items())
        same = len(set(rates.values())) == 1
        print_line(console, f"Default learning rate: {f'{rates[PLAIN]:g}' if same else shown}")
    options = options_of(component.cls)
    if options:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("amount" if component.kind == "shift" else "option", "value", "default", "meaning"):
            table.add_column(heading, overflow="fold", no_wrap=heading in ("option", "amount"))
        for name, field in options.items():
            default = _default(field)
            shown = "required" if default is dataclasses.MISSING else _shown(default)
            table.add_row(*map(escape, (name, value_range(component.cls, name), shown, field.metadata.get("help", ""))))
        console.print(table)
    print_line(console, f"Usage: {_usage(component)}\n")


def value_range(cls: type[Any], option: str) -> str:
    """Return the type and the range of an option in words: `whole number, 1 or more`."""
    from pydantic import PydanticUserError, TypeAdapter

    try:
        hint = typing.get_type_hints(cls, include_extras=True)[option]
        schema = TypeAdapter(hint).json_schema()
    except (PydanticUserError, NameError):
        return _type_name(cls, option)
    return " or ".join(dict.fromkeys(_words(part) for part in schema.get("anyOf", [schema])))


def _words(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema of a single value in words."""
    if "enum" in schema:
        return _alternatives([_shown(value) for value in schema["enum"]])
    if "const" in schema:
        return _shown(schema["const"])
    title = JSON_TYPES.get(schema.get("type", ""), "none" if schema.get("type") == "null" else "value")
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{title}, {low:g} to {high:g}"
    bounds = [f"{low:g} or more"] if low is not None else [f"above {above:g}"] if above is not None else []
    bounds += [f"up to {high:g}"] if high is not None else [f"below {below:g}"] if below is not None else []
    return ", ".join([title, " and ".join(bounds)] if bounds else [title])


def _alternatives(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _usage(component: Component) -> str:
    """Return a command that uses a component, with its first option that has a default."""
    command, option = USAGES[component.kind]
    defaults = {name: _default(field) for name, field in options_of(component.cls).items()}
    key = next((key for key, value in defaults.items() if value not in (dataclasses.MISSING, None)), None)
    ending = option.format(key, _shown(defaults[key])) if option and key is not None else ""
    return f"adaptkit {command.format(_usage_name(component))}{ending}"


def _shown(value: object) -> str:
    """Return the text of a value on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _type_name(cls: type[Any], option: str) -> str:
    hint = typing.get_type_hints(cls)[option]
    return getattr(hint, "__name__", str(hint))
