"""Metrics that runs can be compared by: name in text, unit, and whether higher is better."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from adaptkit.comparison.records import ComparedRun, Metric
from adaptkit.errors import BadInput, suggestion
from adaptkit.names import (
    FAMILY_FINAL,
    FAMILY_MEMORY,
    FAMILY_PARAMS,
    FAMILY_SIZE,
    FAMILY_TIME,
    FINAL_BASE_TEST_ACCURACY,
    FINAL_GAIN,
    FINAL_RETENTION,
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

DEFAULT_METRIC = FINAL_SHIFTED_ACCURACY
#: one point, for accuracies; other metrics have no default margin
DEFAULT_MARGIN = 0.01
#: V-PETL Bench's constant for its PPT score
PPT_CONSTANT = 1e7

LABELS = {
    FINAL_SHIFTED_ACCURACY: "target accuracy",
    FINAL_TEST_ACCURACY: "source accuracy",
    FINAL_SHIFTED_MACRO_F1: "target macro F1",
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
#: metric -> the test set whose predictions determine it
TEST_SETS = {
    FINAL_SHIFTED_ACCURACY: "shifted",
    FINAL_GAIN: "shifted",
    FINAL_SHIFTED_MACRO_F1: "shifted",
    FINAL_TEST_ACCURACY: "clean",
    FINAL_RETENTION: "clean",
}

#: metrics that are the difference to the accuracy of the base
BASE_RELATIVE = (FINAL_GAIN, FINAL_RETENTION)


def is_cost(key: str) -> bool:
    """Return whether a metric is a cost: repeated measurements of it are independent, and lower is better."""
    return key.startswith(COSTLY)


def find_metric(key: str, runs: Iterable[ComparedRun]) -> Metric:
    """Return the metric of this name; raise BadInput with the nearest name if no run has it."""
    candidates = list(runs)
    recorded = {name for run in candidates for name in run.metrics}
    if key not in recorded:
        if key in (*OF_SOURCE, TEST_ACCURACY) and not any(run.has_source for run in candidates):
            raise BadInput(f"--metric: these runs have no source, and therefore no {key}")
        raise BadInput(f"--metric: no run has a metric {key!r}{_nearest(key, recorded)}")
    is_share = key in TEST_SETS or key.endswith("accuracy") or key == PARAMS_TRAINABLE_FRACTION
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
    )


def of_severities(key: str) -> bool:
    """Return whether a metric is measured over severities of the shift, for which no predictions are kept."""
    return key == SEVERITY_AREA or key.startswith((SEVERITY_ACCURACY, SEVERITY_ZERO_SHOT))


def required(has_source: bool) -> tuple[str, ...]:
    """Return the final metrics that the record of a finished run must have."""
    return (*OF_SOURCE, *REQUIRED) if has_source else REQUIRED


def _nearest(key: str, recorded: set[str]) -> str:
    """Return a suggestion of the nearest metric. Final metrics also match without the prefix `final/`."""
    endings = {name.removeprefix(FAMILY_FINAL): name for name in recorded if name.startswith(FAMILY_FINAL)}
    short = difflib.get_close_matches(key, endings, n=1, cutoff=0.8)
    return f"; did you mean {endings[short[0]]!r}?" if short else suggestion(key, recorded)
