"""The metrics that runs can be compared by: what they are called, in which unit, and which direction is good."""

from __future__ import annotations

import dataclasses
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
#: one point, for accuracies; other metrics have no margin of their own
DEFAULT_MARGIN = 0.01
#: V-PETL Bench's constant for its PPT score
PPT_CONSTANT = 1e7

LABELS = {
    FINAL_SHIFTED_ACCURACY: "accuracy on the shifted test",
    FINAL_TEST_ACCURACY: "accuracy on the clean test",
    FINAL_SHIFTED_MACRO_F1: "macro F1 on the shifted test",
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
#: what is called otherwise where there is no source, and nothing was shifted
WITHOUT_SOURCE = {
    FINAL_SHIFTED_ACCURACY: "accuracy on the target's test set",
    FINAL_SHIFTED_MACRO_F1: "macro F1 on the target's test set",
}
UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "times the base's"}
#: metrics of which less is better, by what their names begin or end with
COSTLY = (FAMILY_TIME, FAMILY_PARAMS, FAMILY_SIZE, FAMILY_MEMORY)
LOSSES = ("loss", "error", "seconds", "bytes")
#: the final metrics that every adaptation run records, without which a record has a gap
REQUIRED = (
    FINAL_SHIFTED_ACCURACY, FINAL_SHIFTED_MACRO_F1, PARAMS_TOTAL, PARAMS_TRAINABLE,
    PARAMS_TRAINABLE_FRACTION, SIZE_ADAPTER_BYTES, MEMORY_PEAK_BYTES, TIME_TRAIN_SECONDS,
    TIME_INFERENCE_RATIO,
)  # fmt: skip
#: those that only a run with a source has
OF_SOURCE = (
    FINAL_TEST_ACCURACY, FINAL_ZERO_SHOT_ACCURACY, FINAL_BASE_TEST_ACCURACY, FINAL_GAIN, FINAL_RETENTION,
)  # fmt: skip
#: metric -> the test set whose images decide it
TEST_SETS = {
    FINAL_SHIFTED_ACCURACY: "shifted",
    FINAL_GAIN: "shifted",
    FINAL_SHIFTED_MACRO_F1: "shifted",
    FINAL_TEST_ACCURACY: "clean",
    FINAL_RETENTION: "clean",
}


def find_metric(key: str, runs: Iterable[ComparedRun]) -> Metric:
    """Return the metric of this name; raise BadInput, naming the nearest, if no run has it."""
    given = list(runs)
    known = {name for run in given for name in run.metrics}
    if key not in known:
        if key in (*OF_SOURCE, TEST_ACCURACY) and not any(run.has_source for run in given):
            raise BadInput(f"--metric: these runs have no source, and therefore no {key}")
        raise BadInput(f"--metric: no run has a metric {key!r}{_nearest(key, known)}")
    is_share = key in TEST_SETS or key.endswith("accuracy") or key == PARAMS_TRAINABLE_FRACTION
    is_share = is_share or of_severities(key)
    ending = key.rsplit("_", 1)[-1]
    costly = key.startswith(COSTLY) or key.rsplit("/", 1)[-1].endswith(LOSSES)
    return Metric(
        key=key,
        label=LABELS.get(key)
        or (f"accuracy at severity {key[len(SEVERITY_ACCURACY) :]}" if key.startswith(SEVERITY_ACCURACY) else key),
        unit="points" if is_share else UNITS.get(ending, ""),
        scale=100.0 if is_share else 1.0,
        higher_is_better=not costly,
    )


def of_severities(key: str) -> bool:
    """Tell whether images under severities of the shift, of which no predictions are kept, decide a metric."""
    return key == SEVERITY_AREA or key.startswith((SEVERITY_ACCURACY, SEVERITY_ZERO_SHOT))


def required(has_source: bool) -> tuple[str, ...]:
    """Return the final metrics without which the record of a finished run has a gap."""
    return (*OF_SOURCE, *REQUIRED) if has_source else REQUIRED


def worded(metric: Metric, has_source: bool) -> Metric:
    """Return the metric as it is called in a comparison of runs with or without a source."""
    return metric if has_source else dataclasses.replace(metric, label=WITHOUT_SOURCE.get(metric.key, metric.label))


def _nearest(key: str, known: set[str]) -> str:
    """Suggest the nearest metric; final ones also for the part of their name behind the slash, `shifted_acuracy`."""
    endings = {name.removeprefix(FAMILY_FINAL): name for name in known if name.startswith(FAMILY_FINAL)}
    short = difflib.get_close_matches(key, endings, n=1, cutoff=0.8)
    return f"; did you mean {endings[short[0]]!r}?" if short else suggestion(key, known)
