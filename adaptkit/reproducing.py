"""Run a recorded run again from its record alone, and say whether it comes out the same."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adaptkit.data.domains import Domains
from adaptkit.errors import BadInput
from adaptkit.experiment.preparation import Experiment, load_data, prepare
from adaptkit.plugins import Plugins
from adaptkit.reports.agreement import compare_results
from adaptkit.reproduction import Compared, Difference, EnvironmentDifference, Reproduction
from adaptkit.request import Request
from adaptkit.rerun import ANEW, run_again
from adaptkit.run_data import rebuilt_request
from adaptkit.run_record import read_results
from adaptkit.stored_runs import StoredRun, open_runs
from adaptkit.tracking.environment import Environment, differences, environment, requirements
from adaptkit.trained import given_plugins
from adaptkit.training.torchrun import place

#: kinds of runs that can be run again
KINDS = ("adaptation", "base", "tuning")
#: params that say where and on what a run was made, and nothing of its result
OF_THE_PLACE = {"device", "data_dir", "split.file"}
#: settings of plugins: what their plugin does not know any more, or did not know yet, is no detail
OF_PLUGINS = ("strategy.", "backbone.", "shift.")


def reproduce(
    run_id: str,
    *,
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
) -> Reproduction:
    """Run a finished run again from its record and compare both, as `adaptkit reproduce` does.

    `verdict` is identical, within tolerance or different. The run's data are looked for where they were, or in
    `data_dir`; it is computed on the device of its kind, or on `device`. A model that was given from Python is given
    again as `backbone`, with the weights that it had. The store is only read. Raises BadInput for a run that cannot be
    made again here, and RunFailed when it fails this time.
    """
    loaded = given_plugins(plugins, backbone)
    return reproduce_run(
        run_id,
        loaded,
        tracking_uri=tracking_uri,
        data_dir=None if data_dir is None else Path(data_dir),
        device=device,
        refresh_base=refresh_base,
        feature_cache=feature_cache,
    )


def reproduce_run(
    run_id: str,
    plugins: Plugins,
    *,
    tracking_uri: str | None = None,
    data_dir: Path | None = None,
    device: str | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
    notice: Callable[[str], None] = lambda line: None,
) -> Reproduction:
    """Run a finished run again and compare; `notice` hears lines to tell the user meanwhile."""
    found = open_runs(tracking_uri).find(run_id, (*KINDS, "imported"))
    _require_possible(found)
    recorded = read_results(found)
    notices: list[str] = []

    def tell(line: str) -> None:
        notices.append(line)
        notice(line)

    changed: dict[str, Any] = {} if data_dir is None else {"data_dir": str(data_dir)}
    if device is not None:
        changed["device"] = device
    try:
        with rebuilt_request(found, plugins, changed) as request:
            _require_one(found, request)
            if request.settings.split.file is not None and found.has("split.json"):
                tell(
                    f"split.file {found.params.get('split.file')}: the run's own split.json says the same, and is taken"
                )
            domains = load_data(request)
    except BadInput as error:
        raise BadInput(*(f"{found.title}: {line}{_hint(found, line)}" for line in error.problems)) from None
    around = _Surroundings(found, request, plugins)
    if difference := _data_difference(found, domains):
        return around.judged(notices, difference)
    experiment = prepare(request, domains=domains)
    for line in experiment.plan.notices:
        if not line.startswith("split.file:"):  # said, with a better name
            tell(line)
    if difference := _settings_difference(found, experiment):
        return around.judged(notices, difference)
    threads = around.recorded.get("threads", "")
    made = run_again(
        found,
        experiment,
        plugins,
        threads=int(threads) if threads.isdigit() else None,
        refresh_base=refresh_base,
        feature_cache=feature_cache,
        notice=tell,
    )
    weights = "base" if found.kind == "base" else "adapter"
    agreement = compare_results(recorded, made.results, weights)
    wanted = found.tags.get("adaptkit.base_fingerprint")
    first: tuple[Difference, ...] = ()
    if wanted != made.base_fingerprint:
        # Other last digits make another base: what follows from them decides.
        first = (Difference("base", "fingerprint of the base", wanted, made.base_fingerprint, within=True),)
    around = dataclasses.replace(around, text=made.environment, threads=made.threads, is_base_new=made.base == ANEW)
    return dataclasses.replace(
        around.judged(notices, *first, *agreement.differences),
        base=made.base,
        compared=agreement.compared,
        largest=agreement.largest,
    )


@dataclasses.dataclass(frozen=True)
class _Surroundings:
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
        return self._of(self.found)

    @property
    def now(self) -> dict[str, str]:
        settings = self.request.settings
        device = settings.device if settings.device != "auto" else str(self.found.params.get("device"))
        return Environment.of(self.text or environment()).deciding(device, self.threads, self._distributions)

    def judged(self, notices: Iterable[str], *found: Difference) -> Reproduction:
        """Return a reproduction with these differences."""
        recorded, now = self.recorded, self.now
        others = list(differences(recorded, now))
        if self.is_base_new and found:
            others += self._of_the_base(now, {other.what for other in others})
        tags = self.found.tags
        return Reproduction(
            run_id=self.found.run_id,
            name=self.found.name,
            kind=self.found.kind,
            data_fingerprint=_recorded_data(self.found) or "",
            base_fingerprint=tags.get("adaptkit.base_fingerprint"),
            base=None,
            compared=Compared(),
            differences=found,
            environment_differences=tuple(others),
            environment={"recorded": recorded, "now": now},
            notices=tuple(notices),
        )

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


def _require_possible(found: StoredRun) -> None:
    """Refuse what one process cannot make again."""
    if place().count > 1:
        raise BadInput("a run is reproduced in one process: call adaptkit reproduce without torchrun")
    if found.kind == "imported":
        raise BadInput(f"{found.title} was imported: adaptkit did not train it, and cannot train it again")
    processes = found.tags.get("adaptkit.processes", "1")
    if processes != "1":
        raise BadInput(
            f"{found.title} was shared out over {processes} processes, and can be reproduced in one only: "
            f"{'of' if processes.isdigit() else 'not of'} such a run the last digits depend on how it was shared out"
        )
    if found.kind == "base" and found.params.get("dataset") == "none":
        raise BadInput(f"{found.title} is a base without a source, and was not trained: reproduce a run that adapts it")


def _require_one(found: StoredRun, request: Request) -> None:
    if len(request.arms) != 1 or len(request.settings.seed) != 1:
        raise BadInput("its config.yaml was altered: it does not describe one strategy and one seed")


def _hint(found: StoredRun, line: str) -> str:
    """Return what else to say of a problem with a run's settings."""
    if "unknown option" in line or "unknown key" in line:
        return "; the run knew it: its plugin, or adaptkit, has changed since"
    if not re.search(r"unknown (strategy|backbone|data set|shift) ", line):
        return ""
    if "'python'" in line:
        return "; it was given from Python: adaptkit.reproduce(run_id, backbone=model) takes it again"
    with found.file("config.yaml") as path:
        heading = path.read_text(encoding="utf-8").partition("\n")[0]
    named = re.findall(r"--plugin (\S+)", heading)
    return f"; the run was made with --plugin {' --plugin '.join(named)}" if named else "; is its plugin installed?"


def _recorded_data(found: StoredRun) -> str | None:
    """Return what the run says of its data: their fingerprint, or of a base run the digest of its source."""
    if found.kind != "base":
        return found.tags.get("adaptkit.data_fingerprint")
    return _digests(found).get("source")


def _digests(found: StoredRun) -> dict[str, str]:
    """Return the digests of a run's data sets, as far as MLflow keeps them, by what they were used for."""
    inputs = found.record.inputs.dataset_inputs if found.record.inputs is not None else []
    return {
        tag.value: str(given.dataset.digest)
        for given in inputs
        for tag in given.tags
        if tag.key == "mlflow.data.context"
    }


def _data_difference(found: StoredRun, domains: Domains) -> Difference | None:
    """Return how the data differ from the run's, None if they do not."""
    recorded, digests = _recorded_data(found), _digests(found)
    if recorded is None:
        raise BadInput(f"{found.title} does not say which data it had: it was recorded by an earlier adaptkit")
    now = domains.source_digest[: len(recorded)] if found.kind == "base" else domains.fingerprint
    if now == recorded:
        return None
    have = {"source": domains.source_digest, "target": domains.target_digest}
    others = [name for name, digest in digests.items() if not have.get(name, digest).startswith(digest)]
    detail = f"the {' and the '.join(others)} images are others" if others else "the same images, otherwise divided"
    return Difference("data", "fingerprint of the data", recorded, now, within=False, detail=detail)


def _settings_difference(found: StoredRun, experiment: Experiment) -> Difference | None:
    """Return in which of the backbone's facts the run had another model; raise BadInput for altered settings."""
    request, facts = experiment.request, experiment.backbone_facts
    own = (
        request.base_params() if found.kind == "base" else request.run_params(request.arms[0], request.settings.seed[0])
    )
    now = {key: str(value) for key, value in (own | facts).items()}
    problems, first = [], None
    for key in sorted({*found.params, *now} - OF_THE_PLACE):
        before, after = found.params.get(key), now.get(key)
        if before == after:
            continue
        if key in facts:
            first = first or Difference("base", key, before, after, within=False, detail="the backbone is another one")
        elif before is None:
            # A setting that an earlier adaptkit did not have does nothing at its default.
            if key.startswith(OF_PLUGINS):
                problems.append(f"{key} was unknown to the run: its plugin has changed since")
        elif after is None:
            problems.append(f"{key} is unknown here: the run's plugin has changed since")
        else:
            problems.append(f"its config.yaml was altered: {key} is {after} there, and was {before}")
    if problems:
        raise BadInput(*(f"{found.title}: {line}" for line in problems))
    return first
