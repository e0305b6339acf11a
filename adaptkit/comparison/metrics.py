"""Metrics that runs can be compared by: name in text, unit, and whether higher is better."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from adaptkit.comparison.records import ComparedRun, Metric
from adaptkit.contracts import Metric as Measure
from adaptkit.errors import BadInput
from adaptkit.metrics.classification import adaptkit_metrics
from adaptkit.names import (
    FAMILY_FINAL,
    FAMILY_MEMORY,
    FAMILY_PARAMS,
    FAMILY_SIZE,
    FAMILY_TIME,
    FINAL_BASE_TEST_ACCURACY,
    FINAL_GAIN,
    FINAL_RETENTION,
    FINAL_SHIFTED,
    FINAL_SHIFTED_ACCURACY,
    FINAL_SHIFTED_MACRO_F1,
    FINAL_TEST_ACCURACY,
    FINAL_ZERO_SHOT_ACCURACY,
    MEMORY_PEAK_BYTES,
    PARAMS_TOTAL,
    PARAMS_TRAINABLE,
    PARAMS_TRAINABLE_FRACTION,
    SEVERITY_ACCURACY,
    SEVERITY_AREA,
    SEVERITY_ZERO_SHOT,
    SIZE_ADAPTER_BYTES,
    TEST_ACCURACY,
    TIME_EVALUATION_SECONDS,
    TIME_INFERENCE_RATIO,
    TIME_TRAIN_SECONDS,
)
from adaptkit.plugins.manager import Plugins

DEFAULT_METRIC = FINAL_SHIFTED_ACCURACY
#: one point, for accuracies; other metrics have no default margin
DEFAULT_MARGIN = 0.01
#: V-PETL Bench's constant for its PPT score
PPT_CONSTANT = 1e7

LABELS = {
    FINAL_TEST_ACCURACY: "source accuracy",
    FINAL_GAIN: "gain",
    FINAL_RETENTION: "retention",
    SEVERITY_AREA: "area under accuracy over severity",
    TIME_TRAIN_SECONDS: "training time",
    TIME_EVALUATION_SECONDS: "evaluation time",
    TIME_INFERENCE_RATIO: "inference time",
    PARAMS_TRAINABLE: "trainable parameters",
    PARAMS_TOTAL: "parameters",
    SIZE_ADAPTER_BYTES: "adapter size",
    MEMORY_PEAK_BYTES: "peak memory",
}
UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "times the base's"}
#: families of metrics for which lower is better, and endings of the names of losses
COSTLY = (FAMILY_TIME, FAMILY_PARAMS, FAMILY_SIZE, FAMILY_MEMORY)
LOSSES = ("loss", "error", "seconds", "bytes")
#: final metrics that every adaptation run records
REQUIRED = (
    FINAL_SHIFTED_ACCURACY, FINAL_SHIFTED_MACRO_F1, PARAMS_TOTAL, PARAMS_TRAINABLE,
    PARAMS_TRAINABLE_FRACTION, SIZE_ADAPTER_BYTES, MEMORY_PEAK_BYTES, TIME_TRAIN_SECONDS,
    TIME_INFERENCE_RATIO,
)  # fmt: skip
#: final metrics that only runs with a source record
OF_SOURCE = (
    FINAL_TEST_ACCURACY, FINAL_ZERO_SHOT_ACCURACY, FINAL_BASE_TEST_ACCURACY, FINAL_GAIN, FINAL_RETENTION,
)  # fmt: skip
#: test set, as in predictions and file names -> the domain of its images, as in text
DOMAINS = {"shifted": "target", "clean": "source"}
#: accuracies, and differences of accuracies -> the test set whose predictions determine them
ACCURACIES = {
    FINAL_SHIFTED_ACCURACY: "shifted",
    FINAL_GAIN: "shifted",
    FINAL_TEST_ACCURACY: "clean",
    FINAL_RETENTION: "clean",
}
#: metrics that are the difference to the accuracy of the base
BASE_RELATIVE = (FINAL_GAIN, FINAL_RETENTION)

#: metric of predictions -> the class that scores them, by the names of MLflow
Measures = Mapping[str, Measure]


def find_measures(plugins: Plugins | None = None) -> dict[str, Measure]:
    """Return the metrics of predictions that plugins provide; without plugins, the built-in ones."""
    classes = adaptkit_metrics() if plugins is None else [item.cls for item in plugins.usable("metric")]
    return {f"{FINAL_SHIFTED}{cls.name}": cls() for cls in classes}


def is_cost(key: str) -> bool:
    """Return whether a metric is a cost: repeated measurements of it are independent, and lower is better."""
    return key.startswith(COSTLY)


def full_name(name: str, measures: Measures, runs: Iterable[ComparedRun] = ()) -> str:
    """Return the name in MLflow of a metric that was given by its short name, such as `macro_f1`.

    It is known as a metric of predictions, or recorded in a run: the plugin of a recorded one may not be loaded.
    """
    full = f"{FINAL_SHIFTED}{name}"
    return full if full in measures or any(full in run.metrics for run in runs) else name


def measured_metric(measure: Measure, *, key: str, label: str) -> Metric:
    """Return the metric of target predictions that a class scores."""
    return Metric(
        key=key,
        label=label,
        unit=measure.unit,
        scale=100.0 if measure.unit == "points" else 1.0,
        higher_is_better=measure.higher_is_better,
        test="shifted",
    )


def find_metric(key: str, runs: Iterable[ComparedRun], measures: Measures) -> Metric:
    """Return the metric of this name; raise BadInput with the nearest name if no run has it."""
    candidates = list(runs)
    recorded = {name for run in candidates for name in run.metrics} | set(measures)
    if key not in recorded:
        if key in (*OF_SOURCE, TEST_ACCURACY) and not any(run.has_source for run in candidates):
            raise BadInput(f"--metric: these runs have no source, and therefore no {key}")
        raise BadInput(f"--metric: no run has a metric {key!r}{_nearest(key, recorded)}")
    if (measure := measures.get(key)) is not None:
        return measured_metric(measure, key=key, label=f"target {measure.title}")
    is_share = key in ACCURACIES or key.endswith("accuracy") or key == PARAMS_TRAINABLE_FRACTION
    is_share = is_share or of_severities(key)
    ending = key.rsplit("_", 1)[-1]
    costly = is_cost(key) or key.rsplit("/", 1)[-1].endswith(LOSSES)
    return Metric(
        key=key,
        label=LABELS.get(key)
        or (f"accuracy at severity {key[len(SEVERITY_ACCURACY) :]}" if key.startswith(SEVERITY_ACCURACY) else key),
        unit="points" if is_share else UNITS.get(ending, ""),
        scale=100.0 if is_share else 1.0,
        higher_is_better=not costly,
        test=ACCURACIES.get(key),
    )


def of_severities(key: str) -> bool:
    """Return whether a metric is measured over severities of the shift, for which no predictions are kept."""
    return key == SEVERITY_AREA or key.startswith((SEVERITY_ACCURACY, SEVERITY_ZERO_SHOT))


def required(has_source: bool) -> tuple[str, ...]:
    """Return the final metrics that the record of a finished run must have."""
    return (*OF_SOURCE, *REQUIRED) if has_source else REQUIRED


def _nearest(key: str, recorded: set[str]) -> str:
    """Return a suggestion of the nearest metric, if one is near. The names also match without their first part."""
    endings = {name.removeprefix(FINAL_SHIFTED).removeprefix(FAMILY_FINAL): name for name in sorted(recorded)}
    short = key.removeprefix(FINAL_SHIFTED).removeprefix(FAMILY_FINAL)
    for names in (list(endings), list(recorded)):
        if near := difflib.get_close_matches(short if names[0] in endings else key, names, n=1, cutoff=0.75):
            return f"; did you mean {endings.get(near[0], near[0]).removeprefix(FINAL_SHIFTED)!r}?"
    return "; `adaptkit metrics` lists those of predictions"
