"""Read a recorded run, and check whether it can be run again with the same data, settings and environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adaptkit.adapters.files import card_digest, read_card, read_weights
from adaptkit.adapters.weights import fingerprint
from adaptkit.data.domains import Domains
from adaptkit.data.split_files import is_same_split, read_split
from adaptkit.errors import BadInput
from adaptkit.experiment.prepare import Experiment
from adaptkit.names import (
    ADAPTER_CARD_FILE,
    ADAPTER_CARD_PATH,
    ADAPTER_FOLDER,
    ADAPTER_SHA256_TAG,
    ADAPTER_WEIGHTS_FILE,
    BASE_FINGERPRINT_TAG,
    BASE_FOLDER,
    BASE_WEIGHTS_FILE,
    BASE_WEIGHTS_PATH,
    DATA_CONTEXT_TAG,
    DATA_FINGERPRINT_TAG,
    DRAWN_IMAGES_TAG,
    ENVIRONMENT_FILE,
    FAMILY_MEMORY,
    FAMILY_SYSTEM,
    FAMILY_TIME,
    FOLD_FOLDER,
    IMAGES_DIGEST_TAG,
    PREDICTIONS_FILE,
    PROCESSES_TAG,
    REFIT_OF_TAG,
    SPLIT_FILE,
    THREADS_TAG,
)
from adaptkit.plugins.manager import Plugins
from adaptkit.reproduction.agreement import Difference, Results, Row
from adaptkit.settings.request import Request
from adaptkit.settings.selection import split_name
from adaptkit.system.files import sha256_of
from adaptkit.tracking.environment import Environment, EnvironmentDifference, differences, environment, requirements
from adaptkit.tracking.predictions import read_table, shares_of
from adaptkit.tracking.runs import StoredRun
from adaptkit.tracking.store import errors_as_lines

#: params that do not influence results
WITHOUT_EFFECT = {"device", "data_dir", "split.file"}
#: prefixes of params that are options of plugins: a plugin that lacks one of them has changed
OF_PLUGINS = ("strategy.", "backbone.", "shift.")


def require_possible(stored: StoredRun) -> None:
    """Raise BadInput for a run that cannot be run again."""
    if stored.kind == "imported":
        raise BadInput(f"{stored.title} was imported: adaptkit did not train it, and cannot train it again")
    if stored.kind == "final":
        raise BadInput(
            f"{stored.title} is a refit, which was not evaluated; reproduce the run whose settings it has: "
            f"{stored.tags.get(REFIT_OF_TAG)}"
        )
    processes = stored.tags.get(PROCESSES_TAG, "1")
    if processes != "1":
        raise BadInput(
            f"{stored.title} was trained by {processes} processes and cannot be reproduced: this version of adaptkit "
            "trains in one process, and the last digits depend on the number of processes"
        )
    if stored.kind == "base" and stored.params.get("dataset") == "none":
        raise BadInput(f"{stored.title} is a base without a source and was not trained; reproduce a run that adapts it")


def drawn_images(stored: StoredRun) -> int | None:
    """Return the number of labelled images that a run was trained on."""
    count = stored.tags.get(DRAWN_IMAGES_TAG, "")
    return int(count) if count.isdigit() else None


def recorded_data(stored: StoredRun) -> str | None:
    """Return the recorded fingerprint of the data; for a base run, the digest of its source."""
    if stored.kind != "base":
        return stored.tags.get(DATA_FINGERPRINT_TAG)
    return _digests(stored).get("source")


def _digests(stored: StoredRun) -> dict[str, str]:
    """Return the digests of the data sets of a run by their context; MLflow truncates them."""
    inputs = stored.record.inputs.dataset_inputs if stored.record.inputs is not None else []
    return {tag.value: str(data.dataset.digest) for data in inputs for tag in data.tags if tag.key == DATA_CONTEXT_TAG}


def data_difference(stored: StoredRun, domains: Domains, request: Request, is_elsewhere: bool) -> Difference | None:
    """Return the difference between the recorded and the current data; None if they are equal.

    Images under a shift are computed: on other hardware, their last digits may differ.
    """
    recorded, digests = recorded_data(stored), _digests(stored)
    if recorded is None:
        raise BadInput(f"{stored.title} has no record of its data: it was made by an earlier version of adaptkit")
    now = domains.source_digest[: len(recorded)] if stored.kind == "base" else domains.fingerprint
    if now == recorded:
        return None
    have = {"source": domains.source_digest, "target": domains.target_digest}
    others = [name for name, digest in digests.items() if not have.get(name, digest).startswith(digest)]
    detail = f"the {' and the '.join(others)} images differ" if others else "the same images, divided differently"
    within = False
    if request.shifts and is_elsewhere and others == ["target"] and stored.kind != "base":
        before, same_split = stored.tags.get(IMAGES_DIGEST_TAG), _has_split(stored, domains)
        # Without a recorded digest: if the target is the source under a shift, both digests cover the test images.
        same_images = request.target is None if before is None else before == domains.images_digest
        if within := same_images and same_split:
            detail = "the same images; the shift gives them other last digits on this machine"
    return Difference(
        kind="data", what="fingerprint of the data", recorded=recorded, now=now, within=within, detail=detail
    )


def _has_split(stored: StoredRun, domains: Domains) -> bool:
    """Return whether the images are divided as in the run; tuning runs do not record the division."""
    if not stored.has(SPLIT_FILE):
        return stored.kind == "tuning"
    with stored.file(SPLIT_FILE) as path:
        return path.read_text(encoding="utf-8") == domains.split_text


def require_same_settings(stored: StoredRun, request: Request) -> None:
    """Raise BadInput if config.yaml and the params of the run differ; `settings_difference` checks the backbone."""
    now, problems = _request_params(stored, request), []
    altered = {key for key in now.keys() & stored.params.keys() if now[key] != stored.params[key]} - WITHOUT_EFFECT
    # If the strategy or the shift differs, so do its options.
    owned = tuple(f"{key}." for key in ("strategy", "shift") if key in altered)
    for key in sorted({*stored.params, *now} - WITHOUT_EFFECT):
        if key.startswith((*owned, "backbone.")):
            continue
        before, after = stored.params.get(key), now.get(key)
        if before != after and (problem := _problem(key, before, after)) is not None:
            problems.append(problem)
    was, is_file = stored.params.get("split.file", "none"), request.settings.split.file is not None
    if is_file != (was != "none"):  # the path of the file may differ
        names = "names a file" if is_file else "is none"
        problems.append(f"its config.yaml was altered: split.file {names}, but was {was}")
    if problems:
        raise BadInput(*problems)


def require_split(stored: StoredRun) -> None:
    """Raise BadInput if split.json is missing, or if the run needs it and it is damaged."""
    if stored.kind != "adaptation":  # other kinds of runs have none
        return
    with stored.file(SPLIT_FILE) as path:
        if stored.params.get("split.file", "none") != "none":
            try:
                read_split(path)
            except BadInput:
                raise _altered_split(stored) from None


def require_same_split(stored: StoredRun, domains: Domains) -> None:
    """Raise BadInput if split.json differs from the division of these data."""
    if stored.kind != "adaptation":
        return
    with stored.file(SPLIT_FILE) as path:
        if not is_same_split(path.read_bytes(), domains.split_text):
            raise _altered_split(stored)


def _altered_split(stored: StoredRun) -> BadInput:
    return BadInput(f"{stored.title}: its split.json was altered")


def settings_difference(stored: StoredRun, experiment: Experiment) -> Difference | None:
    """Return the first difference of the backbone's properties; raise BadInput if its options differ."""
    facts = experiment.backbone_facts
    now = _request_params(stored, experiment.request) | {key: str(value) for key, value in facts.items()}
    problems, first = [], None
    for key in sorted(key for key in {*stored.params, *now} if key.startswith("backbone.")):
        before, after = stored.params.get(key), now.get(key)
        if before == after:
            continue
        if key in facts:
            first = first or Difference(
                kind="base", what=key, recorded=before, now=after, within=False, detail="the backbone differs"
            )
        elif (problem := _problem(key, before, after)) is not None:
            problems.append(problem)
    if problems:
        raise BadInput(*(f"{stored.title}: {line}" for line in problems))
    return first


def _request_params(stored: StoredRun, request: Request) -> dict[str, str]:
    """Return the params that follow from a request, as they are stored."""
    if stored.kind == "base":
        params = request.base_params()
    else:
        params = request.run_params(request.arms[0], request.settings.seed[0])
    return {key: str(value) for key, value in params.items()}


def _problem(key: str, before: str | None, after: str | None) -> str | None:
    """Return a message about a changed param; None if the change has no effect."""
    if before is None:
        # A setting that an earlier adaptkit did not have has no effect at its default.
        is_of_plugin = key.startswith(OF_PLUGINS)
        return f"{key} was unknown to the run: its plugin has changed since then" if is_of_plugin else None
    if after is None:
        return f"{key} is unknown here: the run's plugin has changed since then"
    return f"its config.yaml was altered: {key} is {after}, but was {before}"


@dataclass(frozen=True)
class RunEnvironment:
    """The environment of a recorded run, and the current one.

    `text` (environment.txt) and `threads` are those of the repetition, if there is one. If the base was trained again,
    the environment of the recorded base run counts as well.
    """

    stored: StoredRun
    request: Request
    plugins: Plugins
    text: str | None = None
    threads: str | None = None
    is_base_new: bool = False

    @property
    def recorded(self) -> dict[str, str]:
        """Return the recorded properties that can change results."""
        return self._of(self.stored)

    @property
    def now(self) -> dict[str, str]:
        """Return the current properties."""
        here = Environment.of(self.text or environment())
        return here.deciding(self.request.settings.device, self.threads, self._distributions)

    def differences(self) -> list[EnvironmentDifference]:
        """Return the differences between the recorded and the current environment."""
        now = self.now
        of_run = list(differences(self.recorded, now))
        return of_run + (self._of_the_base(now, {difference.what for difference in of_run}) if self.is_base_new else [])

    def _of(self, stored: StoredRun) -> dict[str, str]:
        with stored.file(ENVIRONMENT_FILE) as path:
            text = path.read_text(encoding="utf-8", errors="replace")
        device = stored.params.get("device", "cpu")
        return Environment.of(text).deciding(device, stored.tags.get(THREADS_TAG), self._distributions)

    def _of_the_base(self, now: Mapping[str, str], reported: Iterable[str]) -> list[EnvironmentDifference]:
        """Return further differences: those to the environment of the base run, if the store has it."""
        fingerprint = self.stored.tags.get(BASE_FINGERPRINT_TAG, "")
        base = next((run for run in self.stored.bases(fingerprint) if run.has(ENVIRONMENT_FILE)), None)
        if self.stored.kind == "base" or base is None:
            return []
        processes = base.tags.get(PROCESSES_TAG, "1")
        of_base = differences(self._of(base) | {"processes": processes}, {**now, "processes": "1"})
        return [
            dataclasses.replace(difference, what=f"{difference.what} of the base")
            for difference in of_base
            if difference.what not in reported
        ]

    @property
    def _distributions(self) -> list[str]:
        """Return the distributions of the plugins that the run needs, with their requirements."""
        request, settings = self.request, self.request.settings
        used = [("strategy", arm.strategy) for arm in request.arms] + [("backbone", settings.backbone)]
        used += [("dataset", split_name(name)[0]) for name in (settings.dataset, settings.target) if name is not None]
        used += [("shift", name) for name in (*request.amounts, *request.augment_amounts)]
        origins = {self.plugins.components[kind][name.partition(":")[0]].origin for kind, name in used}
        installed = [source.origin for source in self.plugins.sources if source.kind == "installed"]
        names = [origin.split(" ")[0] for origin in installed if origin in origins]
        required = [required for name in names for required in requirements(name) if required != "adaptkit-vision"]
        return [*names, *required]


#: prefixes of metrics that differ each time: seconds, bytes of memory, and MLflow's metrics of the machine
NOT_REPRODUCIBLE = (FAMILY_TIME, FAMILY_MEMORY, FAMILY_SYSTEM)


def read_results(stored: StoredRun) -> Results:
    """Read the results of a run; raise BadInput if an artifact is missing, damaged or altered."""
    keys = [key for key in stored.record.data.metrics if not key.startswith(NOT_REPRODUCIBLE)]
    reader = stored.runs.reader
    with errors_as_lines(reader.address):
        points = {key: reader.client.get_metric_history(stored.run_id, key) for key in keys}
    # In the order of logging: MLflow returns them in the order of its database.
    ordered = {key: sorted(history, key=lambda point: (point.step, point.timestamp)) for key, history in points.items()}
    metrics = {key: tuple((point.step, float(point.value)) for point in ordered[key]) for key in keys}
    if stored.kind == "tuning":  # it has neither a model nor predictions for test sets
        return Results(metrics, {}, {})
    with stored.file(PREDICTIONS_FILE) as path:
        predictions = _predictions(path, stored.title)
    return Results(metrics, predictions, _base(stored) if stored.kind == "base" else _adapter(stored))


def _adapter(stored: StoredRun) -> dict[str, Tensor]:
    is_divided = stored.params.get("protocol") == "folds"
    name = f"{ADAPTER_FOLDER}/{FOLD_FOLDER}0" if is_divided else ADAPTER_FOLDER
    if is_divided and not stored.has(f"{name}/{ADAPTER_WEIGHTS_FILE}"):
        return {}  # the adapters of large folds are not kept
    with stored.folder(name, ADAPTER_WEIGHTS_FILE, ADAPTER_CARD_FILE) as folder:
        signed = stored.tags.get(ADAPTER_SHA256_TAG)
        if signed is None:
            raise BadInput(f"{stored.title} was recorded before adapters were signed and has nothing to compare with")
        card = read_card(folder / ADAPTER_CARD_FILE, {"sha256": str, "card_sha256": str})
        if sha256_of(folder / ADAPTER_CARD_FILE) != signed or card_digest(card) != card["card_sha256"]:
            raise BadInput(f"{stored.title}: its {ADAPTER_CARD_PATH} was altered or belongs to another run")
        try:
            return read_weights(folder / ADAPTER_WEIGHTS_FILE, card["sha256"])
        except BadInput as error:
            raise BadInput(*(f"{stored.title}: {line}" for line in error.problems)) from None


def _base(stored: StoredRun) -> dict[str, Tensor]:
    with stored.folder(BASE_FOLDER, BASE_WEIGHTS_FILE) as folder:
        tensors = read_weights(folder / BASE_WEIGHTS_FILE)
    recorded = stored.tags.get(BASE_FINGERPRINT_TAG)
    if (now := fingerprint(tensors)) != recorded:
        raise BadInput(
            f"{stored.title}: its {BASE_WEIGHTS_PATH} was altered: its fingerprint is {now}, and was {recorded}"
        )
    return tensors


def _predictions(path: Path, title: str) -> Mapping[str, Mapping[str, Row]]:
    rows: dict[str, dict[str, Row]] = {}
    try:
        table = read_table(path)
    except (OSError, ValueError):
        raise BadInput(f"{title}: its predictions.csv was altered: it is not a table of predictions") from None
    folds = table.get("fold") or [""] * len(table["image"])
    columns = (table[name] for name in ("test_set", "image", "truth", "prediction", "base_prediction"))
    for test, image, truth, prediction, base, fold, shares in zip(*columns, folds, shares_of(table), strict=True):
        # Under folds, several models predict an image of the source.
        rows.setdefault(test, {})[f"{image}, fold {fold}," if fold else image] = Row(
            truth=truth, prediction=prediction, probabilities=shares, base_prediction=base
        )
    return rows
