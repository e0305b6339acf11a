"""Compare runs: group them, then judge the arms of each group by one metric and by their costs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from adaptkit.comparison.classes import MOST_CONFUSION, class_f1, mean_confusion
from adaptkit.comparison.constant import beating_constant, choose_guard, find_constants
from adaptkit.comparison.evidence import Design, answers_of, estimate_arm, estimate_cost, estimate_domains, find_design
from adaptkit.comparison.findings import Comparison, Comparisons
from adaptkit.comparison.grouping import ArmRuns, RunGroup, comparable_key, group_runs
from adaptkit.comparison.metrics import (
    DEFAULT_MARGIN,
    DEFAULT_METRIC,
    DOMAINS,
    PPT_CONSTANT,
    Measures,
    find_measures,
    find_metric,
    full_name,
)
from adaptkit.comparison.notes import note_sentences
from adaptkit.comparison.numbers import listed
from adaptkit.comparison.pairs import dominators, judge_pairs
from adaptkit.comparison.records import COSTS, ArmResult, ComparedRun, Estimate, Metric
from adaptkit.comparison.scores import OF_CLASSES, PROBABILISTIC
from adaptkit.comparison.sentences import verdict_sentences
from adaptkit.comparison.severity import judge_robustness, over_common
from adaptkit.comparison.statistics import ppt
from adaptkit.comparison.trends import find_trends
from adaptkit.errors import BadInput
from adaptkit.names import (
    BASE_FINGERPRINT_TAG,
    DATA_FINGERPRINT_TAG,
    DRAWN_IMAGES_TAG,
    FINAL_BASE_TEST_ACCURACY,
    FINAL_GAIN,
    FINAL_RETENTION,
    FINAL_SHIFTED,
    FINAL_SHIFTED_ACCURACY,
    FINAL_SHIFTED_MACRO_F1,
    FINAL_TEST_ACCURACY,
    FINAL_ZERO_SHOT_ACCURACY,
    HOST_TAG,
    MEMORY_PEAK_BYTES,
    PARAMS_TOTAL,
    PARAMS_TRAINABLE,
    PARAMS_TRAINABLE_FRACTION,
    POOL_IMAGES_TAG,
    PROCESSES_TAG,
    SIZE_ADAPTER_BYTES,
    THREADS_TAG,
    TIME_INFERENCE_RATIO,
    TIME_TRAIN_SECONDS,
    TIME_TUNING_SECONDS,
    TIMING_TAG,
)

#: advice when there is nothing to compare
MORE_ARMS = "run another strategy with the same seeds, as in `adaptkit run -s full -s head --seeds 0-4`"


def judge_runs(
    runs: Sequence[ComparedRun],
    *,
    metrics: Sequence[str] = (),
    margin: float | None = None,
    measures: Measures | None = None,
) -> Comparisons:
    """Compare runs by metrics, and return one comparison for each group of comparable runs.

    The first metric decides, and the others are shown; by default they are those that the runs were made with.
    `margin` is the largest difference that counts as a tie, in points for shares, else in the metric's unit. `measures`
    are the metrics of predictions; by default the built-in ones. Raises BadInput if no run has finished, or if no run
    has the metric.
    """
    finished = [run for run in runs if run.status == "finished"]
    if not finished:
        counts = ", ".join(f"{run.name} ({run.status})" for run in runs)
        raise BadInput(f"no run has finished: {counts}" if counts else "no runs to compare")
    known = find_measures() if measures is None else measures
    given = tuple(dict.fromkeys(metrics))

    @functools.cache  # finding a metric reads all runs
    def named(names: tuple[str, ...]) -> list[Metric]:
        return [find_metric(full_name(name, known, finished), finished, known) for name in dict.fromkeys(names)]

    def chosen(run: ComparedRun) -> list[Metric]:
        """Return the metrics by which a run is compared: those that were asked for, or its own."""
        return named(given or recorded_metrics(run.settings))

    every = list(dict.fromkeys(metric.key for run in runs for metric in chosen(run)))
    complete = [_with_metrics(run, every, known) for run in runs]
    has_value = {
        (comparable_key(run), key)
        for run in complete
        if run.status == "finished"
        for key, value in run.metrics.items()
        if not math.isnan(value)
    }

    def defined(run: ComparedRun) -> list[Metric]:
        """Return the chosen metrics that have a value for runs like this one; the accuracy if there are none.

        A metric that was asked for decides in any case: runs without it are left out.
        """
        found = [metric for metric in chosen(run) if (comparable_key(run), metric.key) in has_value]
        if given:
            return list(dict.fromkeys([chosen(run)[0], *found]))
        return found or named((DEFAULT_METRIC,))

    if given and not any(key == chosen(finished[0])[0].key for _, key in has_value):
        raise BadInput(_undefined(chosen(finished[0])[0]))
    groups, left_out = group_runs([_having(run, defined(run)[0].key) for run in complete])
    comparisons = []
    for number, group in enumerate(groups, start=1):
        first = group.arms[0].runs[0]
        deciding, *others = defined(first)
        default = DEFAULT_MARGIN if deciding.scale == 100 else 0.0
        scaled = default if margin is None else margin / deciding.scale
        found = judge(group, number=number, metric=deciding, others=others, margin=scaled, measures=known)
        missing = [_undefined(metric) for metric in chosen(first) if metric not in (deciding, *others)]
        if missing:
            missing[-1] += f"; {deciding.label} decides"
        notes = (*(f"{text[0].upper()}{text[1:]}." for text in missing), *found.notes)
        comparisons.append(dataclasses.replace(found, notes=notes))
    notes = tuple(f"{run.name} is left out: {run.reason}" for run in left_out)
    return Comparisons(comparisons=tuple(comparisons), notes=notes, left_out=left_out, trends=find_trends(comparisons))


def _undefined(metric: Metric) -> str:
    """Return the reason why a metric has no value for any run, as the worst group without groups."""
    name = metric.key.removeprefix(FINAL_SHIFTED)
    reason = ", because it needs groups (split.group or folder.group)" if name == "worst_group_accuracy" else ""
    return f"metric {name} is not defined for these runs{reason}"


def recorded_metrics(settings: Mapping[str, str]) -> tuple[str, ...]:
    """Return the metrics that a run was made with: the first decides. Runs of earlier versions have the accuracy."""
    recorded = settings.get("metric", "")
    return tuple(recorded.split(",")) if recorded not in ("", "none") else (DEFAULT_METRIC,)


def require_pairs(findings: Comparisons) -> None:
    """Raise BadInput if no comparison has two arms."""
    if any(len(comparison.arms) > 1 for comparison in findings.comparisons):
        return
    arms = [arm for comparison in findings.comparisons for arm in comparison.arms]
    if len(arms) == 1:
        seeds = "seed" if len(arms[0].seeds) == 1 else "seeds"
        every = (*findings.left_out, *(run for comparison in findings.comparisons for run in comparison.left_out))
        missing = f"left out: {listed(f'{run.name} ({run.status})' for run in every)}; " if every else ""
        raise BadInput(
            f"only one strategy to compare: {arms[0].name} ({len(arms[0].seeds)} {seeds}); {missing}{MORE_ARMS}"
        )
    differences = "; ".join(
        f"{comparison.arms[0].name}: {(comparison.reason or '').split(': ', 1)[-1]}"
        for comparison in findings.comparisons
    )
    raise BadInput(
        f"no two strategies share a base, the data and the number of labelled images ({differences}); {MORE_ARMS}"
    )


def judge(
    group: RunGroup, *, number: int, metric: Metric, others: Sequence[Metric], margin: float, measures: Measures
) -> Comparison:
    """Judge one group of arms by a metric; `margin` is in the metric's own scale (a fraction for shares)."""
    group = over_common(group, metric)
    runs = [run for arm in group.arms for run in arm.runs]
    _check_test_images(runs)
    sign = -1 if metric.higher_is_better else 1
    design = find_design(runs[0], measures)
    results = [_arm_result(arm, metric, others, design) for arm in group.arms]
    always = [find_metric(key, runs, measures) for key in (DEFAULT_METRIC, FINAL_SHIFTED_MACRO_F1)]
    constants = find_constants(runs[0], [metric, *others, *always], design)
    constant = choose_guard(constants, metric)
    arms = beating_constant(sorted(results, key=lambda arm: sign * arm.score.mean), constant, design)
    comparable = _timings_comparable(arms)
    pairs = judge_pairs(arms, metric, design, margin=margin, timings_comparable=comparable)
    dominated = dominators(arms, pairs, timings_comparable=comparable)
    arms = [dataclasses.replace(arm, dominated_by=dominated[arm.name]) for arm in arms]
    first = arms[0].runs[0]
    comparison = Comparison(
        number=number,
        reason=group.reason,
        metric=metric,
        others=tuple(others),
        constant=constant,
        constant_scores={key: found.score for key, found in constants.items()},
        margin=margin,
        ppt_constant=PPT_CONSTANT,
        arms=tuple(arms),
        pairs=pairs,
        sentences=(),
        notes=(),
        left_out=group.left_out,
        zero_shot=first.metrics[FINAL_ZERO_SHOT_ACCURACY] if first.has_source else None,
        base_accuracy=first.metrics[FINAL_BASE_TEST_ACCURACY] if first.has_source else None,
        zero_shot_scores=_zero_shot_scores(first, [metric, *others], measures),
        classes=first.classes,
        test_images=len(first.predictions["shifted"].truth),
        base_fingerprint=first.tags.get(BASE_FINGERPRINT_TAG, ""),
        data_fingerprint=first.tags.get(DATA_FINGERPRINT_TAG, ""),
        setup=_setup([run for arm in arms for run in arm.runs]),
        timings_comparable=comparable,
        robustness=judge_robustness(arms, design),
    )
    comparison = dataclasses.replace(comparison, notes=note_sentences(comparison))
    return dataclasses.replace(comparison, sentences=verdict_sentences(comparison))


def _zero_shot_scores(run: ComparedRun, metrics: Sequence[Metric], measures: Measures) -> dict[str, float]:
    """Return the scores of the base by the metrics that need its predicted classes only."""
    predictions = run.predictions["shifted"]
    if not run.has_source or predictions.base_predicted is None:
        return {}
    answers = answers_of(
        dataclasses.replace(predictions, predicted=predictions.base_predicted, probabilities=None), len(run.classes)
    )
    keys = (FINAL_SHIFTED_MACRO_F1, *(metric.key for metric in metrics))
    of_classes = {key: measures[key] for key in keys if key in measures}
    return {key: answers.score(measure) for key, measure in of_classes.items() if measure.name in OF_CLASSES}


def _with_metrics(run: ComparedRun, keys: Sequence[str], measures: Measures) -> ComparedRun:
    """Return a finished run with these metrics, computed from its predictions where they are not recorded."""
    if run.status != "finished":
        return run
    computed = {}
    for key in keys:
        if (measure := measures.get(key)) is not None and key not in run.metrics:
            answers = answers_of(run.predictions["shifted"], len(run.classes))
            if answers.probabilities is not None or measure.name not in PROBABILISTIC:
                # A plugin's metric that fails was a warning when its run was made; here it is a metric without a value.
                with contextlib.suppress(Exception):
                    computed[key] = answers.score(measure)
    return dataclasses.replace(run, metrics={**run.metrics, **computed}) if computed else run


def _having(run: ComparedRun, key: str) -> ComparedRun:
    """Return a run, as an incomplete one if it has finished without a value of this metric."""
    if run.status != "finished" or not math.isnan(run.metrics.get(key, math.nan)):
        return run
    return dataclasses.replace(run, status="incomplete", reason=f"has no metric {key}")


def _arm_result(arm: ArmRuns, metric: Metric, others: Sequence[Metric], design: Design) -> ArmResult:
    def reached(key: str) -> Estimate:
        return estimate_arm(arm.runs, key, design)

    def of_source(key: str) -> Estimate | None:
        return reached(key) if first.has_source else None

    first = arm.runs[0]
    few = len(first.classes) <= MOST_CONFUSION
    trainable = int(first.metrics[PARAMS_TRAINABLE])
    return ArmResult(
        name=arm.name,
        slug=arm.slug,
        strategy=arm.strategy,
        options=arm.options,
        settings=arm.settings,
        seeds=tuple(run.seed for run in arm.runs),
        score=reached(metric.key),
        others={other.key: reached(other.key) for other in others if all(other.key in run.metrics for run in arm.runs)},
        beats_constant=None,
        shifted=reached(FINAL_SHIFTED_ACCURACY),
        gain=of_source(FINAL_GAIN),
        clean=of_source(FINAL_TEST_ACCURACY),
        retention=of_source(FINAL_RETENTION),
        macro_f1=reached(FINAL_SHIFTED_MACRO_F1),
        parameters=int(first.metrics[PARAMS_TOTAL]),
        trainable=trainable,
        trainable_fraction=first.metrics[PARAMS_TRAINABLE_FRACTION],
        adapter_bytes=reached(SIZE_ADAPTER_BYTES),
        # A tuning inside the fits is a part of the strategy.
        train_seconds=estimate_cost(
            [run.metrics[TIME_TRAIN_SECONDS] + run.metrics.get(TIME_TUNING_SECONDS, 0.0) for run in arm.runs]
        ),
        epoch_seconds=estimate_cost(
            [run.metrics[TIME_TRAIN_SECONDS] / int(run.settings.get("epochs", 1)) for run in arm.runs]
        ),
        peak_bytes=reached(MEMORY_PEAK_BYTES),
        inference_ratio=reached(TIME_INFERENCE_RATIO),
        ppt=ppt(sum(run.metrics[FINAL_SHIFTED_ACCURACY] for run in arm.runs) / len(arm.runs), trainable, PPT_CONSTANT),
        class_f1=tuple(class_f1(arm.runs).mean(0).tolist()),
        confusion=tuple(map(tuple, mean_confusion(arm.runs).tolist())) if few else (),
        dominated_by=dict.fromkeys(COSTS, ()),
        domains=estimate_domains(arm.runs, design),
        runs=arm.runs,
    )


def _check_test_images(runs: Sequence[ComparedRun]) -> None:
    """Raise BadInput for runs with different test images, because their differences would be meaningless."""
    first = runs[0]
    for run in runs[1:]:
        for name, actual in run.predictions.items():
            expected = first.predictions[name]
            same = run.classes == first.classes and len(actual.truth) == len(expected.truth)
            if not (same and (actual.image == expected.image).all() and (actual.truth == expected.truth).all()):
                raise BadInput(f"{run.name} and {first.name} were tested on different {DOMAINS[name]} test images")


def _timings_comparable(arms: Sequence[ArmResult]) -> bool:
    """Return whether all times are from one device of one machine, with equal threads and one run at a time."""
    runs = [run for arm in arms for run in arm.runs]
    tags = {HOST_TAG: None, THREADS_TAG: None, PROCESSES_TAG: "1"}  # older runs have no such tags
    places = {(*(run.tags.get(*tag) for tag in tags.items()), run.settings.get("device")) for run in runs}
    return len(places) == 1 and all(run.tags.get(TIMING_TAG, "alone") == "alone" for run in runs)


def _setup(runs: Sequence[ComparedRun]) -> Mapping[str, str]:
    """Return the settings that all runs share, without settings of the base if there is no source."""
    first = runs[0].settings
    omitted = ["seed", "strategy", "preset", "data_dir"]
    if not runs[0].has_source:
        omitted += [key for key in first if key.startswith("base.") or key == "split.source"]
    shared = {
        key: value
        for key, value in first.items()
        if key not in omitted
        and not key.startswith("strategy.")
        and all(run.settings.get(key) == value for run in runs)
    }
    for fact, tag in (("pool_images", POOL_IMAGES_TAG), ("drawn_images", DRAWN_IMAGES_TAG)):
        values = {run.tags.get(tag) for run in runs}
        if len(values) == 1 and (value := values.pop()):
            shared[fact] = value
    return shared
