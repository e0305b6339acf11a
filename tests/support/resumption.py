"""Compare a run that was interrupted and resumed with an undisturbed run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

#: metrics of time and memory, which differ each time
OF_THE_OCCASION = ("time/", "memory/")
#: tags of the process and of the time of a run
OF_THE_PROCESS = (
    *("mlflow.", "adaptkit.host", "adaptkit.pid", "adaptkit.process_seen", "adaptkit.local_id", "adaptkit.resumed"),
    *("adaptkit.timing", "adaptkit.base_run_id"),
)
EPOCH_KEYS = {"train/loss", "train/accuracy", "time/epoch_seconds", "time/cumulative_seconds"}


@dataclass(frozen=True)
class Recorded:
    """The record of a run in a store: metrics with steps and values, their numbers, and files."""

    status: str
    steps: dict[str, list[int]]
    values: dict[str, list[float]]
    params: dict[str, str]
    tags: dict[str, str]
    inputs: list[tuple[str, str]]
    files: list[str]
    weights: dict[str, bytes]


def recorded(uri: str, run_id: str) -> Recorded:
    """Read a run."""
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    histories = {key: client.get_metric_history(run_id, key) for key in sorted(run.data.metrics)}
    folder = Path(str(run.info.artifact_uri).removeprefix("file://"))
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return Recorded(
        status=run.info.status,
        steps={key: [point.step for point in points] for key, points in histories.items()},
        values={
            key: [point.value for point in points]
            for key, points in histories.items()
            if not key.startswith(OF_THE_OCCASION)
        },
        params={key: value for key, value in run.data.params.items() if key != "experiment"},
        tags={key: value for key, value in run.data.tags.items() if not key.startswith(OF_THE_PROCESS)},
        inputs=sorted((given.dataset.name, given.dataset.digest) for given in run.inputs.dataset_inputs),
        files=files,
        weights={name: (folder / name).read_bytes() for name in files if name.startswith(("adapter/", "base/"))},
    )


def require_as_undisturbed(resumed: Recorded, undisturbed: Recorded) -> None:
    """Check that the run equals the undisturbed one, and that each metric was logged once."""
    epochs = len(undisturbed.steps["train/loss"])
    assert resumed.status == undisturbed.status == "FINISHED"
    for key, steps in undisturbed.steps.items():
        assert steps in ([0], list(range(1, epochs + 1))), key
    assert undisturbed.steps.keys() >= EPOCH_KEYS
    assert resumed.steps == undisturbed.steps
    assert resumed.values == undisturbed.values
    assert (resumed.params, resumed.tags, resumed.inputs) == (undisturbed.params, undisturbed.tags, undisturbed.inputs)
    assert resumed.files == undisturbed.files
    assert resumed.weights == undisturbed.weights and len(resumed.weights) == 2


def ids(uri: str, **tags: str) -> dict[str, Any]:
    """Return the ids of the runs with these tags by name; names must be unique."""
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    condition = " and ".join(f"tags.`adaptkit.{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs(experiments, condition)
    names = {str(run.info.run_name): str(run.info.run_id) for run in found}
    assert len(names) == len(found)
    return names
