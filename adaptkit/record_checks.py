"""Hold a run's record against what it would be run with here: can it be run again, on the same data and settings?"""

from __future__ import annotations

from adaptkit.data.domains import Domains
from adaptkit.data.split_files import read_split, says_same
from adaptkit.errors import BadInput
from adaptkit.experiment.preparation import Experiment
from adaptkit.reproduction import Difference
from adaptkit.request import Request
from adaptkit.stored_runs import StoredRun

#: params that say where and on what a run was made, and nothing of its result
OF_THE_PLACE = {"device", "data_dir", "split.file"}
#: settings of plugins: what their plugin does not know any more, or did not know yet, is no detail
OF_PLUGINS = ("strategy.", "backbone.", "shift.")


def require_possible(found: StoredRun) -> None:
    """Refuse what one process cannot make again."""
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
    with found.file("split.json") as path:
        if found.params.get("split.file", "none") != "none":
            try:
                read_split(path)
            except BadInput:
                raise _altered_split(found) from None


def require_same_split(found: StoredRun, domains: Domains) -> None:
    """Refuse a split.json that says other things than these data, which are the run's."""
    if found.kind != "adaptation":
        return
    with found.file("split.json") as path:
        if not says_same(path.read_bytes(), domains.split_text):
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
