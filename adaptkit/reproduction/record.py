"""Hold a run's record against what it would be run with here: can it be run again, on the same data and settings?"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adaptkit.adapters.files import CARD, WEIGHTS, card_digest, read_card, read_weights
from adaptkit.adapters.weights import fingerprint
from adaptkit.data.domains import Domains
from adaptkit.data.split_files import is_same_split, read_split
from adaptkit.errors import BadInput
from adaptkit.experiment.base_cache import WEIGHTS_FILE
from adaptkit.experiment.prepare import Experiment
from adaptkit.names import (
    ADAPTER_SHA256_TAG,
    BASE_FINGERPRINT_TAG,
    DATA_FINGERPRINT_TAG,
    DRAWN_IMAGES_TAG,
    ENVIRONMENT_FILE,
    IMAGES_DIGEST_TAG,
    PREDICTIONS_FILE,
    PROCESSES_TAG,
    SPLIT_FILE,
    THREADS_TAG,
)
from adaptkit.plugins.manager import Plugins
from adaptkit.reproduction.agreement import Difference, Results, Row
from adaptkit.settings.request import Request
from adaptkit.system.files import sha256_of
from adaptkit.tracking.artifacts import HEADING
from adaptkit.tracking.environment import Environment, EnvironmentDifference, differences, environment, requirements
from adaptkit.tracking.runs import StoredRun
from adaptkit.tracking.store import errors_as_lines

#: params that say where and on what a run was made, and nothing of its result
OF_THE_PLACE = {"device", "data_dir", "split.file"}
#: settings of plugins: what their plugin does not know any more, or did not know yet, is no detail
OF_PLUGINS = ("strategy.", "backbone.", "shift.")


def require_possible(found: StoredRun) -> None:
    """Refuse what one process cannot make again."""
    if found.kind == "imported":
        raise BadInput(f"{found.title} was imported: adaptkit did not train it, and cannot train it again")
    processes = found.tags.get(PROCESSES_TAG, "1")
    if processes != "1":
        raise BadInput(
            f"{found.title} was shared out over {processes} processes, and can be reproduced in one only: "
            f"{'of' if processes.isdigit() else 'not of'} such a run the last digits depend on how it was shared out"
        )
    if found.kind == "base" and found.params.get("dataset") == "none":
        raise BadInput(f"{found.title} is a base without a source, and was not trained: reproduce a run that adapts it")


def drawn_images(found: StoredRun) -> int | None:
    """Return how many labelled images a run drew to train on."""
    count = found.tags.get(DRAWN_IMAGES_TAG, "")
    return int(count) if count.isdigit() else None


def recorded_data(found: StoredRun) -> str | None:
    """Return what the run says of its data: their fingerprint, or of a base run the digest of its source."""
    if found.kind != "base":
        return found.tags.get(DATA_FINGERPRINT_TAG)
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


def data_difference(found: StoredRun, domains: Domains, request: Request, is_elsewhere: bool) -> Difference | None:
    """Return how the data differ from the run's, None if they do not.

    A shift is computed: elsewhere the images that it gives may have other last digits, though they are the same.
    """
    recorded, digests = recorded_data(found), _digests(found)
    if recorded is None:
        raise BadInput(f"{found.title} does not say which data it had: it was recorded by an earlier adaptkit")
    now = domains.source_digest[: len(recorded)] if found.kind == "base" else domains.fingerprint
    if now == recorded:
        return None
    have = {"source": domains.source_digest, "target": domains.target_digest}
    others = [name for name, digest in digests.items() if not have.get(name, digest).startswith(digest)]
    detail = f"the {' and the '.join(others)} images are others" if others else "the same images, otherwise divided"
    within = False
    if request.shifts and is_elsewhere and others == ["target"] and found.kind != "base":
        before, same_split = found.tags.get(IMAGES_DIGEST_TAG), _has_split(found, domains)
        # What was not recorded can be told where the target is the source under a shift: its test images count in both.
        same_images = request.target is None if before is None else before == domains.images_digest
        if within := same_images and same_split:
            detail = "the same images; the shift, computed here, gives them other last digits"
    return Difference("data", "fingerprint of the data", recorded, now, within, detail)


def _has_split(found: StoredRun, domains: Domains) -> bool:
    """Tell whether the images are divided as the run's were; a tuning run does not say how."""
    if not found.has(SPLIT_FILE):
        return found.kind == "tuning"
    with found.file(SPLIT_FILE) as path:
        return path.read_text(encoding="utf-8") == domains.split_text


def require_same_settings(found: StoredRun, request: Request) -> None:
    """Refuse a config.yaml that says other things than the run's params; what begins with backbone. comes later."""
    now, problems = _own_params(found, request), []
    altered = {key for key in now.keys() & found.params.keys() if now[key] != found.params[key]} - OF_THE_PLACE
    # Whatever is named under them belongs to the other one.
    owned = tuple(f"{key}." for key in ("strategy", "shift") if key in altered)
    for key in sorted({*found.params, *now} - OF_THE_PLACE):
        if key.startswith((*owned, "backbone.")):
            continue
        before, after = found.params.get(key), now.get(key)
        if before != after and (problem := _problem(key, before, after)) is not None:
            problems.append(problem)
    was, is_file = found.params.get("split.file", "none"), request.settings.split.file is not None
    if is_file != (was != "none"):  # where it lay is of the place, whether there was one is not
        names = "names a file" if is_file else "is none"
        problems.append(f"its config.yaml was altered: split.file {names} there, and was {was}")
    if problems:
        raise BadInput(*problems)


def require_split(found: StoredRun) -> None:
    """Refuse an adaptation without its split.json, or whose images are to be taken from one that is damaged."""
    if found.kind != "adaptation":  # the others keep none
        return
    with found.file(SPLIT_FILE) as path:
        if found.params.get("split.file", "none") != "none":
            try:
                read_split(path)
            except BadInput:
                raise _altered_split(found) from None


def require_same_split(found: StoredRun, domains: Domains) -> None:
    """Refuse a split.json that says other things than these data, which are the run's."""
    if found.kind != "adaptation":
        return
    with found.file(SPLIT_FILE) as path:
        if not is_same_split(path.read_bytes(), domains.split_text):
            raise _altered_split(found)


def _altered_split(found: StoredRun) -> BadInput:
    return BadInput(f"{found.title}: its split.json was altered")


def settings_difference(found: StoredRun, experiment: Experiment) -> Difference | None:
    """Return in which of the backbone's facts the run had another model; raise BadInput for its altered options."""
    facts = experiment.backbone_facts
    now = _own_params(found, experiment.request) | {key: str(value) for key, value in facts.items()}
    problems, first = [], None
    for key in sorted(key for key in {*found.params, *now} if key.startswith("backbone.")):
        before, after = found.params.get(key), now.get(key)
        if before == after:
            continue
        if key in facts:
            first = first or Difference("base", key, before, after, within=False, detail="the backbone is another one")
        elif (problem := _problem(key, before, after)) is not None:
            problems.append(problem)
    if problems:
        raise BadInput(*(f"{found.title}: {line}" for line in problems))
    return first


def _own_params(found: StoredRun, request: Request) -> dict[str, str]:
    """Return what a run's params are by its request alone, as they are stored."""
    if found.kind == "base":
        own = request.base_params()
    else:
        own = request.run_params(request.arms[0], request.settings.seed[0])
    return {key: str(value) for key, value in own.items()}


def _problem(key: str, before: str | None, after: str | None) -> str | None:
    """Return what it means that a param is another one now, None if nothing."""
    if before is None:
        # A setting that an earlier adaptkit did not have does nothing at its default.
        is_of_plugin = key.startswith(OF_PLUGINS)
        return f"{key} was unknown to the run: its plugin has changed since" if is_of_plugin else None
    if after is None:
        return f"{key} is unknown here: the run's plugin has changed since"
    return f"its config.yaml was altered: {key} is {after} there, and was {before}"


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
        with found.file(ENVIRONMENT_FILE) as path:
            text = path.read_text(encoding="utf-8", errors="replace")
        device = found.params.get("device", "cpu")
        return Environment.of(text).deciding(device, found.tags.get(THREADS_TAG), self._distributions)

    def _of_the_base(self, now: Mapping[str, str], known: Iterable[str]) -> list[EnvironmentDifference]:
        """Return in what else the base was made otherwise: of the base run, if it is in the store."""
        wanted = self.found.tags.get(BASE_FINGERPRINT_TAG, "")
        base = next((run for run in self.found.bases(wanted) if run.has(ENVIRONMENT_FILE)), None)
        if self.found.kind == "base" or base is None:
            return []
        processes = base.tags.get(PROCESSES_TAG, "1")
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
        origins = {self.plugins.components[kind][name.partition(":")[0]].origin for kind, name in used}
        installed = [source.origin for source in self.plugins.sources if source.kind == "installed"]
        names = [origin.split(" ")[0] for origin in installed if origin in origins]
        needed = [needed for name in names for needed in requirements(name) if needed != "adaptkit-vision"]
        return [*names, *needed]


#: what metrics begin with that are of the occasion: seconds, bytes of memory, what MLflow measures of the machine
OF_THE_OCCASION = ("time/", "memory/", "system/")


def read_results(found: StoredRun) -> Results:
    """Return a run's results; raise BadInput for what is missing, damaged or altered."""
    keys = [key for key in found.record.data.metrics if not key.startswith(OF_THE_OCCASION)]
    reader = found.runs.reader
    with errors_as_lines(reader.address):
        points = {key: reader.client.get_metric_history(found.run_id, key) for key in keys}
    # As they were logged: MLflow gives them in the order of its database.
    ordered = {key: sorted(found, key=lambda point: (point.step, point.timestamp)) for key, found in points.items()}
    metrics = {key: tuple((point.step, float(point.value)) for point in ordered[key]) for key in keys}
    if found.kind == "tuning":  # it keeps no model, and looks at no test set
        return Results(metrics, {}, {})
    with found.file(PREDICTIONS_FILE) as path:
        predictions = _predictions(path, found.title)
    return Results(metrics, predictions, _base(found) if found.kind == "base" else _adapter(found))


def _adapter(found: StoredRun) -> dict[str, Tensor]:
    with found.folder("adapter", WEIGHTS, CARD) as folder:
        signed = found.tags.get(ADAPTER_SHA256_TAG)
        if signed is None:
            raise BadInput(f"{found.title} was recorded before adapters were signed, and says nothing to compare with")
        card = read_card(folder / CARD, {"sha256": str, "card_sha256": str})
        if sha256_of(folder / CARD) != signed or card_digest(card) != card["card_sha256"]:
            raise BadInput(
                f"{found.title}: its adapter/{CARD} was altered, or is another run's: the run says otherwise"
            )
        try:
            return read_weights(folder / WEIGHTS, card["sha256"])
        except BadInput as error:
            raise BadInput(*(f"{found.title}: {line}" for line in error.problems)) from None


def _base(found: StoredRun) -> dict[str, Tensor]:
    with found.folder("base", WEIGHTS_FILE) as folder:
        tensors = read_weights(folder / WEIGHTS_FILE)
    recorded = found.tags.get(BASE_FINGERPRINT_TAG)
    if (now := fingerprint(tensors)) != recorded:
        raise BadInput(
            f"{found.title}: its base/{WEIGHTS_FILE} was altered: its fingerprint is {now}, and was {recorded}"
        )
    return tensors


def _predictions(path: Path, title: str) -> Mapping[str, Mapping[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = csv.reader(stream)
            if next(lines, []) != HEADING:
                raise ValueError
            for test, image, truth, prediction, confidence, base in lines:
                found.setdefault(test, {})[image] = Row(truth, prediction, confidence, base)
    except (OSError, ValueError, csv.Error):
        raise BadInput(f"{title}: its predictions.csv was altered: it is not a table of predictions") from None
    return found
