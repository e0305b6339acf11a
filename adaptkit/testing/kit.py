"""The conformance kit: what can be tried of a strategy, backbone, data set, shift or engine."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptkit.errors import BadInput
from adaptkit.plugins.components import COLLECTIONS, argument_of, make_checked, options_of
from adaptkit.testing import backbone_checks, dataset_checks, models, shift_checks, strategy_checks
from adaptkit.testing.backbone_checks import Build
from adaptkit.testing.dataset_checks import Reading
from adaptkit.testing.outcomes import Check, CheckFailed, NotTried, Verdict, require, told
from adaptkit.testing.shift_checks import Shifting
from adaptkit.testing.trials import Trial


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


#: channels, size and classes of the images that backbones are tried on
IMAGES = ((1, 28, 10), (3, 32, 4))
#: amounts of which the first that a shift takes is tried, if it has no default
AMOUNTS = (10.0, 0.5, 1.0)


def checks(
    cls: type[Any],
    options: Mapping[str, Any] | None = None,
    *,
    argument: str = "",
    data_dir: str | Path = "data",
) -> list[Check]:
    """Return what can be tried of a class, with these options; use it with `pytest.mark.parametrize(..., ids=str)`.

    What the class is follows from its method: `adapt`, `build`, `load`, `apply` or `start`. Of an engine, only the
    options are tried. `argument` is what follows the name of a backbone or data set after a colon; `data_dir` is where
    data sets are read from. Raises BadInput for a class of no kind, or options that are wrong.
    """
    kind = kind_of(cls)
    given = dict(options or {})
    if kind == "shift" and not given:
        given = _amount(cls)
    title = str(getattr(cls, "name", kind))
    if argument_of(cls) and not argument:
        raise BadInput(f"{kind} {title} needs an argument after a colon: {title}:{argument_of(cls)}")
    instance, _ = make_checked(title, cls, given, argument)
    create = functools.partial(copy.deepcopy, instance)  # as an experiment does
    found = [
        Check(
            "validates its options",
            "options",
            functools.partial(validates_its_options, cls, given, argument),
        )
    ]
    if kind == "strategy":
        found += _each(strategy_checks.CHECKS, {name: Trial(create, name) for name in models.MODELS})
    elif kind == "backbone":
        subjects = {
            f"{size} px x{channels}": Build(create, channels, size, classes) for channels, size, classes in IMAGES
        }
        found += _each(backbone_checks.CHECKS, subjects)
    elif kind == "dataset":
        found += _each(dataset_checks.CHECKS, {"images": Reading(create, Path(data_dir))})
    elif kind == "shift":
        found += _each(shift_checks.CHECKS, {"grey": Shifting(create, 1), "colour": Shifting(create, 3)})
    return found


def kind_of(cls: type[Any]) -> str:
    """Return strategy, backbone, dataset, shift or engine; raise BadInput for a class that is none of them."""
    if inspect.isclass(cls):
        for kind, (_, method) in COLLECTIONS.items():
            if callable(getattr(cls, method, None)):
                return kind
    methods = ", ".join(f"{method}()" for _, method in COLLECTIONS.values())
    raise BadInput(f"{cls!r} is not a class with one of the methods {methods}")


def try_all(found: Sequence[Check]) -> list[Verdict]:
    """Try everything, and return what came of it.

    What fits no subject at all fails: nothing was tried of it.
    """
    results = [check.verdict() for check in found]
    subjects = {verdict.subject for verdict in results} - {"options"}
    tried = {verdict.subject for verdict in results if verdict.word != "not tried"} - {"options"}
    if subjects and not tried:
        first = next(verdict for verdict in results if verdict.word == "not tried" and verdict.subject != "options")
        results.append(Verdict("fits something", "all", "failed", f"nothing could be tried: {first.reason}"))
    return results


def _each(promises: Mapping[str, Callable[[Any], None]], subjects: Mapping[str, Any]) -> list[Check]:
    return [
        Check(name, subject, functools.partial(promise, thing))
        for name, promise in promises.items()
        for subject, thing in subjects.items()
    ]


def _amount(cls: type[Any]) -> dict[str, Any]:
    """Return an amount that the shift takes: its default, or one of some common ones."""
    field = next(iter(options_of(cls)))
    for given in ({}, *({field: amount} for amount in AMOUNTS)):
        try:
            make_checked("shift", cls, given)
        except BadInput:
            continue
        return given
    return {}
