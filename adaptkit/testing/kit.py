"""The conformance kit: create and run the checks of a plugin's class, such as a strategy, a data set or a reader."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptkit.errors import BadInput
from adaptkit.plugins.components import COLLECTIONS, argument_of, make_checked, options_of
from adaptkit.testing import (
    backbone_checks,
    dataset_checks,
    metric_checks,
    models,
    reader_checks,
    shift_checks,
    strategy_checks,
)
from adaptkit.testing.backbone_checks import Build
from adaptkit.testing.dataset_checks import Reading
from adaptkit.testing.metric_checks import Scoring
from adaptkit.testing.outcomes import Check, CheckFailed, NotTried, Verdict, described, require
from adaptkit.testing.reader_checks import Decoding
from adaptkit.testing.shift_checks import Shifting
from adaptkit.testing.trials import Trial


def validates_its_options(cls: type[Any], options: Mapping[str, Any], argument: str = "") -> None:
    """Check that each option has a validated type, a valid default and a help text."""
    if not options_of(cls):
        raise NotTried("it has no options")
    name = str(cls.name)
    without_help = [key for key, field in options_of(cls).items() if not field.metadata.get("help")]
    require(
        not without_help,
        f"no help for {', '.join(without_help)}; add it: field(default=..., metadata={{'help': '...'}})",
    )
    try:
        _, checked = make_checked(name, cls, options, argument=argument)
        make_checked(name, cls, checked, argument=argument)
    except BadInput as error:
        raise CheckFailed(f"its defaults are not valid: {described(error)}") from error
    for key, value in checked.items():
        if isinstance(value, str) or value is None:
            continue
        try:
            make_checked(name, cls, {**options, key: "neither number nor word"}, argument=argument)
        except BadInput:
            continue
        raise CheckFailed(f"option {key} accepts any value; annotate it with its type")


#: channels, size and classes of the images for checks of backbones
IMAGES = ((1, 28, 10), (3, 32, 4))
#: amounts to try for a shift without a default, in this order
AMOUNTS = (10.0, 0.5, 1.0)


def checks(
    cls: type[Any],
    options: Mapping[str, Any] | None = None,
    *,
    argument: str = "",
    data_dir: str | Path = "data",
) -> list[Check]:
    """Return the checks of a class with these options; use them with `pytest.mark.parametrize(..., ids=str)`.

    The kind of the class follows from its method: `adapt`, `build`, `load`, `read`, `apply`, `score` or `start`. For
    engines, only the options are checked. `argument` is the text after the colon of the name of a backbone or data set;
    `data_dir` is the folder of data sets, or of example files for a reader. Raises BadInput for a class of another
    kind, or wrong options.
    """
    kind = kind_of(cls)
    chosen = dict(options or {})
    if kind == "shift" and not chosen:
        chosen = _amount(cls)
    title = str(getattr(cls, "name", kind))
    if argument_of(cls) and not argument:
        raise BadInput(f"{kind} {title} needs an argument after a colon: {title}:{argument_of(cls)}")
    instance, _ = make_checked(title, cls, chosen, argument=argument)
    create = functools.partial(copy.deepcopy, instance)  # like an experiment
    result = [
        Check(
            "validates its options",
            "options",
            functools.partial(validates_its_options, cls, options=chosen, argument=argument),
        )
    ]
    if kind == "strategy":
        result += _each(strategy_checks.CHECKS, {name: Trial(create, name) for name in models.MODELS})
    elif kind == "backbone":
        subjects = {
            f"{size} px x{channels}": Build(create, channels=channels, size=size, classes=classes)
            for channels, size, classes in IMAGES
        }
        result += _each(backbone_checks.CHECKS, subjects)
    elif kind == "dataset":
        result += _each(dataset_checks.CHECKS, {"images": Reading(create, Path(data_dir))})
    elif kind == "reader":
        result += _each(reader_checks.CHECKS, {"files": Decoding(create, Path(data_dir))})
    elif kind == "metric":
        answers = {f"{classes} classes": Scoring(create, classes) for classes in (2, 4)}
        result += _each(metric_checks.CHECKS, answers)
    elif kind == "shift":
        result += _each(shift_checks.CHECKS, {"grey": Shifting(create, 1), "colour": Shifting(create, 3)})
    return result


def kind_of(cls: type[Any]) -> str:
    """Return strategy, backbone, dataset, reader, shift, metric or engine; raise BadInput for other classes."""
    if inspect.isclass(cls):
        for kind, (_, methods) in COLLECTIONS.items():
            if any(callable(getattr(cls, method, None)) for method in methods):
                return kind
    named = ", ".join(f"{method}()" for _, methods in COLLECTIONS.values() for method in methods)
    raise BadInput(f"{cls!r} is not a class with one of the methods {named}")


def try_all(checks: Sequence[Check]) -> list[Verdict]:
    """Run all checks and return their verdicts.

    If no check applies to any subject, a failed verdict is added.
    """
    results = [check.verdict() for check in checks]
    subjects = {verdict.subject for verdict in results} - {"options"}
    tried = {verdict.subject for verdict in results if verdict.word != "not tried"} - {"options"}
    if subjects and not tried:
        first = next(verdict for verdict in results if verdict.word == "not tried" and verdict.subject != "options")
        results.append(Verdict("fits something", "all", word="failed", reason=f"no check could run: {first.reason}"))
    return results


def _each(promises: Mapping[str, Callable[[Any], None]], subjects: Mapping[str, Any]) -> list[Check]:
    return [
        Check(name, title, functools.partial(promise, subject))
        for name, promise in promises.items()
        for title, subject in subjects.items()
    ]


def _amount(cls: type[Any]) -> dict[str, Any]:
    """Return options with an amount that the shift accepts: its default, or a common amount."""
    field = next(iter(options_of(cls)))
    for options in ({}, *({field: amount} for amount in AMOUNTS)):
        try:
            make_checked("shift", cls, options)
        except BadInput:
            continue
        return options
    return {}
