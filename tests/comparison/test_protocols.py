"""Verdicts of runs with each protocol, from the store to the sentences: the design, its scope and its numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import pytest
from support.compared_runs import IMAGES, TRUTH, chance, folds_of, judged, make_run, sources

from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.records import ComparedRun


def pair_of(comparison: Comparison) -> Any:
    (pair,) = comparison.pairs
    return pair


def test_one_repeat_of_folds_decides() -> None:
    runs = [
        make_run(name, 0, chance(number, share), protocol="folds", fold=folds_of(0))
        for number, (name, share) in enumerate((("good", 0.1), ("poor", 0.4)))
    ]
    comparison = judged(runs)
    pair = pair_of(comparison)
    assert (pair.verdict, pair.n, pair.only_models, pair.protocol) == ("better", 1, False, "folds")
    assert comparison.best is not None and comparison.best.name == "good"
    assert comparison.sentences[0].startswith("In target accuracy, good is better than poor by ")
    assert comparison.sentences[-1] == (
        "This holds for this base, models trained on 160 labelled images, and new labelled and new test images of "
        "folder:scans."
    )
    # At least as wide as if the folds did not share training images.
    d = numpy.where(runs[1].predictions["shifted"].predicted == TRUTH, 1, 0)
    d = (runs[0].predictions["shifted"].predicted == TRUTH) - d
    least = 2 * 1.96 * numpy.sqrt(d.var(ddof=1) / IMAGES)
    assert pair.high - pair.low >= least


def test_groups_widen_the_interval() -> None:
    groups = tuple(f"patient {index // 10}" for index in range(IMAGES))
    fold = numpy.arange(IMAGES) // 10 % 5
    same = numpy.repeat(chance(1, 0.3, IMAGES // 10), 10)  # right or wrong about a whole patient

    def compared(**more: Any) -> Any:
        runs = [
            make_run("one", 0, same, protocol="folds", fold=fold, **more),
            make_run("other", 0, chance(2, 0.3), protocol="folds", fold=fold, **more),
        ]
        return judged(runs)

    apart, together = compared(), compared(groups=groups)
    assert (pair_of(apart).groups, pair_of(together).groups) == (None, 20)
    assert pair_of(together).df <= 19 + 1e-9
    assert pair_of(together).high - pair_of(together).low > pair_of(apart).high - pair_of(apart).low
    assert "new groups (20 were measured) of folder:scans" in together.sentences[-1]


def test_held_out_values_have_verdicts_of_their_own() -> None:
    sites = numpy.repeat([0, 1], [150, 50])
    tags = {"adaptkit.held_out": json.dumps(["north", "south"])}
    runs = []
    for seed in range(3):
        # Better in the north by much, equal in the south.
        good = chance(seed, 0.1) & (sites == 0) | chance(9, 0.5) & (sites == 1)
        poor = chance(10 + seed, 0.5) & (sites == 0) | chance(9, 0.5) & (sites == 1)
        for name, wrong in (("good", good), ("poor", poor)):
            more: dict[str, Any] = {"tags": tags, "settings": {"folds": "by:site"}, "fold": sites}
            runs.append(make_run(name, seed, wrong, protocol="folds", **more))
    comparison = judged(runs)
    pair = pair_of(comparison)
    assert [(domain.name, domain.images) for domain in pair.domains] == [("north", 150), ("south", 50)]
    assert [domain.verdict for domain in pair.domains] == ["better", "undecided"]
    # Two sites say next to nothing about other ones.
    assert (pair.verdict, pair.df) == ("undecided", pytest.approx(1))
    north = next(sentence for sentence in comparison.sentences if sentence.startswith("On site north"))
    assert north.startswith("On site north (150 images): good is better than poor by ")
    (lowest,) = [sentence for sentence in comparison.sentences if sentence.startswith("Lowest target accuracy")]
    south = 100 * comparison.arm("good").domains["south"].mean
    assert f"good on south ({south:.1f} %)" in lowest
    assert comparison.sentences[-1].startswith("This holds for this base and new values of site; ")
    assert comparison.to_dict()["pairs"][0]["domains"][0]["name"] == "north"


def test_given_is_about_these_training_images() -> None:
    runs = [
        make_run(name, seed, chance(seed + 10 * number, share), protocol="given")
        for seed in range(3)
        for number, (name, share) in enumerate((("good", 0.1), ("poor", 0.4)))
    ]
    comparison = judged(runs)
    assert pair_of(comparison).verdict == "better"
    assert comparison.sentences[-1].startswith(
        "This holds for this base, these 160 training images, and new test images of folder:scans; 200 were measured"
    )


def draws(divisions: list[int]) -> Comparison:
    runs = [
        make_run(
            name,
            seed,
            chance(seed + 10 * number, share),
            protocol="draws",
            tags={"adaptkit.division": str(division), "adaptkit.drawn_images": "40"},
        )
        for seed, division in enumerate(divisions)
        for number, (name, share) in enumerate((("good", 0.1), ("poor", 0.4)))
    ]
    return judged(runs)


def test_disjoint_draws_are_about_new_labels() -> None:
    comparison = draws([0, 0, 0])
    assert pair_of(comparison).verdict == "better"
    assert "models trained on 40 newly labelled images, and new test images" in comparison.sentences[-1]


def test_draws_of_single_divisions_are_about_their_pool() -> None:
    comparison = draws([0, 1, 2])
    assert "models trained on 40 images of this pool of 200, and new test images" in comparison.sentences[-1]


def test_source_accuracy_of_folds() -> None:
    runs = []
    for number, name in enumerate(("one", "other")):
        clean = sources(5, numpy.concatenate([chance(10 * number + fold, 0.2, 50) for fold in range(5)]))
        runs.append(make_run(name, 0, chance(number, 0.2), protocol="folds", fold=folds_of(0), clean=clean))
    comparison = judged(runs, "final/test_accuracy")
    pair = pair_of(comparison)
    assert pair.difference == pytest.approx(
        runs[0].metrics["final/test_accuracy"] - runs[1].metrics["final/test_accuracy"]
        if comparison.arms[0].name == "one"
        else runs[1].metrics["final/test_accuracy"] - runs[0].metrics["final/test_accuracy"]
    )
    # Four fits of five more or less, and 50 source images: nothing is decided.
    assert pair.verdict == "undecided" and pair.df < 60
    assert (
        "of photos"
        in judged(
            [make_run(name, seed, chance(seed, 0.2), protocol="given") for seed in range(2) for name in ("a", "b")],
            "final/test_accuracy",
        ).sentences[-1]
    )


def tuned(tag: Mapping[str, str]) -> Comparison:
    runs = [
        make_run(name, 0, chance(number, share), protocol="folds", fold=folds_of(0), tags=tag)
        for number, (name, share) in enumerate((("good", 0.1), ("poor", 0.4)))
    ]
    return judged(runs)


def test_no_verdict_for_strategies_tuned_with_evaluated_labels() -> None:
    comparison = tuned({"adaptkit.tuning": "5 trials; lr=0.1", "adaptkit.tuned_on": "evaluated"})
    assert pair_of(comparison).verdict == "undecided"
    assert comparison.best is None
    assert comparison.sentences[0].endswith("Strategies that were tuned with the evaluated labels get no verdict.")
    assert any("saw labels that are evaluated here" in note for note in comparison.notes)
    other = tuned({"adaptkit.tuning": "5 trials; lr=0.1", "adaptkit.tuned_on": "other"})
    assert pair_of(other).verdict == "better"


def test_scope_names_tuning_inside_the_fits() -> None:
    comparison = tuned({"adaptkit.tuned_inside": "12"})
    assert pair_of(comparison).verdict == "better"
    assert comparison.sentences[-1].endswith("Every strategy was tuned with 12 trials in each fit.")


def test_metric_without_predictions_has_no_verdict() -> None:
    runs = []
    for seed in range(4):
        for name, value in (("one", 0.9), ("other", 0.1)):
            run = make_run(name, seed, chance(seed, 0.2), protocol="given")
            runs.append(ComparedRun(**{**vars(run), "metrics": {**run.metrics, "final/own": value + seed / 100}}))
    comparison = judged(runs, "final/own")
    pair = pair_of(comparison)
    assert (pair.verdict, pair.low, pair.p) == ("undecided", None, None)
    assert pair.difference == pytest.approx(0.8)
    assert comparison.sentences[0] == (
        "By final/own, one and other differ by 0.800 units, without a verdict: adaptkit cannot compute this metric "
        "from the predictions."
    )


def test_worst_class_has_no_interval() -> None:
    runs = [
        make_run(n, seed, chance(seed + k, 0.3), protocol="given") for seed in range(3) for k, n in ((0, "a"), (9, "b"))
    ]
    comparison = judged(runs, "worst_class_recall")
    assert [(arm.score.n, arm.score.low, arm.score.high) for arm in comparison.arms] == [(3, None, None)] * 2
    assert all(arm.score.sd is not None for arm in comparison.arms)
    assert (pair_of(comparison).verdict, pair_of(comparison).p, comparison.best) == ("undecided", None, None)
    assert comparison.sentences[0].endswith("without a verdict: the error of this metric cannot be measured.")


def test_each_comparison_states_what_it_finds() -> None:
    runs = [
        make_run(name, 0, chance(number, share), protocol="folds", fold=folds_of(0))
        for number, (name, share) in enumerate((("good", 0.1), ("poor", 0.4)))
    ]
    comparison = judged(runs)
    assert comparison.best is not None
    (sentence,) = [sentence for sentence in comparison.sentences if "with a probability of 80 %" in sentence]
    assert f"{100 * pair_of(comparison).detectable:.1f} points" in sentence


def test_dominance_at_equal_cost() -> None:
    def compared(trainable: Callable[[str], float]) -> Comparison:
        return judged(
            [
                make_run(name, 0, chance(n, share), protocol="folds", fold=folds_of(0), trainable=trainable(name))
                for n, (name, share) in enumerate((("good", 0.1), ("poor", 0.4)))
            ]
        )

    equal = compared(lambda name: 10.0)
    assert equal.arm("poor").dominated_by["params/trainable"] == ("good",)
    assert equal.arm("good").dominated_by["params/trainable"] == ()
    dearer = compared(lambda name: 20.0 if name == "good" else 10.0)
    assert dearer.arm("poor").dominated_by["params/trainable"] == ()
