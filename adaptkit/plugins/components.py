"""Components: the classes that plugins provide, such as strategies, backbones and metrics, and their options."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from adaptkit.errors import BadInput, suggestion
from adaptkit.plugins.ranges import Choice, Dimension, parse_dimension

#: kinds of backbones, which have different default learning rates: without normalization layers, with BatchNorm, and
#: others, such as transformers
PLAIN, BATCH_NORM, TRANSFORMER = KINDS = ("plain", "batch_norm", "transformer")


def describe_error(error: Mapping[str, Any]) -> str:
    """Return a message in plain words for an error record of pydantic."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("greater than", "gt"),
        "less_than_equal": ("at most", "le"),
        "less_than": ("less than", "lt"),
    }
    shown = repr(value) if isinstance(value, str) else str(value)
    if kind in bounds:
        words, key = bounds[kind]
        return f"must be {words} {context[key]:g}, not {shown.strip(chr(39))}"
    if kind.startswith("int_"):
        return f"must be a whole number, not {shown}"
    if kind.startswith("float_"):
        return f"must be a number, not {shown}"
    if kind.startswith("bool_"):
        return f"must be true or false, not {shown}"
    if kind == "finite_number":
        return f"must be a finite number, not {shown}"
    if kind == "literal_error":
        return f"must be {context['expected'].replace(chr(39), '')}, not {shown}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "missing":
        return "must be given"
    if kind == "tuple_type":
        return f"must be one value or a list of values, not {shown}"
    if kind == "value_error":
        return str(context["error"])
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {shown}"


#: kind -> the hook that collects it and the methods of which its classes must have one
COLLECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "strategy": ("adaptkit_strategies", ("adapt", "fit", "phases")),
    "backbone": ("adaptkit_backbones", ("build",)),
    "dataset": ("adaptkit_datasets", ("load",)),
    "reader": ("adaptkit_readers", ("read",)),
    "shift": ("adaptkit_shifts", ("apply",)),
    "metric": ("adaptkit_metrics", ("score",)),
    "engine": ("adaptkit_engines", ("start",)),
}

#: kind -> its name in messages
TITLES = {
    **{"strategy": "strategy", "backbone": "backbone", "dataset": "data set"},
    **{"reader": "reader", "shift": "shift", "metric": "metric", "engine": "engine"},
}


@dataclass(frozen=True)
class Component:
    """A class that a plugin provides, with its kind, its name and the plugin it comes from."""

    kind: str
    name: str
    cls: type[Any]
    origin: str

    @property
    def argument(self) -> str:
        """Return the placeholder for the text after `name:`, in capitals; empty if the name has no argument."""
        return argument_of(self.cls)

    @property
    def shown(self) -> str:
        """Return the name to write on the command line."""
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @property
    def unavailable(self) -> str:
        """Return the reason why the component cannot be used here; empty if it can be used."""
        return str(getattr(self.cls, "unavailable", ""))

    @property
    def summary(self) -> str:
        """Return the first line of the docstring of the class, or of its module."""
        docstring = self.cls.__doc__ if not _is_generated_doc(self.cls) else None
        text = docstring or getattr(sys.modules.get(self.cls.__module__), "__doc__", None) or ""
        return text.strip().split("\n")[0]


def options_of(component: type[Any] | Component | None) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a component: the fields of its dataclass, by name.

    If the name has an argument, the first field holds the argument and is not an option.
    """
    cls = component.cls if isinstance(component, Component) else component
    if cls is None or not dataclasses.is_dataclass(cls):
        return {}
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return {field.name: field for field in (fields[1:] if argument_of(cls) else fields)}


def argument_of(cls: type[Any]) -> str:
    """Return the placeholder for the text after `name:` of a backbone or data set; empty if there is none."""
    # A strategy or a shift may have an option called `argument`.
    has_argument = hasattr(cls, "build") or hasattr(cls, "load")
    return str(getattr(cls, "argument", "")) if has_argument else ""


def is_fitted(strategy: object) -> bool:
    """Return whether a strategy, or its class, fits a head to features, without gradient descent."""
    return callable(getattr(strategy, "fit", None))


def starts_at_base(strategy: object) -> bool:
    """Return whether an adapted model gives the logits of the base before training; a fitted one does not."""
    return bool(getattr(strategy, "starts_at_base", not is_fitted(strategy)))


def _check_rates(cls: type[Any]) -> None:
    """Raise BadInput if the default learning rate is not a positive number, or one for each kind of backbone."""
    lr = getattr(cls, "lr", 1.0)
    rates = lr if isinstance(lr, Mapping) else dict.fromkeys(KINDS, lr)
    if set(rates) != set(KINDS):
        raise BadInput(f"{cls.__name__}.lr must have a number for each kind of backbone: {', '.join(KINDS)}")
    for rate in rates.values():
        if not (isinstance(rate, int | float) and 0 < rate < float("inf")):
            raise BadInput(f"{cls.__name__}.lr must be a number above 0, not {rate!r}")


def _check_suffixes(cls: type[Any]) -> None:
    """Raise BadInput unless the suffixes of a reader are a tuple of texts such as `.fits`."""
    suffixes = getattr(cls, "suffixes", ())
    right = isinstance(suffixes, tuple) and all(
        isinstance(text, str) and len(text) > 1 and text.startswith(".") and text == text.lower() for text in suffixes
    )
    if not suffixes or not right:
        raise BadInput(f"{cls.__name__}.suffixes must be ends of file names in lower case, as in ('.fits', '.fits.gz')")


def make_component(kind: str, cls: type[Any], origin: str) -> Component:
    """Return a class as a component; raise BadInput if it does not satisfy the contract of its kind."""
    _, methods = COLLECTIONS[kind]
    if not inspect.isclass(cls):
        raise BadInput(f"{cls!r} is not a class")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name or set(name) & set("=,:. "):
        raise BadInput(f"{cls.__name__} needs a class variable `name`, a string without '= , : .' and spaces")
    present = [f"{method}()" for method in methods if callable(getattr(cls, method, None))]
    if not present:
        raise BadInput(f"{cls.__name__} has no method {' or '.join(f'{method}()' for method in methods)}")
    if len(present) > 1:
        raise BadInput(f"{cls.__name__} has {' and '.join(present)}; a {TITLES[kind]} has one of them")
    if kind == "shift" and len(options_of(cls)) != 1:
        raise BadInput(f"{cls.__name__} must be a dataclass with one field, its amount")
    if kind == "reader":
        _check_suffixes(cls)
    if kind == "strategy":
        _check_rates(cls)
        tunable(cls)
    return Component(kind, name=name, cls=cls, origin=origin)


def tunable(cls: type[Any]) -> dict[str, Dimension]:
    """Return the range or list of each option that a strategy declares tunable.

    Raises BadInput for a declaration that cannot be read or has values that the option does not allow.
    """
    declared = {key: field for key, field in options_of(cls).items() if "tune" in field.metadata}
    return {
        key: read_dimension(cls, key, text=field.metadata["tune"], label="tune ") for key, field in declared.items()
    }


def read_dimension(cls: type[Any], key: str, *, text: object, label: str = "") -> Dimension:
    """Read the search range or list of an option, and check its values; messages begin with `label`."""
    title = f"{label}{getattr(cls, 'name', cls.__name__)}.{key}"
    default = options_of(cls)[key].default
    is_whole = isinstance(default, int) and not isinstance(default, bool)
    dimension = parse_dimension(title, str(text), integer=is_whole)
    if isinstance(dimension, Choice):
        return Choice(tuple(check_option(cls, key, value, title=title) for value in dimension.values))
    for end in (dimension.low, dimension.high):
        check_option(cls, key, end, title=title)
    return dimension


def check_option(cls: type[Any], key: str, value: Any, *, title: str) -> Any:
    """Return a value converted to the type of an option; raise BadInput if the type does not allow it."""
    try:
        kind = typing.get_type_hints(cls, include_extras=True)[key]
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise BadInput(f"{title}: {describe_error(error.errors()[0])}") from None
    except (PydanticUserError, NameError) as error:
        raise BadInput(f"{title}: its type cannot be checked: {error}") from None


def _is_generated_doc(cls: type[Any]) -> bool:
    # Python sets the signature of a dataclass as its docstring if it has none.
    return dataclasses.is_dataclass(cls) and (cls.__doc__ or "").startswith(f"{cls.__name__}(")


def make_checked(
    title: str, cls: type[Any], options: Mapping[str, Any], argument: str = ""
) -> tuple[Any, dict[str, Any]]:
    """Return an instance with checked options, and the values of all options; raise BadInput with all problems.

    Messages begin with `title`. `argument` is the text after the colon of the name.
    """
    fields = options_of(cls)
    unknown = [key for key in options if key not in fields]
    if unknown:
        has = f"; {getattr(cls, 'name', title)} has no options" if not fields else ""
        raise BadInput(*(f"unknown option {f'{title}.{key}'!r}{has or suggestion(key, fields)}" for key in unknown))
    if not dataclasses.is_dataclass(cls):
        return _create(cls, title, *([argument] if argument else [])), {}
    first = {dataclasses.fields(cls)[0].name: argument} if argument else {}
    instance = validated(cls, first | dict(options), title)
    return instance, {key: getattr(instance, key) for key in fields}


def _create(cls: type[Any], title: str, *argument: str) -> Any:
    try:
        return cls(*argument)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{title}: {cls.__name__}() failed: {type(error).__name__}: {error}") from error


def validated(cls: type[Any], values: Mapping[str, Any], prefix: str, rename: Mapping[str, str] | None = None) -> Any:
    """Return an instance of a dataclass with checked fields; error messages begin with `prefix` and the field.

    `rename` maps fields to their names on the command line. Raises BadInput with all problems.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        reasons_by_key: dict[str, list[str]] = {}  # a union of types gives one error for each type
        for record in error.errors():
            key = str(record["loc"][0]) if record["loc"] else ""
            reasons_by_key.setdefault(f".{(rename or {}).get(key, key)}".rstrip("."), []).append(describe_error(record))
        raise BadInput(*(f"{prefix}{key}: {_either(reasons)}" for key, reasons in reasons_by_key.items())) from None
    except PydanticUserError as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{prefix}: the options of {cls.__name__} cannot be checked: {reason}") from error


def _either(reasons: Sequence[str]) -> str:
    """Join the reasons of several types with "or"; only the last one repeats the value."""
    *others, last = dict.fromkeys(reasons)
    return " or ".join([*(reason.rpartition(", not ")[0] or reason for reason in others), last])
