"""Comparisons say little about useless strategies, and never judge by a metric that means nothing."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy
import pytest
from support.compared_runs import IMAGES, TRUTH, chance, folds_of, judged, make_run

from adaptkit.comparison.judge import judge_runs
from adaptkit.comparison.records import ComparedRun
from adaptkit.errors import BadInput

CHOOSING = ("If you must choose now", "The Pareto front", "finds a true difference")


def pair_of_runs(shares: tuple[float, float] = (0.1, 0.15), **more: Any) -> list[ComparedRun]:
    """Return one run of two strategies that are wrong about these shares of the images."""
    return [
        make_run(name, 0, chance(number, share), protocol="folds", fold=folds_of(0), **more)
        for number, (name, share) in enumerate(zip(("one", "other"), shares, strict=True))
    ]


def with_probabilities(run: ComparedRun) -> ComparedRun:
    """Return a run whose predictions have a probability of .7."""
    target = run.predictions["shifted"]
    shares = numpy.full((IMAGES, 4), 0.1)
    shares[numpy.arange(IMAGES), target.predicted] = 0.7
    predictions = {**run.predictions, "shifted": dataclasses.replace(target, probabilities=shares)}
    return dataclasses.replace(run, predictions=predictions)


def test_useless_strategies_are_not_ranked_and_not_recommended() -> None:
    useful = " ".join(judged(pair_of_runs()).sentences)
    assert all(words in useful for words in CHOOSING)
    useless = judged(pair_of_runs((0.75, 0.76)))
    assert useless.sentences[0] == (
        "No strategy is shown to be better than always answering 'a' (target accuracy 25.0 %): none can be recommended."
    )
    assert not any(words in sentence for sentence in useless.sentences for words in CHOOSING)
    assert useless.best is None and useless.choice is None


def test_no_choice_after_a_tuning_on_the_evaluated_labels() -> None:
    tags = {"adaptkit.tuning": "5 trials; lr=0.1", "adaptkit.tuned_on": "evaluated"}
    comparison = judged(pair_of_runs(tags=tags))
    assert not any(words in sentence for sentence in comparison.sentences for words in (CHOOSING[0], CHOOSING[2]))


def test_an_error_of_zero_is_no_baseline() -> None:
    runs = [with_probabilities(run) for run in pair_of_runs()]
    by_calibration = judged(runs, "ece")
    assert by_calibration.constant is not None and by_calibration.constant.metric.key == "final/shifted_accuracy"
    assert [arm.beats_constant for arm in by_calibration.arms] == [True, True]
    assert "the calibration error is too high by chance" in by_calibration.notes[0]
    useless = judged([with_probabilities(run) for run in pair_of_runs((0.75, 0.76))], "ece")
    assert useless.sentences[0].startswith("No strategy is shown to be better than always answering 'a' (target accu")
    assert useless.best is None and useless.choice is None
    by_likelihood = judged(runs, "nll")
    assert by_likelihood.constant is not None and by_likelihood.constant.score == pytest.approx(numpy.log(4))


def test_each_data_set_is_judged_by_the_metrics_of_its_runs() -> None:
    scans = pair_of_runs(settings={"metric": "balanced_accuracy,kappa"}, tags={"adaptkit.data_fingerprint": "1"})
    photos = pair_of_runs(settings={"metric": "accuracy"}, tags={"adaptkit.data_fingerprint": "2"})
    found = {
        comparison.data_fingerprint: [comparison.metric.key, *(other.key for other in comparison.others)]
        for comparison in judge_runs([*scans, *photos]).comparisons
    }
    assert found == {"1": ["final/shifted_balanced_accuracy", "final/shifted_kappa"], "2": ["final/shifted_accuracy"]}
    asked = judge_runs([*scans, *photos], metrics=["macro_f1"]).comparisons
    assert {comparison.metric.key for comparison in asked} == {"final/shifted_macro_f1"}


def test_worst_group_needs_groups() -> None:
    line = r"^metric worst_group_accuracy is not defined for these runs, because it needs groups \(split\.group"
    with pytest.raises(BadInput, match=line):
        judged(pair_of_runs(), "worst_group_accuracy")
    groups = tuple(f"patient {index % 20}" for index in range(IMAGES))
    assert judged(pair_of_runs(groups=groups), "worst_group_accuracy").metric.label == "target worst group accuracy"


def test_zero_shot_by_metrics_of_predicted_classes() -> None:
    runs = []
    for run in map(with_probabilities, pair_of_runs()):
        base = numpy.where(numpy.arange(IMAGES) < 50, (TRUTH + 1) % 4, TRUTH)
        target = dataclasses.replace(run.predictions["shifted"], base_predicted=base)
        runs.append(dataclasses.replace(run, predictions={**run.predictions, "shifted": target}))
    (comparison,) = judge_runs(runs, metrics=["balanced_accuracy", "nll", "kappa"]).comparisons
    scores = {key.removeprefix("final/shifted_"): round(score, 3) for key, score in comparison.zero_shot_scores.items()}
    assert scores == {"macro_f1": 0.75, "balanced_accuracy": 0.75, "kappa": 0.667}


def test_source_accuracy_is_a_cost_only_if_it_differs() -> None:
    def costs(lost: float) -> str:
        runs = pair_of_runs((0.1, 0.5))
        for run, wrong in zip(runs, (chance(5, 0.2, 50), chance(5, 0.2 + lost, 50)), strict=True):
            clean = run.predictions["clean"]
            right = numpy.where(numpy.tile(wrong, 5), (clean.truth + 1) % 4, clean.truth)
            run.predictions["clean"] = dataclasses.replace(clean, predicted=right)  # type: ignore[index]
            run.metrics["final/test_accuracy"] = 1 - float(wrong.mean())  # type: ignore[index]
            run.metrics["final/retention"] = -float(wrong.mean())  # type: ignore[index]
        return judged(runs).sentences[0]

    assert "source accuracy" in costs(0.6) and "source accuracy" not in costs(0.02)


def test_values_that_the_fits_chose() -> None:
    chosen = json.dumps([{"lr": 0.01}, {"lr": 0.01}, {"lr": 0.003, "rank": 4}])
    comparison = judged(pair_of_runs(tags={"adaptkit.tuned_inside": "5", "adaptkit.tuned_values": chosen}))
    assert "The 3 fits of one chose lr 0.01 (2) and lr 0.003, rank 4 (1)." in comparison.notes


def test_warning_of_the_base() -> None:
    comparison = judged(pair_of_runs(tags={"adaptkit.base_warnings": "its loss did not fall\nand more"}))
    assert comparison.notes[0] == "The base has a warning: its loss did not fall."


def test_metric_without_a_value_does_not_end_a_run() -> None:
    runs = pair_of_runs(settings={"metric": "worst_group_accuracy,kappa"})
    comparison = judge_runs(runs).comparisons[0]
    assert comparison.metric.key == "final/shifted_kappa"
    assert comparison.notes[0] == (
        "Metric worst_group_accuracy is not defined for these runs, because it needs groups (split.group or "
        "folder.group); target Cohen's kappa decides."
    )
    only = judge_runs(pair_of_runs(settings={"metric": "worst_group_accuracy"})).comparisons[0]
    assert only.metric.key == "final/shifted_accuracy"


def test_metric_of_a_plugin_that_is_not_loaded() -> None:
    runs = []
    for number, run in enumerate(pair_of_runs(settings={"metric": "own,accuracy"})):
        runs.append(dataclasses.replace(run, metrics={**run.metrics, "final/shifted_own": 0.5 + number / 10}))
    comparison = judge_runs(runs).comparisons[0]
    assert (comparison.metric.key, comparison.pairs[0].p) == ("final/shifted_own", None)


def test_failing_metric_of_a_plugin() -> None:
    class Failing:
        name, title, unit, higher_is_better = "own", "own", "", True

        def score(self, *arguments: Any, **more: Any) -> float:
            raise ZeroDivisionError

    from adaptkit.comparison.metrics import find_measures

    measures = {**find_measures(), "final/shifted_own": Failing()}
    runs = pair_of_runs(settings={"metric": "own,accuracy"})
    comparison = judge_runs(runs, measures=measures).comparisons[0]  # type: ignore[arg-type]
    assert comparison.metric.key == "final/shifted_accuracy"
    assert comparison.notes[0] == "Metric own is not defined for these runs; target accuracy decides."


def test_arms_do_not_name_values_that_the_fits_chose() -> None:
    chosen = json.dumps([{"lr": 0.003}])
    tuned = pair_of_runs(settings={"lr": "0.01", "tuning.trials": "5"}, tags={"adaptkit.tuned_values": chosen})
    runs = [
        *tuned,
        *pair_of_runs(settings={"lr": "0.01", "tuning.trials": "0"}),
        *pair_of_runs(settings={"lr": "0.1", "tuning.trials": "0"}),
    ]
    names = {arm.name for comparison in judge_runs(runs).comparisons for arm in comparison.arms}
    assert names == {
        *("one tuning.trials=5", "one lr=0.01", "one lr=0.1"),
        *("other tuning.trials=5", "other lr=0.01", "other lr=0.1"),
    }
