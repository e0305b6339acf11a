"""Figures of comparisons: contents, names, colours and files."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.image import imread
from matplotlib.text import Annotation
from scipy import stats
from scipy.special import softmax

from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.records import ArmResult, ComparedRun, Curve, Estimate, Metric, PairResult
from adaptkit.events import Predictions
from adaptkit.reports.figures.comparison import Drawing, draw_comparison, save_drawing
from adaptkit.reports.figures.reliability import draw_reliability
from adaptkit.reports.figures.style import FIXED, OTHERS, assign_colours, assign_marks

TARGET = Metric(
    key="final/shifted_accuracy", label="target accuracy", unit="points", scale=100.0, higher_is_better=True
)
ODD = ("<img src=x onerror=alert(1)>", "_$a^2$ & \\alpha_1", 'quote"\x00\n', "数据 🙂")
EPOCHS = (1, 2, 3)
#: predictions for 1,500 test images, of which only the number counts
NUMBERS = numpy.arange(1500)
IMAGES = Predictions(NUMBERS, truth=NUMBERS % 3, predicted=NUMBERS % 3, confidence=NUMBERS)


def interval(mean: float, half: float | None, n: int) -> Estimate:
    return Estimate(mean, n) if half is None else Estimate(mean, n, sd=half / 2, low=mean - half, high=mean + half)


def make_arm(
    name: str,
    accuracy: float,
    half: float | None = 0.01,
    *,
    strategy: str | None = None,
    trainable: int = 1290,
    clean: float = 0.93,
    options: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    seeds: int = 3,
    classes: int = 3,
    dominated_by: Sequence[str] = (),
) -> ArmResult:
    """Make an arm whose run of seed s ends at accuracy + s / 100 and takes 1 + s / 10 seconds per epoch."""
    strategy = strategy or name.split()[0]
    half = None if seeds == 1 else half
    runs = []
    for seed in range(seeds):
        shifted = tuple(accuracy + seed / 100 - (3 - epoch) / 10 for epoch in EPOCHS)
        seconds = tuple((1 + seed / 10) * epoch for epoch in EPOCHS)
        curve = Curve(epoch=EPOCHS, seconds=seconds, clean=shifted, shifted=shifted)
        runs.append(
            ComparedRun(
                f"{name} {seed}",
                None,
                strategy,
                name,
                {},
                {},
                seed,
                "finished",
                0,
                {},
                {},
                predictions={"shifted": IMAGES, "clean": IMAGES},
                curve=curve,
            )
        )
    right = numpy.eye(classes) * accuracy + (1 - numpy.eye(classes)) * (1 - accuracy) / (classes - 1)
    score = interval(accuracy, half, seeds)
    one = Estimate(1.0, seeds)
    return ArmResult(
        name=name,
        slug=name,
        strategy=strategy,
        options=options or {},
        settings=settings or {},
        seeds=tuple(range(seeds)),
        score=score,
        others={},
        beats_constant=True,
        shifted=score,
        gain=interval(accuracy - 0.63, half, seeds),
        clean=interval(clean, half, seeds),
        retention=interval(clean - 0.95, half, seeds),
        macro_f1=score,
        parameters=421642,
        trainable=trainable,
        trainable_fraction=trainable / 421642,
        adapter_bytes=one,
        train_seconds=one,
        epoch_seconds=one,
        peak_bytes=one,
        inference_ratio=one,
        ppt=0.8,
        class_f1=tuple(accuracy - index / 100 for index in range(classes)),
        confusion=tuple(map(tuple, right.tolist())),
        dominated_by={"params/trainable": tuple(dominated_by)},
        domains={},
        runs=tuple(runs),
    )


def make_pair(a: ArmResult, b: ArmResult, verdict: str = "better") -> PairResult:
    difference = a.score.mean - b.score.mean
    single = len(a.seeds) == 1
    return PairResult(
        a=a.name,
        b=b.name,
        n=len(a.seeds),
        verdict=verdict,
        protocol="draws",
        only_models=single,
        groups=None,
        difference=difference,
        sd=0.01,
        low=None if single else difference - 0.02,
        high=None if single else difference + 0.02,
        df=10.0,
        p=0.01,
        p_unadjusted=0.01,
        labels_needed=None,
        seeds_needed=None,
        test_images_needed=None,
        detectable=0.04,
        domains=(),
        disagreement=0.1,
        class_f1_difference=(),
        gain_difference=difference,
        retention_difference=0.0,
        trainable_ratio=1.0,
        seconds_ratio=1.0,
    )


def compare(*arms: ArmResult, metric: Metric = TARGET, verdict: str = "better") -> Comparison:
    classes = len(arms[0].class_f1)
    return Comparison(
        number=1,
        reason=None,
        metric=metric,
        others=(),
        constant=None,
        margin=0.01,
        ppt_constant=1e7,
        arms=arms,
        pairs=tuple(make_pair(a, b, verdict) for a, b in itertools.combinations(arms, 2)),
        sentences=(),
        notes=(),
        left_out=(),
        zero_shot=0.631,
        zero_shot_scores={},
        constant_scores={},
        base_accuracy=0.957,
        classes=tuple(f"class {index}" for index in range(classes)),
        test_images=1500,
        base_fingerprint="b",
        data_fingerprint="d",
        setup={},
        timings_comparable=True,
    )


def four(**more: int) -> Comparison:
    return compare(
        make_arm("full", 0.885, 0.010, trainable=421642, clean=0.941, **more),
        make_arm("lora", 0.837, 0.032, trainable=27216, clean=0.919, **more),
        make_arm("scratch", 0.798, 0.024, trainable=421642, clean=0.858, dominated_by=["lora"], **more),
        make_arm("head", 0.761, 0.012, trainable=1290, clean=0.922, **more),
    )


def draw(comparison: Comparison) -> dict[str, Drawing]:
    return {drawing.stem: drawing for drawing in draw_comparison(comparison)}


@cache
def draw_four(**more: int) -> dict[str, Drawing]:
    """Draw four arms, once for all read-only tests."""
    return draw(four(**more))


def lines_of(axes: Axes) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the points of each line by colour, rounded."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for line in axes.lines:
        points = [(round(float(x), 6), round(float(y), 6)) for x, y in line.get_xydata()]
        found.setdefault(to_hex(line.get_color()).upper(), []).append(points)
    return found


def note(drawing: Drawing) -> str:
    return drawing.figure.get_supxlabel().replace("\n", " ")


def labels_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if isinstance(text, Annotation)]


def test_figures_of_four_arms() -> None:
    drawings = draw_comparison(four())
    assert [drawing.stem for drawing in drawings] == [
        "accuracy_over_training",
        "accuracy_parameters",
        "gain_retention",
        "class_f1",
        "confusion_differences",
        "differences",
    ]
    assert drawings[1].alt == (
        "Points on a logarithmic axis of trainable parameters: full 88.5 with 421,642, lora 83.7 with 27,216, "
        "scratch 79.8 with 421,642, head 76.1 with 1,290. On the Pareto front: head, lora, full."
    )


def test_figures_of_one_arm() -> None:
    assert list(draw(compare(make_arm("lora", 0.8)))) == [
        "accuracy_over_training",
        "accuracy_parameters",
        "gain_retention",
        "class_f1",
    ]


def with_probabilities(arm: ArmResult, sharpness: float) -> ArmResult:
    """Return an arm with the same calibrated logits in each run, multiplied by `sharpness`, for 300 images."""
    random = numpy.random.default_rng(0)
    logits = 2 * random.normal(size=(300, 3))
    truth = (softmax(logits, axis=1).cumsum(1) > random.random((300, 1))).argmax(1)
    shares = softmax(sharpness * logits, axis=1)
    predictions = Predictions(
        numpy.arange(300), truth=truth, predicted=shares.argmax(1), confidence=shares.max(1), probabilities=shares
    )
    runs = [dataclasses.replace(run, predictions={"shifted": predictions}) for run in arm.runs]
    return dataclasses.replace(arm, runs=tuple(runs))


def test_reliability_before_and_after_calibration() -> None:
    full, head = make_arm("full", 0.885), make_arm("head", 0.761)
    comparison = compare(with_probabilities(full, 4.0), with_probabilities(head, 1.0), make_arm("lora", 0.8))
    drawing = draw_reliability(comparison, assign_marks(comparison.arms, assign_colours(["full", "head", "lora"])))
    assert drawing is not None
    before, after = drawing.figure.axes
    for axes, is_confident in ((before, True), (after, False)):
        diagonal, sure, calibrated = (numpy.array(line.get_xydata()) for line in axes.lines)
        assert diagonal.tolist() == [[0, 0], [100, 100]]
        for points in (sure, calibrated):
            assert len(points) == 300 // 25 and (numpy.diff(points[:, 0]) > 0).all()
        gaps = (sure[:, 0] - sure[:, 1]).mean()
        assert gaps > 10 if is_confident else abs(gaps) < 4
    assert note(drawing).endswith("; 2 of 3 strategies")
    found = re.fullmatch(r".*: full (.*), then (.*), head (.*), then (.*)\.", drawing.alt)
    assert found is not None
    full_before, full_after, head_before, head_after = map(float, found.groups())
    assert full_before > 10 > full_after and head_before == head_after  # a calibrated model is not changed
    assert draw_reliability(four(), {}) is None


def test_accuracy_over_training_means_and_bands() -> None:
    drawing = draw_four()["accuracy_over_training"]
    by_epoch, by_time = drawing.figure.axes
    blue, grey = FIXED["full"], "#767676"
    # Three seeds end at 88.5, 89.5 and 90.5 and take 1, 1.1 and 1.2 seconds per epoch.
    assert lines_of(by_epoch)[blue] == [[(1, 69.5), (2, 79.5), (3, 89.5)]]
    assert lines_of(by_time)[blue] == [[(1.1, 69.5), (2.2, 79.5), (3.3, 89.5)]]
    assert lines_of(by_epoch)[grey] == [[(0, 63.1), (1, 63.1)]]
    band = by_epoch.collections[0].get_paths()[0].vertices
    # The variance over the runs, and that over 1,500 test images.
    over_runs, over_images = 1 / 3, 89.5 * (100 - 89.5) / 1499
    df = (over_runs + over_images) ** 2 / (over_runs**2 / 2 + over_images**2 / 1499)
    half = stats.t.ppf(0.975, df) * math.sqrt(over_runs + over_images)
    at_the_end = band[band[:, 0] == 3][:, 1]
    assert (at_the_end.min(), at_the_end.max()) == pytest.approx((89.5 - half, 89.5 + half), rel=1e-4)
    assert (by_epoch.get_xlabel(), by_time.get_xlabel()) == ("epoch", "seconds of training and evaluation")
    assert by_epoch.get_ylabel() == "target accuracy (%)"
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert legend == ["full", "lora", "scratch", "head", "zero-shot"]
    assert note(drawing) == "mean over 3 runs; band: 95 % interval"


def test_estimates_without_intervals() -> None:
    drawings = draw_four(seeds=1)
    by_epoch, _ = drawings["accuracy_over_training"].figure.axes
    assert lines_of(by_epoch)[FIXED["lora"]] == [[(1, 63.7), (2, 73.7), (3, 83.7)]]
    bars = drawings["accuracy_parameters"].figure.axes[0].collections[0]
    assert bars.get_segments() == []
    assert note(drawings["gain_retention"]) == "one run with 95 % interval"
    assert "bars" not in note(drawings["differences"])


@pytest.mark.slow
def test_accuracy_over_training_with_missing_curves() -> None:
    full, lora, *_ = four().arms
    blind = [
        dataclasses.replace(run, curve=dataclasses.replace(run.curve, shifted=None)) for run in lora.runs if run.curve
    ]
    without = dataclasses.replace(lora, runs=tuple(blind))
    drawing = draw(compare(full, without))["accuracy_over_training"]
    assert FIXED["lora"] not in lines_of(drawing.figure.axes[0])
    assert note(drawing).endswith("; not shown: 1 without an accuracy after each epoch")
    on_source = draw(compare(without))["accuracy_over_training"]
    assert on_source.figure.axes[0].get_ylabel() == "source accuracy (%)"
    drawn = on_source.figure.axes[0].lines[0].get_ydata()
    assert drawn == pytest.approx(
        [100 * sum(values) / len(values) for values in zip(*(run.curve.clean for run in without.runs), strict=True)]
    )
    no_curve = dataclasses.replace(full, runs=tuple(dataclasses.replace(run, curve=None) for run in full.runs))
    assert "accuracy_over_training" not in draw(compare(no_curve))


def test_accuracy_parameters_intervals_and_front() -> None:
    drawing = draw_four()["accuracy_parameters"]
    axes = drawing.figure.axes[0]
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("trainable parameters", "target accuracy (%)")
    drawing.figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels()][1:-1] == ["1 k", "10 k", "100 k"]
    front = [(1290, 76.1), (27216, 83.7), (421642, 88.5)]
    assert front in lines_of(axes)["#9A9A9A"]
    points = {line.get_xydata()[0][1].round(3): line for line in axes.lines if line.get_marker() == "o"}
    assert {y: point.get_markerfacecolor() for y, point in points.items()} == {
        88.5: FIXED["full"],
        83.7: FIXED["lora"],
        79.8: "white",
        76.1: FIXED["head"],
    }
    ends = [sorted(segment[:, 1].round(3).tolist()) for segment in axes.collections[0].get_segments()]
    assert ends == [[87.5, 89.5], [80.5, 86.9], [77.4, 82.2], [74.9, 77.3]]
    assert sorted(labels_of(axes)) == ["full", "head", "lora", "scratch"]
    assert "hollow: dominated by a strategy with fewer parameters that is better or tied" in note(drawing)


@pytest.mark.slow
def test_front_line_rises() -> None:
    arms = (
        make_arm("full", 0.88, trainable=400),
        make_arm("lora", 0.87, trainable=800),
        make_arm("head", 0.8, trainable=100),
    )
    axes = draw(compare(*arms, verdict="undecided"))["accuracy_parameters"].figure.axes[0]
    assert [(100, 80.0), (400, 88.0)] in lines_of(axes)["#9A9A9A"]
    filled = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]
    assert filled == [FIXED["full"], FIXED["lora"], FIXED["head"]]


def test_gain_against_retention() -> None:
    axes = draw_four()["gain_retention"].figure.axes[0]
    assert lines_of(axes)[FIXED["scratch"]] == [[(-9.2, 16.8)]]
    assert lines_of(axes)["#8A8A8A"] == [[(0, 0), (1, 0)], [(0, 0), (0, 1)]]
    segments = [segment.round(3).tolist() for segment in axes.collections[0].get_segments()]
    assert segments[:2] == [[[-1.9, 25.5], [0.1, 25.5]], [[-0.9, 24.5], [-0.9, 26.5]]]
    assert axes.get_xlabel() == "retention: source accuracy minus the base's (points)"
    assert axes.get_ylabel() == "gain: target accuracy minus zero-shot (points)"
    assert next(text.get_text() for text in axes.texts if not isinstance(text, Annotation)) == "gains, forgets"


@pytest.mark.slow
def test_class_f1_heat_map() -> None:
    axes = draw_four()["class_f1"].figure.axes[0]
    assert numpy.asarray(axes.images[0].get_array()).round(3).tolist()[0] == [0.885, 0.875, 0.865]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["full", "lora", "scratch", "head"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["class 0", "class 1", "class 2"]
    assert [text.get_text() for text in axes.texts][3:6] == ["0.84", "0.83", "0.82"]
    assert len(draw_four(classes=13)["class_f1"].figure.axes[0].texts) == 0
    assert len(draw_four(classes=40)["class_f1"].figure.axes[0].get_xticks()) == 40


@pytest.mark.slow
def test_class_f1_of_many_classes() -> None:
    one, other = make_arm("full", 0.9, classes=41), make_arm("lora", 0.9, classes=41)
    scores = numpy.array(one.class_f1)
    scores[[5, 30]] = 0.1, 0.2
    drawing = draw(compare(one, dataclasses.replace(other, class_f1=tuple(scores.tolist()))))["class_f1"]
    axes = drawing.figure.axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert (len(names), axes.get_xlabel()) == (20, "class")
    assert names == [f"class {index}" for index in (*range(19), 30)]
    assert drawing.title == "F1 of classes on the target test set"
    assert note(drawing).endswith("; best strategy first; the 20 of 41 classes on which the strategies differ most")
    assert "Weakest class of each strategy: full class 40 (0.50), lora class 5 (0.10)." in drawing.alt
    alone = draw(compare(one))["class_f1"]
    assert note(alone).endswith("; the 20 of 41 classes of lowest F1")
    assert next(label.get_text() for label in alone.figure.axes[0].get_xticklabels()) == "class 21"


@pytest.mark.slow
def test_confusion_differences() -> None:
    drawing = draw_four()["confusion_differences"]
    panels = [axes for axes in drawing.figure.axes if axes.images and axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["lora", "scratch", "head"]
    assert numpy.asarray(panels[0].images[0].get_array()).round(6)[0].tolist() == [-4.8, 2.4, 2.4]
    assert [axes.images[0].get_clim() for axes in panels] == [pytest.approx((-12.4, 12.4))] * 3
    assert drawing.title == "Confusions on the target test set: the others minus full"
    assert "confusion_differences" in draw_four(classes=30)
    many = draw_four(classes=31)["confusion_differences"]
    assert len(many.figure.axes[0].get_xticks()) in (0, 15) and len(many.figure.axes[0].get_yticks()) == 15
    assert note(many).endswith("; the 15 of 31 classes between which the strategies differ most")
    nine = draw(compare(*(make_arm(f"arm{i}", 0.9 - i / 100) for i in range(9))))["confusion_differences"]
    assert len([axes for axes in nine.figure.axes if axes.get_title()]) == 6
    assert note(nine).endswith("; the next 6 of 8 other strategies")


def test_differences_intervals_margin_and_verdict() -> None:
    drawing = draw_four()["differences"]
    axes = drawing.figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:3] == ["full vs lora", "full vs scratch", "full vs head"]
    first = [line for line in axes.lines if list(line.get_ydata()) in ([0, 0], [0])]
    assert first[0].get_xdata().round(3).tolist() == [2.8, 6.8]
    assert first[1].get_xdata().round(3).tolist() == [4.8]
    assert [text.get_text() for text in axes.texts][:2] == ["+4.8", "better"]
    shade = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (shade.x0, shade.x1) == pytest.approx((-1, 1))
    assert axes.get_xlabel() == "difference in target accuracy (points), the first minus the second"
    assert note(drawing) == "bars: 95 % interval of the pair; shaded: within the margin, ±1 point"


def test_differences_without_shared_seed() -> None:
    comparison = four()
    apart = dataclasses.replace(comparison.pairs[0], difference=None, low=None, high=None, verdict="undecided", n=0)
    axes = draw(dataclasses.replace(comparison, pairs=(apart,)))["differences"].figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["no shared run", "undecided"]
    assert len(axes.lines) == 1


@pytest.mark.slow
def test_figures_of_many_arms() -> None:
    arms = [make_arm(f"arm{i:02}", 0.9 - i / 200) for i in range(40)]
    drawings = draw(compare(*arms, verdict="undecided"))
    names = [label.get_text() for label in drawings["differences"].figure.axes[0].get_yticklabels()]
    assert names == [f"arm00 vs arm{i:02}" for i in range(1, 21)]
    assert note(drawings["differences"]).endswith("hollow: undecided; 20 of 780 pairs: those with arm00, the first 20")
    assert note(drawings["accuracy_over_training"]).endswith("; the best 12 of 40 strategies")
    assert note(drawings["gain_retention"]).endswith("; 40 settings, at most 14 of them labelled")
    assert 0 < len(labels_of(drawings["gain_retention"].figure.axes[0])) <= 14
    seven = draw(compare(*arms[:7]))["differences"]
    assert note(seven).endswith("; 6 of 21 pairs: those with arm00")


def sweep(option: str, values: Sequence[str], **same: str) -> list[ArmResult]:
    return [
        make_arm(
            f"lora {option}={value}",
            0.7 + index / 20,
            trainable=3402 * (index + 1),
            options={option: value, "targets": "Linear"} | same,
            settings={"lr": "0.005"},
        )
        for index, value in enumerate(values)
    ]


def test_option_sweep() -> None:
    arms = sweep("rank", ["4", "8", "16.0"])
    drawing = draw(compare(*reversed(arms), make_arm("full", 0.9)))["option_sweep_lora"]
    left, right = drawing.figure.axes
    assert drawing.title == "lora: target accuracy against rank"
    assert lines_of(left)[FIXED["lora"]][0] == [(4, 70), (8, 75), (16, 80)]
    assert lines_of(right)[FIXED["lora"]][0] == [(3402, 70), (6804, 75), (10206, 80)]
    assert left.get_xscale() == "log"
    assert [label.get_text() for label in left.get_xticklabels()] == ["4", "8", "16"]
    assert (left.get_xlabel(), right.get_xlabel()) == ("rank", "trainable parameters")
    assert left.get_ylabel() == "target accuracy (%)"
    assert labels_of(right) == ["4", "8", "16"]


@pytest.mark.slow
def test_option_sweep_with_zero_and_equal_parameters() -> None:
    arms = [dataclasses.replace(arm, trainable=500) for arm in sweep("dropout", ["0.0", "0.1", "0.2"])]
    axes = draw(compare(*arms))["option_sweep_lora"].figure.axes
    assert [panel.get_xscale() for panel in axes] == ["linear"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0", "0.1", "0.2"]


def test_option_sweep_needs_three_values_of_one_number() -> None:
    stems = [
        list(draw(compare(*sweep("rank", ["4", "8"])))),
        list(draw(compare(*sweep("targets", ["Linear", "Conv2d", "all"])))),
        list(draw(compare(*sweep("rank", ["4", "8"], alpha="1"), *sweep("rank", ["16"], alpha="2")))),
    ]
    assert [stem for found in stems for stem in found if stem.startswith("option_sweep")] == []


@pytest.mark.slow
def test_option_sweep_of_a_grid() -> None:
    arms = [*sweep("rank", ["1", "2", "4", "8"], alpha="16"), *sweep("rank", ["1", "2", "4"], alpha="_32")]
    arms = [dataclasses.replace(arm, name=f"{arm.name} alpha={arm.options['alpha']}") for arm in arms]
    drawing = draw(compare(*arms))["option_sweep_lora"]
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["alpha=16", "alpha=_32"]


@pytest.mark.parametrize("scores", [{"final/shifted_nll": 1.386}, {"final/shifted_accuracy": 0.8}])
def test_constant_answer_is_a_level_of_its_own_metric_only(scores: Mapping[str, float]) -> None:
    nll = Metric(key="final/shifted_nll", label="target nll", unit="nats", scale=1.0, higher_is_better=False)
    arms = (make_arm("head", 0.5, trainable=10), make_arm("full", 0.9, trainable=100))
    comparison = dataclasses.replace(compare(*arms, metric=nll), margin=0.0, constant_scores=scores)
    texts = [text.get_text() for text in draw(comparison)["accuracy_parameters"].figure.axes[0].texts]
    assert [text for text in texts if text.startswith("constant answer")] == (
        ["constant answer"] if nll.key in scores else []
    )


@pytest.mark.slow
def test_figures_of_another_metric() -> None:
    seconds = Metric(key="time/train_seconds", label="training time", unit="s", scale=1.0, higher_is_better=False)
    arms = (make_arm("head", 0.5, trainable=10), make_arm("full", 2.5, trainable=100))
    comparison = dataclasses.replace(compare(*arms, metric=seconds), margin=0.0)
    drawings = draw(comparison)
    axes = drawings["accuracy_parameters"].figure.axes[0]
    assert drawings["accuracy_parameters"].title == "Training time against trainable parameters"
    assert axes.get_ylabel() == "training time (s)"
    assert lines_of(axes)["#9A9A9A"] == [[(10, 0.5)]]
    assert "#767676" not in lines_of(axes)
    differences = drawings["differences"].figure.axes[0]
    assert differences.get_xlabel() == "difference in training time (s), the first minus the second"
    assert differences.texts[0].get_text() == "-2.000"
    assert "shaded" not in note(drawings["differences"])


@pytest.mark.slow
def test_odd_names_are_literal_in_valid_files(tmp_path: Path) -> None:
    arms = [make_arm(name, 0.9 - i / 50, strategy=name, trainable=10 ** (i + 2)) for i, name in enumerate(ODD)]
    more = [
        dataclasses.replace(arm, name=f"{ODD[0]} {arm.name[5:]}", strategy=ODD[0])
        for arm in sweep("rank", ["1", "2", "4"])
    ]
    comparison = dataclasses.replace(compare(*arms, *more), classes=("$x$", "<b>", "_c"))
    for drawing in draw_comparison(comparison):
        png, svg = save_drawing(drawing, tmp_path)
        assert imread(png).shape[:2] == tuple((drawing.figure.get_size_inches() * 120).astype(int)[::-1])
        root = ElementTree.fromstring(svg.read_bytes())
        assert {element.tag.rsplit("}")[-1] for element in root.iter()}.isdisjoint({"img", "script", "b"})
    stems = sorted(path.name for path in tmp_path.glob("option*"))
    assert stems == ["option_sweep_img_src_x_onerror_alert_1.png", "option_sweep_img_src_x_onerror_alert_1.svg"]
    shown = [ODD[0], ODD[1], 'quote"\N{REPLACEMENT CHARACTER} ', ODD[3]]
    for stem in ("accuracy_over_training", "accuracy_parameters", "class_f1"):
        texts = {element.text for element in ElementTree.parse(tmp_path / f"{stem}.svg").iter()}
        assert set(shown) <= texts
    assert {"$x$", "<b>", "_c"} <= texts


def test_long_names_are_shortened() -> None:
    axes = draw(compare(make_arm("strategy" + "x" * 60 + " rank=16", 0.9)))["class_f1"].figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["strategyxxxxxxxxxxxxxx…xxx rank=16"]


@pytest.mark.slow
def test_files_are_reproducible_and_described(tmp_path: Path) -> None:
    files = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        files.append(
            [path.read_bytes() for drawing in draw_comparison(four()) for path in save_drawing(drawing, folder)]
        )
    assert files[0] == files[1]
    again = draw(four())["differences"]
    for _ in range(2):
        save_drawing(again, tmp_path)
    assert (tmp_path / "differences.svg").read_bytes() in files[0]
    text = (tmp_path / "differences.svg").read_text(encoding="utf-8")
    assert "<title>Differences between strategies</title>" in text
    assert "full against lora +4.8 better" in text
    assert "date" not in text.lower().split("<defs>")[0]


def test_user_settings_of_matplotlib_are_kept(tmp_path: Path) -> None:
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        drawing = draw(compare(make_arm("lora", 0.8)))["gain_retention"]
        save_drawing(drawing, tmp_path)
        assert dict(matplotlib.rcParams) == before
    assert to_hex(drawing.figure.axes[0].get_facecolor()) == "#ffffff"


@pytest.mark.slow
def test_labels_do_not_overlap() -> None:
    arms = [
        make_arm(f"strategy {i}", 0.8 + (i % 3) / 100, trainable=1000 + 150 * i, clean=0.93 + (i % 2) / 500)
        for i in range(12)
    ]
    drawings = draw(compare(*arms))
    for stem in ("accuracy_parameters", "gain_retention"):
        axes = drawings[stem].figure.axes[0]
        texts = [text for text in axes.texts if isinstance(text, Annotation)]
        assert len(texts) == 12
        boxes = [matplotlib.text.Text.get_window_extent(text) for text in texts]
        assert [(a, b) for a, b in itertools.combinations(range(12), 2) if boxes[a].overlaps(boxes[b])] == []
        points = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines if line.get_marker() != "None"]
        assert [point for point in points for box in boxes if box.contains(*point)] == []


def test_colours_of_strategies() -> None:
    assert assign_colours(FIXED) == FIXED
    six = [f"plugin{i}" for i in range(6)]
    colours = assign_colours([*six, "lora"])
    assert {colours[name] for name in six} == set(OTHERS)
    assert colours == assign_colours(["lora", *reversed(six)])
    assert assign_colours(["lora", "dora"])["dora"] == assign_colours(["dora", "scratch"])["dora"]
    assert len({*FIXED.values(), *OTHERS}) == 10


def test_colours_are_the_same_in_a_report() -> None:
    names = ["plugin0", "plugin1", "plugin2", "plugin3", "plugin4"]
    colours = assign_colours(names)
    for name in names[:2]:
        by_epoch = draw_comparison(compare(make_arm(name, 0.8)), names)[0].figure.axes[0]
        assert to_hex(by_epoch.lines[0].get_color()).upper() == colours[name]


def test_marks_of_one_strategy() -> None:
    arms = [make_arm(f"lora rank={rank}", 0.8) for rank in (16, 2, 4)]
    marks = assign_marks(arms, assign_colours(["lora"]))
    assert {name: mark.marker for name, mark in marks.items()} == {
        "lora rank=2": "o",
        "lora rank=4": "s",
        "lora rank=16": "^",
    }
    assert {mark.colour for mark in marks.values()} == {FIXED["lora"]}
    assert len({str(mark.line) for mark in marks.values()}) == 3


MACHADO = {  # Machado et al. (2009), severity 1
    "none": numpy.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = numpy.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.mark.parametrize("vision", MACHADO)
def test_colours_are_distinct_for_colour_blindness(vision: str) -> None:
    def lab(colour: str) -> numpy.ndarray:
        srgb = numpy.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = numpy.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        seen = numpy.clip(numpy.array(MACHADO[vision]) @ linear, 0, 1)
        xyz = XYZ @ seen / XYZ.sum(1)
        f = numpy.where(xyz > 0.008856, numpy.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return numpy.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    colours = [*FIXED.values(), *OTHERS]
    distances = [float(numpy.linalg.norm(lab(a) - lab(b))) for a, b in itertools.combinations(colours, 2)]
    assert min(distances) > 13
