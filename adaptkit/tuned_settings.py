"""Take what a tuning has chosen for other runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adaptkit.errors import BadInput, suggestion
from adaptkit.resolve import LR, Layer
from adaptkit.stored_runs import StoredRun, open_runs
from adaptkit.tune_outcome import TUNING_FILE, TUNING_TAG


def tuned_layer(run_id: str, layers: Sequence[Layer], tracking_uri: str | None) -> Layer:
    """Return what the tuning of this run chose, as the weakest of the layers that a user gives.

    Of the strategies that the layers name, or of all that were tuned where they name none. A learning rate that they
    give for all strategies goes before those that were chosen. Raises BadInput for a run that is no finished tuning,
    and for strategies that it has not tuned.
    """
    runs = open_runs(tracking_uri)
    record = runs.get(run_id)
    if record is None:
        raise BadInput(f"--from-tune: there is no run {run_id!r} in {runs.reader.address.shown}")
    found = StoredRun(runs, record)
    if found.kind != "sweep" or TUNING_TAG not in found.tags:
        raise BadInput(f"--from-tune: {found.title} is no tuning; `adaptkit tune` says the id of its own")
    if record.info.status != "FINISHED":
        raise BadInput(f"--from-tune: {found.title} is not finished; the same `adaptkit tune` goes on with it")
    chosen = {one["strategy"]: one for one in _content(found)}
    named = next((layer.values["strategy"] for layer in layers if "strategy" in layer.values), None)
    names = _names(named) if named is not None else list(chosen)
    missing = [name for name in names if name not in chosen]
    if missing:
        raise BadInput(
            *(f"--from-tune: {found.title} has not tuned {name}{suggestion(name, chosen)}" for name in missing)
        )
    values: dict[str, Any] = {"strategy": names}
    for name in names:
        values |= {f"{name}.{key}": value for key, value in chosen[name]["options"].items()}
        if LR not in chosen[name]["options"] and not any(LR in layer.values for layer in layers):
            values[f"{name}.{LR}"] = chosen[name]["lr"]
    return Layer(values, f"tuning {run_id}")


def _content(found: StoredRun) -> list[dict[str, Any]]:
    """Return what the run says of each strategy."""
    try:
        with found.file(TUNING_FILE) as path:
            content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["strategies"]
    except (ValueError, KeyError) as error:
        raise BadInput(f"--from-tune: {found.title} has no {TUNING_FILE} that could be read") from error
    return content


def _names(value: Any) -> list[str]:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
