"""What the options of a strategy or a backbone promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptkit.errors import BadInput
from adaptkit.instances import make_checked
from adaptkit.offers import options_of
from adaptkit.testing.verdicts import CheckFailed, NotTried, require, told


def validates_its_options(cls: type[Any], given: Mapping[str, Any], argument: str = "") -> None:
    """Each option has a type that is checked, a valid default and a text for the help."""
    if not options_of(cls):
        raise NotTried("it has no options")
    name = str(cls.name)
    silent = [key for key, field in options_of(cls).items() if not field.metadata.get("help")]
    require(not silent, f"no help for {', '.join(silent)}: field(default=..., metadata={{'help': '...'}})")
    try:
        _, checked = make_checked(name, cls, given, argument)
        make_checked(name, cls, checked, argument)
    except BadInput as error:
        raise CheckFailed(f"its own defaults are refused: {told(error)}") from error
    for key, value in checked.items():
        if isinstance(value, str) or value is None:
            continue
        try:
            make_checked(name, cls, {**given, key: "neither number nor word"}, argument)
        except BadInput:
            continue
        raise CheckFailed(f"option {key} takes anything: annotate it with its type")
