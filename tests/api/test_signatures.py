"""The Python functions and their commands take the same arguments, and the experiment those of the settings model."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import click
import pytest

import adaptkit
from adaptkit.api.request import setting_arguments
from adaptkit.settings.settings import Settings

#: options that only a terminal needs
TERMINAL = {
    "as_json",
    "as_csv",
    "format_name",
    "rows_file",
    "quiet",
    "traceback",
    "dry_run",
    "print_trials",
    "strict",
    "every",
}
#: parameters of a command, with their Python names where these differ
RENAMED = {
    "strategy": "strategies",
    "plugin": "plugins",
    "no_track": "track",
    "no_feature_cache": "feature_cache",
    "run_ids": "runs",
    "paths": "images",
    "output": "report",
}
#: settings that the command line takes with --set
OF_SET = {
    "shots",
    "optimizer",
    "weight_decay",
    "schedule",
    "clip",
    "min_steps",
    "evaluate_shifted",
    "checkpointing",
}
#: arguments that are values of Python, or not in the command, with the reason
PYTHON_ONLY = {
    "run": OF_SET,
    "sweep": OF_SET,
    "tune": OF_SET,
    "compare": set(),
    "resume": {"backbone", "report"},  # the command keeps the folder of the interrupted command
    "reproduce": {"backbone"},
    "refit": {"backbone"},
    "predict": {"backbone"},
    "export": {"backbone", "notice"},
    "import_peft": {"backbone", "notice"},
}
DIFFERENT: dict[str, dict[str, str]] = {
    "resume": {"run_ids": "run_id"},
    "export": {"output": "output"},
    "predict": {"run_id": "run", "output": "rows_file"},
    "refit": {"run_id": "run", "strategy": "strategy"},
}


def command(name: str) -> click.Command:
    found: click.Command = getattr(importlib.import_module(f"adaptkit.cli.{name}"), name)
    return found


def arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", sorted(PYTHON_ONLY))
def test_arguments_are_those_of_the_command(name: str) -> None:
    renamed = RENAMED | DIFFERENT.get(name, {})
    options = {renamed.get(str(param.name), param.name) for param in command(name).params} - TERMINAL
    assert options | PYTHON_ONLY[name] == set(arguments(getattr(adaptkit, name)))


@pytest.mark.parametrize("name", ["run", "sweep", "tune"])
def test_every_setting_is_an_argument(name: str) -> None:
    parameters = arguments(getattr(adaptkit, name))
    settings = setting_arguments()
    assert {"strategies", "seeds", "shots", "weights"} <= settings.keys() <= parameters.keys()
    groups = {"base", "split", "folder", "table", "image", "tuning"}
    assert set(settings.values()) - {"weights"} == set(Settings.model_fields) - groups
    assert {parameters[argument].default for argument in settings} == {None}
    assert {parameter.kind for parameter in parameters.values()} == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }
    assert [key for key, parameter in parameters.items() if parameter.kind == parameter.POSITIONAL_OR_KEYWORD] == [
        "strategies"
    ]


@pytest.mark.parametrize("name", ["sweep", "tune"])
def test_shared_arguments_have_one_declaration(name: str) -> None:
    run, other = arguments(adaptkit.run), arguments(getattr(adaptkit, name))
    shared = [key for key in run if key not in ("track", "from_tune", "tune", "space", "refit", "calibrate")]
    assert [(key, other[key].annotation, other[key].default) for key in shared] == [
        (key, run[key].annotation, run[key].default) for key in shared
    ]


@pytest.mark.parametrize("name", sorted(PYTHON_ONLY))
def test_defaults_are_those_of_the_command(name: str) -> None:
    renamed = RENAMED | DIFFERENT.get(name, {})
    parameters = arguments(getattr(adaptkit, name))
    for param in command(name).params:
        default = param.default
        if not isinstance(default, str | int) or isinstance(default, bool) or param.name in TERMINAL:
            continue
        assert str(parameters[renamed.get(str(param.name), str(param.name))].default) == str(default)


def test_arguments_reach_the_settings() -> None:
    from adaptkit.api.request import read_arguments
    from adaptkit.settings.resolve import resolve

    given: dict[str, Any] = {name: None for name in arguments(adaptkit.run)} | {"plugins": ()}
    given |= {"strategies": "lora", "seeds": range(2), "shift": {"rotate": 30}, "lr": 0.1, "options": {"rank": 2}}
    given |= {"settings": {"base.epochs": 3, "lr": 0.5}, "skip_bad_images": True, "batch_size": 16}
    layers, plugins = read_arguments(given)
    request = resolve(layers, plugins)
    settings = request.settings
    assert (settings.strategy, settings.seed, settings.batch_size, settings.base.epochs) == (("lora",), (0, 1), 16, 3)
    assert (request.shift_text, settings.skip_bad_images) == ("rotate=30", True)
    assert [(arm.label, arm.lr) for arm in request.arms] == [("lora rank=2", 0.1)]
