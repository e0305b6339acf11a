"""Make instances of offered classes, with options that were checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from adaptkit.config import describe_error
from adaptkit.errors import BadInput, suggestion
from adaptkit.offers import options_of


def make_checked(
    title: str, cls: type[Any], given: Mapping[str, Any], argument: str = ""
) -> tuple[Any, dict[str, Any]]:
    """Return an instance with these options, checked, and all its options; raise BadInput with a line a problem.

    `title` begins the keys in the lines; `argument` is what followed the name after a colon.
    """
    known = options_of(cls)
    unknown = [key for key in given if key not in known]
    if unknown:
        has = f"; {getattr(cls, 'name', title)} has no options" if not known else ""
        raise BadInput(*(f"unknown option {f'{title}.{key}'!r}{has or suggestion(key, known)}" for key in unknown))
    if not dataclasses.is_dataclass(cls):
        return _create(cls, title, *([argument] if argument else [])), {}
    first = {dataclasses.fields(cls)[0].name: argument} if argument else {}
    instance = validated(cls, first | dict(given), title)
    return instance, {key: getattr(instance, key) for key in known}


def _create(cls: type[Any], title: str, *argument: str) -> Any:
    try:
        return cls(*argument)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{title}: {cls.__name__}() failed: {type(error).__name__}: {error}") from error


def validated(cls: type[Any], given: Mapping[str, Any], prefix: str, rename: Mapping[str, str] | None = None) -> Any:
    """Return an instance of a dataclass with these fields; raise BadInput, its lines begun by `prefix` and the field.

    `rename` maps fields to what users call them.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(given))
    except ValidationError as error:
        told: dict[str, list[str]] = {}  # by option: one of several types has an error for each
        for record in error.errors():
            key = str(record["loc"][0]) if record["loc"] else ""
            told.setdefault(f".{(rename or {}).get(key, key)}".rstrip("."), []).append(describe_error(record))
        raise BadInput(*(f"{prefix}{key}: {_either(reasons)}" for key, reasons in told.items())) from None
    except PydanticUserError as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{prefix}: the options of {cls.__name__} cannot be checked: {reason}") from error


def _either(reasons: Sequence[str]) -> str:
    """Join what each of several types has against a value, which only the last need name."""
    *others, last = dict.fromkeys(reasons)
    return " or ".join([*(reason.rpartition(", not ")[0] or reason for reason in others), last])
