"""Merge layers of settings into one checked request, or report all their problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from adaptkit.contracts import Reader
from adaptkit.errors import BadInput, suggestion
from adaptkit.plugins.components import describe_error, is_fitted, make_checked, options_of, tunable
from adaptkit.plugins.manager import Plugins
from adaptkit.plugins.ranges import TRIED_RATES, five_around
from adaptkit.settings.files import PRESETS
from adaptkit.settings.request import (
    LR,
    TRAIN_HEAD,
    WEIGHTS,
    WITHOUT_GRADIENTS,
    Arm,
    Request,
    default_lr,
    is_pretrained,
)
from adaptkit.settings.selection import Selected, parse_selection, split_name
from adaptkit.settings.settings import DEFAULT_SHIFT, Rate, Settings, nest, setting_keys
from adaptkit.settings.shifts import amounts_of, make_augmentations, make_severities, make_shifts, parse_amounts
from adaptkit.settings.spaces import make_spaces

#: the strategy that needs neither a source nor pretrained weights
SCRATCH = "scratch"
#: starts of the names of data sets with the user's own images
OWN_IMAGES = ("folder:", "table:")


@dataclass(frozen=True)
class Option:
    """An unchecked option of the strategy with this name; "" is the only strategy."""

    strategy: str
    key: str
    value: Any


@dataclass(frozen=True)
class Layer:
    """Settings from one source: `values` by dotted key. Messages about them begin with `label`, if there is one."""

    values: Mapping[str, Any]
    label: str = ""


def resolve(layers: Sequence[Layer], plugins: Plugins, earlier_problems: Sequence[str] = ()) -> Request:
    """Merge layers (the strongest first) with the preset and the defaults, and check the result.

    Raises BadInput with one line for each problem, including `earlier_problems`.
    """
    plugins.require_sound()
    problems = list(earlier_problems)
    explicit = frozenset(key for layer in layers for key in layer.values)
    given = {key for layer in layers for key in layer.values}
    layers = _with_preset(layers, problems)
    values, amounts, options, backbone_options, reader_options = _merge(layers, plugins, problems)
    if "dataset" not in values and str(values.get("target")).startswith(OWN_IMAGES):
        values["dataset"] = "none"  # own images without a source: the weights of the backbone are the base
    named = "strategy" in values
    settings = _settings(values, problems)
    if not named:
        names = ", ".join(component.name for component in plugins.usable("strategy"))
        problems.append(f"no strategy: name at least one with --strategy; known: {names}")
    arms = _arms(settings, options, plugins=plugins, problems=problems)
    arms = _searched(settings, arms, given=given, problems=problems)
    if settings.searches_lr:
        trials = settings.tuning.model_copy(update={"trials": TRIED_RATES})
        settings = settings.model_copy(update={"lr": None, "tuning": trials})
    if amounts is None:
        amounts = parse_amounts(DEFAULT_SHIFT) if settings.target is None else {}
    shifts = make_shifts("shift", amounts, plugins=plugins, problems=problems)
    severities = make_severities(settings, shifts, plugins=plugins, problems=problems)
    if settings.severity and not amounts:
        problems.append("severity: no shift to multiply; set one, as in --shift " + DEFAULT_SHIFT)
    for name in settings.metric:
        try:
            plugins.find("metric", name)
        except BadInput as error:
            problems.extend(error.problems)
    augmentations = make_augmentations("augment", settings.augment, plugins, problems)
    of_base = make_augmentations("base.augment", settings.base.augment, plugins, problems)
    if settings.dataset is None and settings.target is None:
        problems.append("dataset none: set the images to adapt to, as in --target folder:PATH")
    problems += _unused_groups(settings)
    readers, reader_options = _readers(reader_options, plugins, problems)
    chosen: dict[str, Any] = {"dataset": None, "target": None}
    for key, kind, component_options in (
        ("dataset", "dataset", {}),
        ("target", "dataset", {}),
        ("backbone", "backbone", backbone_options),
    ):
        name = getattr(settings, key)
        try:
            if name is not None:
                if kind == "backbone":
                    component_options = dict(_without_weights(name, component_options, plugins))
                bare = name if kind == "backbone" else split_name(name)[0]
                offer, title = plugins.find(kind, bare), kind if component_options else bare
                chosen[key], checked = make_checked(
                    title, offer.cls, component_options, argument=bare.partition(":")[2]
                )
                if bare != name:
                    chosen[key] = Selected(name, chosen[key], parse_selection(name))
        except BadInput as error:
            problems.extend(error.problems)
    if chosen.get("backbone") is not None and WEIGHTS not in backbone_options:
        problems += _untrained_base(settings, arms, checked)
    if problems:
        raise BadInput(*problems)
    return Request(
        settings=settings,
        arms=arms,
        dataset=chosen["dataset"],
        target=chosen["target"],
        backbone=chosen["backbone"],
        shifts=tuple(shifts.values()),
        amounts=amounts_of(shifts),
        augmentations=tuple(augmentations.values()),
        augment_amounts=amounts_of(augmentations),
        base_augmentations=tuple(of_base.values()),
        base_augment_amounts=amounts_of(of_base),
        plugin_files=plugins.files,
        backbone_options=checked,
        readers=readers,
        reader_options=reader_options,
        severities=severities,
        explicit=explicit,
    )


def _without_weights(name: str, options: dict[str, Any], plugins: Plugins) -> dict[str, Any]:
    """Return the options of a backbone, without `weights` none for a backbone that has no such option.

    Raises BadInput for other weights, and for a Python object, which keeps its own.
    """
    if WEIGHTS not in options or WEIGHTS in options_of(plugins.find("backbone", name)):
        return options
    if is_pretrained(name, {}):
        raise BadInput(f"backbone {name} has the weights of the Python object; leave out `weights`")
    if options[WEIGHTS] not in ("none", None):
        raise BadInput(f"backbone {name} has no pretrained weights; leave out --weights")
    return {key: value for key, value in options.items() if key != WEIGHTS}


def _untrained_base(settings: Settings, arms: Sequence[Arm], backbone_options: Mapping[str, Any]) -> list[str]:
    """Return a problem if strategies would adapt a base that nothing has trained."""
    if settings.dataset is not None or is_pretrained(settings.backbone, backbone_options):
        return []
    if all(arm.strategy == SCRATCH for arm in arms):
        return []
    return [
        f"backbone {settings.backbone} has no pretrained weights, and there is no source to train it on: choose a "
        "pretrained one (--backbone torchvision:resnet18), a source (--dataset NAME), -s scratch alone, or "
        "--weights none for an untrained base"
    ]


def _searched(
    settings: Settings, arms: tuple[Arm, ...], *, given: Iterable[str], problems: list[str]
) -> tuple[Arm, ...]:
    """Return the arms with the ranges that each fit searches; without tuning, the arms themselves."""
    tuning = settings.tuning
    if settings.searches_lr:
        if tuning.trials:
            problems.append("lr: auto is a tuning of its own; leave out --lr auto or --tune")
        return tuple(
            dataclasses.replace(arm, searched={LR: five_around(arm.lr)}) if arm.lr and arm.has_default_lr else arm
            for arm in arms
        )
    if not tuning.trials:
        if tuning.space:
            problems.append("tuning.space: without trials, nothing is searched; set their number, as in --tune 10")
        return arms
    if tuning.on is not None:
        problems.append("tuning.trials: the values of an earlier tuning are used; leave out --tune or --from-tune")
        return arms
    fixed = [arm for arm in arms if is_fitted(arm.checked) and not tunable(type(arm.checked))]
    try:
        # Values that the model does not allow are left out later: the model is not known here.
        spaces = make_spaces(
            [arm for arm in arms if arm not in fixed],
            texts=tuning.space,
            given={arm.strategy: given_keys(given, arm.strategy) for arm in arms},
            fits=lambda arm: True,
        )
    except BadInput as error:
        problems.extend(error.problems)
        return arms
    searched = {space.strategy: dataclasses.replace(space.arm, searched=space.dimensions) for space in spaces}
    return tuple(searched.get(arm.strategy, arm) for arm in arms)


def tuning_layer(trials: int | str | None, ranges: Sequence[str]) -> Layer:
    """Return the settings of a tuning inside the fits as a layer; it is empty if there is none."""
    values = {"tuning.trials": trials, "tuning.space": list(ranges) or None}
    return Layer({key: value for key, value in values.items() if value is not None})


def given_keys(keys: Iterable[str], strategy: str) -> set[str]:
    """Return the options of a strategy, and its learning rate, that keys of settings give a value."""
    keys = set(keys)
    options = {key.partition(".")[2] for key in keys if key.startswith((f"{strategy}.", "strategy."))}
    return options | ({LR} if LR in keys else set())


def _readers(
    options: Mapping[str, Mapping[str, Any]], plugins: Plugins, problems: list[str]
) -> tuple[tuple[Reader, ...], dict[str, dict[str, Any]]]:
    """Return the readers of image files with these options, and the options after a check, by reader."""
    readers, checked = [], {}
    for name, cls in plugins.readers.items():
        given = options.get(name, {})
        try:
            reader, values = make_checked(name, cls, given)
        except BadInput as error:
            problems.extend(error.problems)
            continue
        readers.append(reader)
        if given:
            checked[name] = {key: values[key] for key in given}
    return tuple(readers), checked


def _unused_groups(settings: Settings) -> list[str]:
    """Return a problem for each group of settings about a kind of data set that is not used."""
    kinds = {name.partition(":")[0] for name in (settings.dataset, settings.target) if name is not None}
    return [
        f"{kind}.{key}: no data set is a {kind}; it needs --dataset or --target {kind}:{argument}"
        for kind, argument in (("table", "FILE"), ("folder", "PATH"))
        for key in getattr(settings, kind).chosen
        if kind not in kinds
    ]


def option_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return strategy options by setting key: `rank` becomes `strategy.rank`, `lora.rank` stays."""
    return {key if "." in key else f"strategy.{key}": value for key, value in options.items()}


def _with_preset(layers: Sequence[Layer], problems: list[str]) -> list[Layer]:
    named = next((str(layer.values["preset"]) for layer in layers if "preset" in layer.values), "default")
    if named not in PRESETS:
        problems.append(f"unknown preset {named!r}{suggestion(named, PRESETS)}")
    return [*layers, Layer(PRESETS.get(named, {}))]


def _merge(
    layers: Sequence[Layer], plugins: Plugins, problems: list[str]
) -> tuple[dict[str, Any], dict[str, Any] | None, list[Option], dict[str, Any], dict[str, dict[str, Any]]]:
    """Return settings, amounts of shifts, options of strategies (the weakest first), of the backbone and of readers.

    The amounts are None if no layer sets a shift.
    """
    known = setting_keys()
    prefixes = {*plugins.components["strategy"], "strategy"}
    values: dict[str, Any] = {}
    amounts: dict[str, Any] | None = None
    changed: dict[str, Any] = {}
    options: list[Option] = []
    backbone: dict[str, Any] = {}
    readers: dict[str, dict[str, Any]] = {}
    for layer in reversed(layers):
        where = f"{layer.label}: " if layer.label else ""
        for key, value in layer.values.items():
            prefix, _, rest = key.partition(".")
            if not _is_text(value):
                problems.append(f"{where}{key}: {value!r} is not UTF-8 text")
            elif key == "shift":
                try:
                    amounts, changed = parse_amounts("none" if value is None else str(value)), {}
                except BadInput as error:
                    problems.extend(f"{where}{problem}" for problem in error.problems)
            elif key == WEIGHTS:
                backbone[WEIGHTS] = value
            elif key in known:
                values[key] = value
            elif prefix == "shift" and rest:
                changed[rest] = value
            elif prefix == "backbone" and rest:
                backbone[rest] = value
            elif prefix in prefixes and rest:
                options.append(Option("" if prefix == "strategy" else prefix, rest, value))
            elif prefix in plugins.components["reader"] and rest:
                readers.setdefault(prefix, {})[rest] = value
            else:
                problems.append(f"{where}unknown key {key!r}{_nearest_key(key, known, prefixes)}")
    if changed:
        if amounts is None:
            amounts = parse_amounts(DEFAULT_SHIFT) if values.get("target") in (None, "none") else {}
        amounts |= changed
    return values, amounts, options, backbone, readers


def _is_text(value: Any) -> bool:
    """Return whether a value is valid text; bytes of the command line that are not UTF-8 are not."""
    if isinstance(value, list | tuple):
        return all(map(_is_text, value))
    try:
        return value.encode() is not None if isinstance(value, str) else True
    except UnicodeEncodeError:
        return False


def _nearest_key(key: str, known: Mapping[str, str], prefixes: set[str]) -> str:
    hint = suggestion(key, known)
    if not hint.startswith("; did"):
        hint = suggestion(key.partition(".")[0], {*known, *prefixes}) if "." in key else ""
    return hint if hint.startswith("; did") else "; see `adaptkit run --help` for the keys"


def _settings(values: dict[str, Any], problems: list[str]) -> Settings:
    """Check the settings; replace wrong ones by their defaults, so that all problems are found at once."""
    try:
        return Settings.model_validate(nest(values))
    except ValidationError as error:
        for record in error.errors():
            key = ".".join(part for part in record["loc"] if isinstance(part, str))
            problems.append(f"{key}: {describe_error(record)}")
            values.pop(key, None)
        return Settings.model_validate(nest(values))


def _arms(settings: Settings, options: list[Option], plugins: Plugins, problems: list[str]) -> tuple[Arm, ...]:
    names = settings.strategy
    if len(names) > 1:
        for key in dict.fromkeys(option.key for option in options if not option.strategy):
            owners = [
                name for name in names if key == LR or key in options_of(plugins.components["strategy"].get(name))
            ]
            hint = f"; write {owners[0]}.{key}" if owners else ""
            problems.append(f"option {key}: there are several strategies{hint}")
        options = [option for option in options if option.strategy]
    for option in options:
        if names and option.strategy and option.strategy not in names:
            problems.append(f"{option.strategy}.{option.key}: strategy {option.strategy} is not selected")
    arms = []
    for name in names:
        values = {option.key: option.value for option in options if option.strategy in ("", name)}
        new_head = settings.dataset is None
        try:
            cls = plugins.find("strategy", name).cls
            if new_head and TRAIN_HEAD in options_of(cls):
                values = {TRAIN_HEAD: True} | values
            rate = values.pop(LR, None) if LR not in options_of(cls) else None
            instance, checked = make_checked(name, cls, values)
            common = None if settings.searches_lr else settings.lr
            lr: float | None = common or default_lr(cls) if rate is None else _rate(f"{name}.{LR}", rate)
            is_default = common is None and rate is None
            if is_fitted(cls):
                if rate is not None:
                    raise BadInput(f"{name}.{LR}: strategy {name} {WITHOUT_GRADIENTS}")
                lr, is_default = None, False
            arms.append(
                Arm(
                    strategy=name,
                    checked=instance,
                    options=checked,
                    lr=lr,
                    new_head=new_head,
                    has_default_lr=is_default,
                )
            )
        except BadInput as error:
            problems.extend(error.problems)
    return tuple(arms)


def _rate(title: str, value: object) -> float:
    """Check the learning rate of one strategy; raise BadInput if it is not a positive number."""
    try:
        return TypeAdapter(Rate).validate_python(value)
    except ValidationError as error:
        raise BadInput(f"{title}: {describe_error(error.errors()[0])}") from None
