"""Hold a run's record against what it would be run with here: can it be run again, on the same data and settings?"""

from __future__ import annotations

from adaptkit.data.domains import Domains
from adaptkit.errors import BadInput
from adaptkit.experiment.preparation import Experiment
from adaptkit.reproduction import Difference
from adaptkit.request import Request
from adaptkit.stored_runs import StoredRun
from adaptkit.training.torchrun import place

#: params that say where and on what a run was made, and nothing of its result
OF_THE_PLACE = {"device", "data_dir", "split.file"}
#: settings of plugins: what their plugin does not know any more, or did not know yet, is no detail
OF_PLUGINS = ("strategy.", "backbone.", "shift.")


def require_possible(found: StoredRun) -> None:
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


def drawn_images(found: StoredRun) -> int | None:
    """Return how many labelled images a run drew to train on."""
    count = found.tags.get("adaptkit.drawn_images", "")
    return int(count) if count.isdigit() else None


def recorded_data(found: StoredRun) -> str | None:
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
        before, same_split = found.tags.get("adaptkit.images_digest"), _has_split(found, domains)
        # What was not recorded can be told where the target is the source under a shift: its test images count in both.
        same_images = request.target is None if before is None else before == domains.images_digest
        if within := same_images and same_split:
            detail = "the same images; the shift, computed here, gives them other last digits"
    return Difference("data", "fingerprint of the data", recorded, now, within, detail)


def _has_split(found: StoredRun, domains: Domains) -> bool:
    """Tell whether the images are divided as the run's were; a tuning run does not say how."""
    if not found.has("split.json"):
        return found.kind == "tuning"
    with found.file("split.json") as path:
        return path.read_text(encoding="utf-8") == domains.split_text


def settings_difference(found: StoredRun, experiment: Experiment) -> Difference | None:
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
