"""Use the values that an earlier tuning chose, and find out whether it saw the labels that are now evaluated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from adaptkit.data.split_files import SplitPart, read_split
from adaptkit.errors import BadInput, suggestion
from adaptkit.experiment.prepare import Experiment
from adaptkit.names import SPLIT_FILE, TUNING_FILE, TUNING_TAG
from adaptkit.settings.request import LR, Request
from adaptkit.settings.resolve import Layer
from adaptkit.settings.selection import split_name
from adaptkit.tracking.runs import StoredRun, open_runs


def tuned_layer(run_id: str, layers: Sequence[Layer], tracking_uri: str | None) -> Layer:
    """Return the best values of a tuning as the weakest layer of settings.

    They are those of the strategies in `layers`, or of all tuned strategies if `layers` names none. A learning rate in
    `layers` for all strategies overrides the tuned ones. Raises BadInput for a run that is not a finished
    tuning, and for strategies that it did not tune.
    """
    runs = open_runs(tracking_uri)
    record = runs.get(run_id)
    if record is None:
        raise BadInput(f"--from-tune: {runs.reader.unknown(run_id)}")
    stored = StoredRun(runs, record)
    if stored.kind != "sweep" or TUNING_TAG not in stored.tags:
        raise BadInput(f"--from-tune: {stored.title} is not a tuning; use the run id that `adaptkit tune` prints")
    if record.info.status != "FINISHED":
        raise BadInput(
            f"--from-tune: {stored.title} has not finished; run the same `adaptkit tune` again to continue it"
        )
    tuned = {strategy["strategy"]: strategy for strategy in _tuned_strategies(stored)}
    named = next((layer.values["strategy"] for layer in layers if "strategy" in layer.values), None)
    names = _names(named) if named is not None else list(tuned)
    missing = [name for name in names if name not in tuned]
    if missing:
        raise BadInput(
            *(f"--from-tune: {stored.title} has not tuned {name}{suggestion(name, tuned)}" for name in missing)
        )
    values: dict[str, Any] = {"strategy": names}
    for name in names:
        values |= {f"{name}.{key}": value for key, value in tuned[name]["options"].items()}
        rate = tuned[name]["lr"]
        if rate is not None and LR not in tuned[name]["options"] and not any(LR in layer.values for layer in layers):
            values[f"{name}.{LR}"] = rate
    values["tuning.on"] = EVALUATED  # until `with_origin` compares the images
    return Layer(values, f"tuning {run_id}")


def _tuned_strategies(stored: StoredRun) -> list[dict[str, Any]]:
    try:
        with stored.file(TUNING_FILE) as path:
            content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["strategies"]
    except (ValueError, KeyError) as error:
        raise BadInput(f"--from-tune: {stored.title} has no readable {TUNING_FILE}") from error
    return content


def _names(value: Any) -> list[str]:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)


#: labels on which an earlier tuning chose values: labels that the run evaluates, or others
EVALUATED, OTHER = "evaluated", "other"


def with_origin(experiment: Experiment, run_id: str, tracking_uri: str | None) -> Experiment:
    """Return an experiment with values of an earlier tuning that says whether that tuning saw the evaluated labels.

    They count as seen if the images of the tuning are not known.
    """
    domains = experiment.domains
    evaluated = _part(json.loads(domains.split_text)["parts"], "pool" if domains.is_pool_tested else "shifted_test")
    tuned = _tuned_images(run_id, tracking_uri)
    if tuned is None or evaluated is None or shares_images(tuned, evaluated):
        notice = (
            f"the values come from tuning {run_id}, which saw labels that are evaluated here: these runs give no "
            "better or worse; `--tune TRIALS` instead of --from-tune tunes inside each fit"
        )
        labels = EVALUATED
    else:
        notice = f"the values come from tuning {run_id}, which did not see the labels that are evaluated here"
        labels = OTHER
    plan = dataclasses.replace(experiment.plan, notices=(*experiment.plan.notices, notice))
    return dataclasses.replace(experiment, request=with_tuned_labels(experiment.request, labels), plan=plan)


def with_tuned_labels(request: Request, labels: str) -> Request:
    """Return a request whose runs record on which labels their values were tuned."""
    return request.with_settings(tuning=request.settings.tuning.model_copy(update={"on": labels}))


def shares_images(tuned: SplitPart, evaluated: SplitPart) -> bool:
    """Return whether two parts may have an image in common.

    Selections of the rows of one data set may overlap. In folders of other names, images with equal names count as the
    same.
    """
    common = set(tuned.members) & set(evaluated.members)
    if tuned.dataset == evaluated.dataset:
        return bool(common)
    if split_name(tuned.dataset)[0] == split_name(evaluated.dataset)[0]:
        return True
    return any(isinstance(name, str) for name in common)


def _tuned_images(run_id: str, tracking_uri: str | None) -> SplitPart | None:
    """Return the labelled images that a tuning could draw from; None if its runs do not record them."""
    runs = open_runs(tracking_uri)
    for record in runs.reader.find([run_id], None, None):
        stored = StoredRun(runs, record)
        if stored.has(SPLIT_FILE):
            with stored.file(SPLIT_FILE) as path:
                return read_split(path).parts.get("pool")
    return None


def _part(parts: Mapping[str, Any], title: str) -> SplitPart | None:
    part = parts.get(title)
    return None if part is None else SplitPart(part["dataset"], tuple(part["images"]))
