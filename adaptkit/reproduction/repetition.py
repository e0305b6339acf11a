"""Rebuild the experiment of a recorded run, for commands that repeat it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptkit.data.domains import Domains
from adaptkit.errors import BadInput
from adaptkit.experiment.prepare import load_data
from adaptkit.models.run_images import rebuilt_request
from adaptkit.models.trained import given_plugins
from adaptkit.names import CONFIG_FILE, SPLIT_FILE
from adaptkit.plugins.manager import Plugins
from adaptkit.reproduction.record import require_same_settings
from adaptkit.settings.request import Request
from adaptkit.system.hardware import find_device
from adaptkit.tracking.runs import StoredRun


@dataclass(frozen=True, kw_only=True)
class RepetitionRequest:
    """How to repeat a recorded run; `data_dir` and `device` are those of the run if they are None."""

    run: str
    plugins: Plugins
    tracking_uri: str | None = None
    data_dir: Path | None = None
    device: str | None = None
    feature_cache: bool = True

    @property
    def changed(self) -> dict[str, Any]:
        """Return the settings that differ from those of the run."""
        changed: dict[str, Any] = {} if self.data_dir is None else {"data_dir": str(self.data_dir)}
        return changed if self.device is None else changed | {"device": find_device(self.device).type}


def repetition(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of RepetitionRequest in a function's arguments, without the run."""
    named = {key: arguments[key] for key in ("tracking_uri", "device", "feature_cache")}
    data_dir = arguments["data_dir"]
    return named | {
        "plugins": given_plugins(arguments["plugins"], arguments["backbone"]),
        "data_dir": None if data_dir is None else Path(data_dir),
    }


def rebuilt(
    stored: StoredRun, repeated: RepetitionRequest, notice: Callable[[str], None] = lambda line: None
) -> tuple[Request, Domains]:
    """Return the settings of a recorded run of one strategy and one seed, and its data as they are now.

    Raises BadInput, with the name of the run, if the settings were altered, or if a plugin or data are missing.
    """
    changed = repeated.changed
    try:
        with rebuilt_request(stored, repeated.plugins, changed) as request:
            if len(request.arms) != 1 or len(request.settings.seed) != 1:
                raise BadInput("its config.yaml was altered: it must name one strategy and one seed")
            require_same_settings(stored, request)  # first, because other settings also change the data
            if request.settings.split.file is not None and stored.has(SPLIT_FILE):
                notice(f"split.file {stored.params.get('split.file')}: using the run's split.json, which is equal")
            return request, load_data(request)
    except BadInput as error:
        raise BadInput(*(f"{stored.title}: {line}{_hint(stored, line)}" for line in error.problems)) from None


def _hint(stored: StoredRun, line: str) -> str:
    """Return a hint about a problem with the settings of a run."""
    if "unknown option" in line or "unknown key" in line:
        return "; the run used it: its plugin or adaptkit has changed since then"
    if not re.search(r"unknown (strategy|backbone|data set|shift) ", line):
        return ""
    if "'python'" in line:
        return "; it is a Python object; pass it again with the argument backbone=model"
    with stored.file(CONFIG_FILE) as path:
        heading = path.read_text(encoding="utf-8").partition("\n")[0]
    named = re.findall(r"--plugin (\S+)", heading)
    return f"; the run was made with --plugin {' --plugin '.join(named)}" if named else "; is its plugin installed?"
