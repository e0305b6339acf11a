"""Find in what a run was made otherwise than it would be here, of all that numbers depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adaptkit.plugins import Plugins
from adaptkit.reproduction import EnvironmentDifference
from adaptkit.request import Request
from adaptkit.stored_runs import StoredRun
from adaptkit.tracking.environment import Environment, differences, environment, requirements


@dataclass(frozen=True)
class RunEnvironment:
    """What a run was computed on, then and now; `text` and `threads` are what the new run says of it, if there is one.

    The base run's count too where the base is new: its weights were made there.
    """

    found: StoredRun
    request: Request
    plugins: Plugins
    text: str | None = None
    threads: str | None = None
    is_base_new: bool = False

    @property
    def recorded(self) -> dict[str, str]:
        """Return the things that the run's numbers depended on."""
        return self._of(self.found)

    @property
    def now(self) -> dict[str, str]:
        """Return what they are here."""
        own = Environment.of(self.text or environment())
        return own.deciding(self.request.settings.device, self.threads, self._distributions)

    def differences(self) -> list[EnvironmentDifference]:
        """Return in what the run was made otherwise than here; and its base, if that was made anew."""
        now = self.now
        found = list(differences(self.recorded, now))
        return found + (self._of_the_base(now, {other.what for other in found}) if self.is_base_new else [])

    def _of(self, found: StoredRun) -> dict[str, str]:
        with found.file("environment.txt") as path:
            text = path.read_text(encoding="utf-8", errors="replace")
        device = found.params.get("device", "cpu")
        return Environment.of(text).deciding(device, found.tags.get("adaptkit.threads"), self._distributions)

    def _of_the_base(self, now: Mapping[str, str], known: Iterable[str]) -> list[EnvironmentDifference]:
        """Return in what else the base was made otherwise: of the base run, if it is in the store."""
        wanted = self.found.tags.get("adaptkit.base_fingerprint", "")
        base = next((run for run in self.found.bases(wanted) if run.has("environment.txt")), None)
        if self.found.kind == "base" or base is None:
            return []
        processes = base.tags.get("adaptkit.processes", "1")
        told = differences(self._of(base) | {"processes": processes}, {**now, "processes": "1"})
        return [
            dataclasses.replace(other, what=f"{other.what} of the base") for other in told if other.what not in known
        ]

    @property
    def _distributions(self) -> list[str]:
        """Return the distributions of the plugins that the run needs, and what these need."""
        request, settings = self.request, self.request.settings
        used = [("strategy", arm.strategy) for arm in request.arms] + [("backbone", settings.backbone)]
        used += [("dataset", name) for name in (settings.dataset, settings.target) if name is not None]
        used += [("shift", name) for name in (*request.amounts, *request.augment_amounts)]
        origins = {self.plugins.offers[kind][name.partition(":")[0]].origin for kind, name in used}
        installed = [source.origin for source in self.plugins.sources if source.kind == "installed"]
        names = [origin.split(" ")[0] for origin in installed if origin in origins]
        needed = [needed for name in names for needed in requirements(name) if needed != "adaptkit-vision"]
        return [*names, *needed]
