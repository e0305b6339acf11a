"""Severities of the shift: evaluation of final models, records, comparison, crossings, table and figure."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from click.testing import CliRunner, Result
from matplotlib.colors import to_hex
from mlflow import MlflowClient
from scipy import stats
from support.experiments import FOREIGN, KEPT, TINY, TINY_SETTINGS, Tracked, own_cache
from support.fabrication import fabricate

import adaptkit
from adaptkit.api.compare import judge_tracked
from adaptkit.cli import main
from adaptkit.comparison.findings import Comparison
from adaptkit.data.shifts import rotated
from adaptkit.experiment.prepare import load_data
from adaptkit.plugins.loading import load_plugins
from adaptkit.reports.figures.severity import draw_accuracy_over_severity
from adaptkit.reports.figures.style import FIXED, Drawing, Mark, assign_colours, own_style
from adaptkit.seeds import derive_seed
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.settings.severities import area
from adaptkit.training.evaluation import predict_logits
from adaptkit.training.objective import accuracy as accuracy_of

Cli = Callable[..., Result]

SEVERITIES = (0.0, 0.5, 1.0, 2.0)
UNSORTED = "2,0.5,1,0"


@dataclass(frozen=True)
class Severe:
    """A tracked experiment over severities: the store and the printed output."""

    uri: str
    printed: str

    def run(self, strategy: str) -> Any:
        """Return the MLflow run of a strategy."""
        client = MlflowClient(tracking_uri=self.uri)
        condition = f"params.strategy = '{strategy}'"
        (found,) = client.search_runs(["1"], f"tags.`adaptkit.kind` = 'adaptation' and {condition}")
        return found

    def artifact(self, strategy: str, name: str) -> str:
        """Return the text of an artifact."""
        return (Path(self.run(strategy).info.artifact_uri.removeprefix("file://")) / name).read_text()


@pytest.fixture(scope="module")
def severe(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[Severe]:
    folder = tmp_path_factory.mktemp("severe")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
            patch.delenv(name)
        patch.setenv("ADAPTKIT_CACHE", str(own_cache(shared)))
        patch.chdir(folder)
        arguments = ["run", "-s", "lora", "-s", "head", "-o", "lora.rank=4", *TINY]
        result = CliRunner().invoke(main, [*arguments, "--severity", UNSORTED, "-q"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    yield Severe(f"sqlite:///{folder / 'mlflow.db'}", result.stdout)


def over(run: Any, name: str = "accuracy") -> list[float]:
    """Return a run's recorded values over severities."""
    return [run.data.metrics[f"severity/{name}_{severity:g}"] for severity in SEVERITIES]


@pytest.mark.slow
def test_severities_1_and_0_are_target_and_source(severe: Severe) -> None:
    for strategy in ("lora", "head"):
        run = severe.run(strategy)
        metrics, accuracies, zero_shot = run.data.metrics, over(run), over(run, "zero_shot")
        assert accuracies[2] == metrics["final/shifted_accuracy"]
        assert accuracies[0] == metrics["final/test_accuracy"]
        assert zero_shot[2] == metrics["final/zero_shot_accuracy"]
        assert zero_shot[0] == metrics["final/base_test_accuracy"]
        zero, half, one, two = accuracies
        assert metrics["final/severity_area"] == pytest.approx(
            (0.5 * (zero + half) / 2 + 0.5 * (half + one) / 2 + (one + two) / 2) / 2, abs=1e-12
        )
        assert run.data.params["severity"] == "0,0.5,1,2"
        history = MlflowClient(tracking_uri=severe.uri).get_metric_history(run.info.run_id, "severity/accuracy_2")
        assert [point.step for point in history] == [0]


@pytest.mark.slow
def test_artifact_and_config(severe: Severe) -> None:
    run = severe.run("head")
    found = json.loads(severe.artifact("head", "severity.json"))
    assert found == {
        "severities": list(SEVERITIES),
        "accuracy": over(run),
        "zero_shot": over(run, "zero_shot"),
        "area": run.data.metrics["final/severity_area"],
        "zero_shot_area": area(SEVERITIES, over(run, "zero_shot")),
    }
    assert "severity: 0,0.5,1,2\n" in severe.artifact("head", "config.yaml")


@pytest.mark.slow
def test_recorded_accuracies_match_the_stored_model(severe: Severe) -> None:
    request = resolve([Layer(TINY_SETTINGS | {"strategy": "head", "severity": UNSORTED})], load_plugins())
    domains = load_data(request)
    assert tuple(request.severities) == SEVERITIES
    assert torch.equal(domains.test_under(request.severities[1.0]), domains.shifted_test.pixels)
    run = severe.run("lora")
    model = adaptkit.load(run.info.run_id, tracking_uri=severe.uri)
    for severity, accuracy in zip(SEVERITIES, over(run), strict=True):
        logits = predict_logits(model, domains.test_under(request.severities[severity]))
        assert accuracy_of(logits, domains.shifted_test.labels) == accuracy


def test_severity_multiplies_the_angle_of_each_image() -> None:
    settings = TINY_SETTINGS | {"strategy": "head", "shift": "rotate=40", "severity": (0.5, 2)}
    request = resolve([Layer(settings)], load_plugins())
    domains = load_data(request)
    assert domains.clean_test is not None
    seed = derive_seed(derive_seed(0, "shifted test"), "views/0/0")
    draws = 2 * torch.rand(100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    for severity, shifts in request.severities.items():
        expected = rotated(domains.clean_test.pixels, severity * 40 * draws)
        assert torch.equal(domains.test_under(shifts), expected)


@pytest.mark.slow
def test_severities_change_nothing_else(severe: Severe, tracked: Tracked) -> None:
    client = MlflowClient(tracking_uri=tracked.uri)
    for record in tracked.outcome["runs"]:
        plain, run = client.get_run(record["run_id"]), severe.run(record["strategy"])
        measured = ("time/", "memory/", "severity/", "final/severity")
        assert {key: value for key, value in run.data.metrics.items() if not key.startswith(measured)} == {
            key: value for key, value in plain.data.metrics.items() if not key.startswith(measured)
        }
        assert set(run.data.params) - set(plain.data.params) == {"severity"}
        for tag in ("data_fingerprint", "base_fingerprint", "pair_id", "adapter_sha256", "frozen_prefix"):
            assert run.data.tags[f"adaptkit.{tag}"] == plain.data.tags[f"adaptkit.{tag}"]
        assert not [key for key in plain.data.metrics if "severity" in key]


@pytest.mark.slow
def test_run_and_compare_print_the_same_table(severe: Severe, cli: Cli) -> None:
    areas = {name: severe.run(name).data.metrics["final/severity_area"] for name in ("head", "lora")}
    first, second = sorted(areas, key=lambda name: -areas[name])
    compared = cli("compare", "--no-track", "--tracking-uri", severe.uri).stdout
    for printed in (severe.printed, compared):
        table = printed[printed.index("\n severity  ") :].splitlines()[1:]
        assert table[0].split() == ["severity", "0", "0.5", "1", "2", "area"]
        rows = [row.split() for row in table[2:5]]
        assert [row[0] for row in rows] == ["zero-shot", first, second]
        assert rows[1][-1] == f"{100 * areas[first]:.1f}"
        assert f"Mean accuracy over severities 0 to 2 of the shift, without a verdict: {first}" in printed
    by_area = cli("compare", "--no-track", "--json", "--metric", "final/severity_area", "--tracking-uri", severe.uri)
    found = json.loads(by_area.stdout)
    assert [(arm["name"].split()[0], arm["mean"]) for arm in found["arms"]] == [
        (name, areas[name]) for name in (first, second)
    ]
    robustness = found["comparisons"][0]["robustness"]
    assert [arm["area"] for arm in robustness["arms"]] == [arm["mean"] for arm in found["arms"]]


@pytest.mark.slow
def test_report_has_figure_and_table(severe: Severe, cli: Cli, own_folder: Path) -> None:
    result = cli("compare", "--no-track", "--tracking-uri", severe.uri, "--output", "report")
    assert result.exit_code == 0
    text, page = (own_folder / "report" / "report.md").read_text(), (own_folder / "report" / "report.html").read_text()
    assert "| Strategy | 0 (%) | 0.5 (%) | 1 (%) | 2 (%) | Area (%) |" in text
    assert "(accuracy_over_severity.png)" in text and "**severity**" in text
    assert "Target accuracy over severity of the shift" in page and "<th" in page and "Area (%)" in page
    assert {path.name for path in (own_folder / "report").glob("accuracy_over_severity.*")} == {
        "accuracy_over_severity.png",
        "accuracy_over_severity.svg",
    }


@pytest.mark.slow
def test_python_severities_without_source() -> None:
    outcome = adaptkit.run(
        "head",
        dataset="none",
        weights="none",
        target="digits",
        shift="rotate=30",
        severity=[1, 2],
        epochs=1,
        shots=2,
        track=False,
    )
    (run,) = outcome.runs
    one, two = run.metrics["severity/accuracy_1"], run.metrics["severity/accuracy_2"]
    assert one == run.metrics["final/shifted_accuracy"]
    assert run.metrics["final/severity_area"] == pytest.approx((one + two) / 2)
    assert not [key for key in run.metrics if "zero_shot" in key]
    assert outcome.comparison is not None
    robustness = outcome.comparison.robustness
    assert robustness is not None and robustness.zero_shot is None


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["--severity", "5"], ["severity 5: shift.rotate: must be at most 180, not 225"]),
        (
            ["--severity", "0.5,2", "--shift", "contrast=0.6,rotate=100"],
            [
                "severity 2: shift.contrast: must be at most 1, not 1.2",
                "severity 2: shift.rotate: must be at most 180, not 200",
            ],
        ),
        (["--severity", "0", "--shift", "crop=0.7"], ["severity 0: shift.crop: must be greater than 0, not 0"]),
        (["--severity", "1,1.0"], ["severity: 1 appears twice"]),
        (["--severity", "1,x"], ["severity: must be a number, not 'x'"]),
        (["--set", "severity=-1"], ["severity: must be at least 0, not -1"]),
        (["--severity", "inf"], ["severity: must be a finite number, not 'inf'"]),
        (
            ["--severity", "1,2", "--target", "digits"],
            ["severity: no shift to multiply; set one, as in --shift rotate=45,noise=0.3"],
        ),
        (
            ["--severity", "1,2", "--shift", "none"],
            ["severity: no shift to multiply; set one, as in --shift rotate=45,noise=0.3"],
        ),
    ],
)
def test_invalid_severities_are_refused(cli: Cli, own_folder: Path, arguments: list[str], lines: list[str]) -> None:
    result = cli("run", "-s", "head", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [f"Error: {line}" for line in lines]
    assert list(own_folder.iterdir()) == []


def test_shift_that_fails_at_a_severity_is_refused(cli: Cli, own_folder: Path) -> None:
    Path("weak.py").write_text(
        "from dataclasses import dataclass\nfrom adaptkit import hookimpl\n"
        "@dataclass(frozen=True)\nclass Weak:\n    size: float\n    name = 'weak'\n"
        "    def apply(self, images, generator):\n"
        "        if self.size > 3: raise RuntimeError('too much')\n        return images.clone()\n"
        "@hookimpl\ndef adaptkit_shifts():\n    return [Weak]\n"
    )
    result = cli("run", "-s", "head", *TINY, "--plugin", "weak.py", "--shift", "weak=2", "--severity", "1,2")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: severity 2: ") and "too much" in line
    assert not Path("mlflow.db").exists()


def test_area_by_trapezia() -> None:
    assert area((0.5, 1, 2), (0.8, 0.6, 0.2)) == pytest.approx((0.5 * 0.7 + 1 * 0.4) / 1.5)
    assert area((0, 3), (1.0, 0.5)) == 0.75
    assert area((2,), (0.5,)) is None


def made(
    uri: str, lines: Mapping[str, Sequence[Sequence[float]]], severities: Sequence[float] = (0.5, 1, 2), **more: Any
) -> None:
    """Record a run for each strategy and seed with these accuracies over severities."""
    for strategy, seeds in lines.items():
        for seed, accuracies in enumerate(seeds):
            metrics = {f"severity/accuracy_{s:g}": value for s, value in zip(severities, accuracies, strict=True)}
            metrics |= {f"severity/zero_shot_{s:g}": 0.3 for s in severities}
            metrics["final/severity_area"] = area(severities, accuracies) or 0.0
            params = {"severity": ",".join(f"{s:g}" for s in severities)}
            fabricate(uri, strategy, seed, range(40 + seed), metrics=metrics, params=params, **more)


def judged(uri: str) -> Comparison:
    (comparison,) = judge_tracked(tracking_uri=uri)
    return comparison


def about_severities(comparison: Comparison) -> list[str]:
    """Return the sentences between those on the Pareto front and the scope."""
    sentences = list(comparison.sentences)
    start = next(
        index for index, sentence in enumerate(sentences) if sentence.startswith("Mean accuracy over severities")
    )
    return sentences[start:-1]


@pytest.fixture
def uri(store: Path) -> str:
    return f"sqlite:///{store}"


def test_crossing(uri: str) -> None:
    noise = (0.0, 0.01, -0.01, 0.005)
    head = [(0.90 + x, 0.70 + x, 0.30 + x) for x in noise]
    lora = [(0.80 - x, 0.65 - x, 0.56 - x) for x in noise]
    made(uri, {"head": head, "lora": lora})
    comparison = judged(uri)
    found = comparison.robustness
    assert found is not None
    assert (found.severities, found.zero_shot, found.zero_shot_area) == (
        (0.5, 1, 2),
        (0.3, 0.3, 0.3),
        pytest.approx(0.3),
    )
    assert [arm.name for arm in found.arms] == ["lora", "head"]
    # Over 200 test images, an accuracy of 80 % varies by .8 x .2 / 199, and over the runs by their variance / 4.
    first = found.arms[0].accuracies[0]
    over_runs, over_images = numpy.var([line[0] for line in lora], ddof=1) / 4, 0.795 * 0.205 / 199
    df = (over_runs + over_images) ** 2 / (over_runs**2 / 3 + over_images**2 / 199)
    assert first.half_width == pytest.approx(stats.t.ppf(0.975, df) * math.sqrt(over_runs + over_images), rel=0.02)
    (crossing,) = found.crossings
    assert (crossing.rising, crossing.falling, crossing.low, crossing.high) == ("lora", "head", 1, 2)
    # On average head is 5 + 2 * 0.125 points ahead at 1, and lora 26 - 0.25 at 2.
    assert (crossing.before, crossing.after) == pytest.approx((-0.0525, 0.2575))
    assert crossing.at == pytest.approx(1 + 0.0525 / 0.31)
    # The predictions at each severity are not kept: means, and no verdict.
    assert about_severities(comparison) == [
        "Mean accuracy over severities 0.5 to 2 of the shift, without a verdict: lora 64.4 % and head 60.1 %.",
        "The means of head and lora cross near severity 1.2: beyond it, the mean of lora is higher.",
    ]


def test_crossing_at_a_severity_and_no_crossing(uri: str) -> None:
    made(uri, {"head": [(0.8, 0.6, 0.4)], "lora": [(0.7, 0.6, 0.5)], "full": [(0.9, 0.8, 0.7)]})
    _, crossing = about_severities(judged(uri))
    # They are equal at 1.
    assert crossing == ("The means of head and lora cross near severity 1.0: beyond it, the mean of lora is higher.")
    made(uri, {"head": [(0.8, 0.6, 0.4)], "lora": [(0.7, 0.5, 0.3)]})
    assert about_severities(judged(uri))[1] == "No two mean lines cross over these severities."


def test_many_crossings(uri: str) -> None:
    lines = {f"arm{index}": [(0.9 - 0.05 * index, 0.6, 0.3 + 0.06 * index)] * 2 for index in range(5)}
    made(uri, lines)
    comparison = judged(uri)
    assert comparison.robustness is not None and len(comparison.robustness.crossings) == 10
    sentences = about_severities(comparison)
    assert len(sentences) == 7
    assert all("arm4" in sentence or "arm3" in sentence for sentence in sentences[1:6])
    assert sentences[6] == "The JSON output lists 5 more crossings of mean lines (`crossings`)."


def test_only_shared_severities_are_compared(uri: str, cli: Cli) -> None:
    made(uri, {"head": [(0.8, 0.6, 0.4), (0.82, 0.6, 0.4)]}, (0.5, 1, 2))
    made(uri, {"lora": [(0.7, 0.62, 0.5), (0.7, 0.6, 0.5)]}, (1, 2, 3))
    fabricate(uri, "full", 0, range(9))
    comparison = judged(uri)
    found = comparison.robustness
    assert found is not None and found.severities == (1, 2)
    assert {arm.name: arm.area for arm in found.arms} == pytest.approx({"head": 0.5, "lora": 0.655 - 0.0})
    assert comparison.notes[-2:] == (
        "full was not tested over severities: run it again with --severity.",
        "The runs were tested at different severities. Only the shared ones are compared: 1 and 2.",
    )
    result = cli("compare", "--no-track", "--json", "--metric", "final/severity_area")
    by_area = json.loads(result.stdout)
    assert {arm["name"]: arm["mean"] for arm in by_area["arms"]} == pytest.approx({"head": 0.5, "lora": 0.655})


def test_areas_without_shared_severities(uri: str, cli: Cli) -> None:
    made(uri, {"head": [(0.8, 0.6)]}, (0.5, 1))
    made(uri, {"lora": [(0.7, 0.6)]}, (1, 2))
    result = cli("compare", "--no-track", "--metric", "final/severity_area")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: --metric: these runs have no two severities in common, and therefore no final/severity_area to "
        "compare\n",
    )
    found = judged(uri).robustness
    assert found is not None and found.severities == (1,) and found.arms[0].area is None


@pytest.mark.slow
def test_severities_do_not_define_an_arm(uri: str) -> None:
    made(uri, {"head": [(0.8, 0.6)]}, (0.5, 1))
    made(uri, {"head": [(0.8, 0.6, 0.5)], "lora": [(0.7, 0.6, 0.5)]}, (0.5, 1, 2))
    comparison = judged(uri)
    assert [(arm.name, len(arm.runs)) for arm in comparison.arms] == [("head", 1), ("lora", 1)]
    assert [run.status for run in comparison.left_out] == ["superseded"]


def drawn_over(comparison: Comparison) -> Drawing:
    """Draw only the figure over severities."""
    assert comparison.robustness is not None
    colours = assign_colours(arm.strategy for arm in comparison.robustness.arms)
    marks = {arm.name: Mark(colours[arm.strategy], "o", "-") for arm in comparison.robustness.arms}
    with own_style():
        drawing = draw_accuracy_over_severity(comparison, marks)
    assert drawing is not None
    return drawing


def test_figure_means_bands_and_zero_shot(uri: str) -> None:
    made(uri, {"head": [(0.9, 0.7, 0.3), (0.88, 0.7, 0.34)], "lora": [(0.8, 0.65, 0.5), (0.8, 0.67, 0.5)]})
    drawing = drawn_over(judged(uri))
    (axes,) = drawing.figure.axes
    drawn = {to_hex(line.get_color()).upper(): numpy.round(line.get_xydata(), 6).tolist() for line in axes.lines}
    assert drawn[FIXED["head"]] == [[0.5, 89], [1, 70], [2, 32]]
    assert drawn[FIXED["lora"]] == [[0.5, 80], [1, 66], [2, 50]]
    assert drawn["#767676"] == [[0.5, 30], [1, 30], [2, 30]]
    assert len(axes.collections) == 2
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == [
        "lora  63.0", "head  60.5", "zero-shot  30.0",
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.5", "1", "2"]
    assert drawing.alt == (
        "Lines against the severity of the shift, 0.5 to 2. Area under each: lora 63.0 %, head 60.5 %."
    )
    note = drawing.figure.get_supxlabel().replace("\n", " ")
    assert note == (
        "mean over 2 runs; band: 95 % interval; vertical line: severity 1, the shift that was adapted to (noise=0.3)"
    )


def test_figure_with_many_long_names(uri: str) -> None:
    made(uri, {"head": [(0.9, 0.5)], "lora": [(0.8, 0.5)]}, (0.5, 1))
    comparison = judged(uri)
    assert comparison.robustness is not None
    arm = comparison.robustness.arms[0]
    names = [f"strategy with a rather long name, number {index}" for index in range(14)]
    arms = tuple(dataclasses.replace(arm, name=name) for name in names)
    robustness = dataclasses.replace(comparison.robustness, arms=arms)
    drawing = drawn_over(dataclasses.replace(comparison, robustness=robustness))
    figure = drawing.figure
    whole = figure.bbox
    (legend,) = figure.legends
    box, axes = legend.get_window_extent(), figure.axes[0].get_tightbbox()
    assert axes is not None
    assert not box.overlaps(axes)
    assert whole.x1 >= box.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    assert axes.width > 0.4 * whole.width
    assert len(legend.get_texts()) == 13
    assert "the best 12 of 14 strategies" in figure.get_supxlabel()


def test_single_severity_has_table_but_no_figure(uri: str, cli: Cli) -> None:
    made(uri, {"head": [(0.8,)], "lora": [(0.7,)]}, (2,))
    assert draw_accuracy_over_severity(judged(uri), {}) is None
    printed = cli("compare", "--no-track", "--metric", "severity/accuracy_2").stdout
    table = printed[printed.index("\n severity  ") :].splitlines()[1:]
    assert [row.split() for row in (table[0], *table[2:5])] == [
        ["severity", "2"], ["zero-shot", "30.0"], ["head", "80.0", "±", "5.6"], ["lora", "70.0", "±", "6.4"],
    ]  # fmt: skip
