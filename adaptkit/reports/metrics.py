"""The metrics that runs can be compared by: what they are called, in which unit, and which direction is good."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

from adaptkit.comparison import ComparedRun, Metric
from adaptkit.errors import BadInput, suggestion
from adaptkit.severity import ACCURACY, AREA, ZERO_SHOT

DEFAULT_METRIC = "final/shifted_accuracy"
#: one point, for accuracies; other metrics have no margin of their own
DEFAULT_MARGIN = 0.01
#: V-PETL Bench's constant for its PPT score
PPT_CONSTANT = 1e7

LABELS = {
    "final/shifted_accuracy": "accuracy on the shifted test",
    "final/test_accuracy": "accuracy on the clean test",
    "final/shifted_macro_f1": "macro F1 on the shifted test",
    "final/gain": "gain",
    "final/retention": "retention",
    AREA: "area under accuracy over severity",
    "time/train_seconds": "training time",
    "time/evaluation_seconds": "evaluation time",
    "time/inference_ratio": "inference time",
    "params/trainable": "trainable parameters",
    "params/total": "parameters",
    "size/adapter_bytes": "adapter size",
    "memory/peak_bytes": "peak memory",
}
#: what is called otherwise where there is no source, and nothing was shifted
WITHOUT_SOURCE = {
    "final/shifted_accuracy": "accuracy on the target's test set",
    "final/shifted_macro_f1": "macro F1 on the target's test set",
}
UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "times the base's"}
#: metrics of which less is better, by what their names begin or end with
COSTLY = ("time/", "params/", "size/", "memory/")
LOSSES = ("loss", "error", "seconds", "bytes")
#: the final metrics that every adaptation run records, without which a record has a gap
REQUIRED = (
    "final/shifted_accuracy", "final/shifted_macro_f1", "params/total", "params/trainable",
    "params/trainable_fraction", "size/adapter_bytes", "memory/peak_bytes", "time/train_seconds",
    "time/inference_ratio",
)  # fmt: skip
#: those that only a run with a source has
OF_SOURCE = (
    "final/test_accuracy", "final/zero_shot_accuracy", "final/base_test_accuracy", "final/gain", "final/retention",
)  # fmt: skip
#: metric -> the test set whose images decide it
TEST_SETS = {
    "final/shifted_accuracy": "shifted",
    "final/gain": "shifted",
    "final/shifted_macro_f1": "shifted",
    "final/test_accuracy": "clean",
    "final/retention": "clean",
}


def find_metric(key: str, runs: Iterable[ComparedRun]) -> Metric:
    """Return the metric of this name; raise BadInput, naming the nearest, if no run has it."""
    given = list(runs)
    known = {name for run in given for name in run.metrics}
    if key not in known:
        if key in (*OF_SOURCE, "test/accuracy") and not any(run.has_source for run in given):
            raise BadInput(f"--metric: these runs have no source, and therefore no {key}")
        raise BadInput(f"--metric: no run has a metric {key!r}{_nearest(key, known)}")
    is_share = key in TEST_SETS or key.endswith("accuracy") or key == "params/trainable_fraction"
    is_share = is_share or of_severities(key)
    ending = key.rsplit("_", 1)[-1]
    costly = key.startswith(COSTLY) or key.rsplit("/", 1)[-1].endswith(LOSSES)
    return Metric(
        key=key,
        label=LABELS.get(key) or (f"accuracy at severity {key[len(ACCURACY) :]}" if key.startswith(ACCURACY) else key),
        unit="points" if is_share else UNITS.get(ending, ""),
        scale=100.0 if is_share else 1.0,
        higher_is_better=not costly,
    )


def of_severities(key: str) -> bool:
    """Tell whether images under severities of the shift, of which no predictions are kept, decide a metric."""
    return key == AREA or key.startswith((ACCURACY, ZERO_SHOT))


def required(has_source: bool) -> tuple[str, ...]:
    """Return the final metrics without which the record of a finished run has a gap."""
    return (*OF_SOURCE, *REQUIRED) if has_source else REQUIRED


def worded(metric: Metric, has_source: bool) -> Metric:
    """Return the metric as it is called in a comparison of runs with or without a source."""
    return metric if has_source else dataclasses.replace(metric, label=WITHOUT_SOURCE.get(metric.key, metric.label))


def _nearest(key: str, known: set[str]) -> str:
    """Suggest the nearest metric; final ones also for the part of their name behind the slash, `shifted_acuracy`."""
    endings = {name.removeprefix("final/"): name for name in known if name.startswith("final/")}
    short = difflib.get_close_matches(key, endings, n=1, cutoff=0.8)
    return f"; did you mean {endings[short[0]]!r}?" if short else suggestion(key, known)
