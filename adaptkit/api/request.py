"""Arguments that `run`, `sweep` and `tune` share: the settings of an experiment and the conditions of its runs."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptkit.errors import BadInput, PlanNotice
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.files import read_config
from adaptkit.settings.group import SettingsGroup
from adaptkit.settings.request import WEIGHTS
from adaptkit.settings.resolve import Layer, option_keys
from adaptkit.settings.settings import Settings, flat_settings

#: settings that have another name as a Python argument
PLURALS = {"strategy": "strategies", "seed": "seeds"}


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """Conditions of runs of every kind: plugins, MLflow store, caches and the folder of the report."""

    plugins: Plugins
    tracking_uri: str | None = None
    refresh_base: bool = False
    feature_cache: bool = True
    report: Path | None = None


def require_report_folder(report: Path | None) -> None:
    """Create the folder of a report before training; raise BadInput if it cannot be written."""
    if report is None:
        return
    try:
        report.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=report):
            pass
    except OSError as error:
        raise BadInput(f"cannot write a report to {report}: {error.strerror or error}") from None


def warn_of(notices: Iterable[str]) -> None:
    """Show the notices of a plan as warnings; the command line prints them with the plan."""
    for notice in notices:
        warnings.warn(notice, PlanNotice, stacklevel=2)


def setting_arguments() -> dict[str, str]:
    """Return the setting key of each Python argument; settings with a dot in their key have no argument."""
    fields = [
        name
        for name, field in Settings.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, SettingsGroup))
    ]
    return {PLURALS.get(name, name): name for name in [*fields, WEIGHTS]}


def read_arguments(arguments: Mapping[str, Any]) -> tuple[list[Layer], Plugins]:
    """Return the settings in a function's arguments, the strongest source first, and the plugins.

    An argument that is None is not set. A model as `backbone` becomes a plugin that provides it.
    """
    plugins = list(arguments["plugins"])
    values = {
        key: arguments[name] for name, key in setting_arguments().items() if arguments[name] is not None
    } | option_keys(arguments["options"] or {})
    backbone = values.get("backbone")
    if backbone is not None and not isinstance(backbone, str):
        from adaptkit.backbones.python_model import python_backbone

        plugins.append(python_backbone(backbone))
        values["backbone"] = f"python:{type(backbone).__name__}"
    layers = [Layer(flat_settings(values)), Layer(flat_settings(arguments["settings"] or {}))]
    if arguments["config"] is not None:
        layers.append(Layer(read_config(Path(arguments["config"])), str(arguments["config"])))
    loaded = load_plugins(
        [plugin for plugin in plugins if isinstance(plugin, str | Path)],
        [plugin for plugin in plugins if not isinstance(plugin, str | Path)],
    )
    return layers, loaded


def conditions(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of TrainingRequest in a function's arguments, without the plugins."""
    named = {key: arguments[key] for key in ("tracking_uri", "refresh_base", "feature_cache")}
    report = arguments["report"]
    return named | {"report": None if report is None else Path(report)}
