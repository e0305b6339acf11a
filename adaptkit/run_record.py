"""Read what a finished run has on record of its results: every metric with its history, predictions, weights."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from adaptkit.adapters.files import CARD, WEIGHTS, card_digest, read_card, read_weights
from adaptkit.adapters.weights import fingerprint, sha256_of
from adaptkit.errors import BadInput
from adaptkit.experiment.base import WEIGHTS_FILE
from adaptkit.reports.agreement import Results, Row
from adaptkit.stored_runs import StoredRun
from adaptkit.tracking.predictions import HEADING
from adaptkit.tracking.store import errors_as_lines

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
    with found.file("predictions.csv") as path:
        predictions = _predictions(path, found.title)
    return Results(metrics, predictions, _base(found) if found.kind == "base" else _adapter(found))


def _adapter(found: StoredRun) -> dict[str, Tensor]:
    with found.folder("adapter", WEIGHTS, CARD) as folder:
        signed = found.tags.get("adaptkit.adapter_sha256")
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
    recorded = found.tags.get("adaptkit.base_fingerprint")
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
