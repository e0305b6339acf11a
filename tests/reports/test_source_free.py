"""Runs without a source: nothing shows a source accuracy, zero-shot, gain or retention."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from click.testing import Result
from matplotlib.image import imread
from mlflow import MlflowClient
from rich.console import Console
from support.fabrication import fabricate
from torch import nn

from adaptkit.cli.views.progress import ProgressBars, ProgressLines, print_plan
from adaptkit.comparison.collector import Collector
from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.judge import judge_runs
from adaptkit.comparison.records import ComparedRun
from adaptkit.events import Epoch, Predictions, RunResult, RunStart
from adaptkit.experiment.outcome import ArmPlan, Plan
from adaptkit.reports.figures.comparison import draw_comparison
from adaptkit.reports.tables import class_scores
from adaptkit.tracking.artifacts import write_artifacts
from adaptkit.tracking.reader import open_reader
from adaptkit.tracking.store import open_store
from adaptkit.tracking.tracker import Tracker

Cli = Callable[..., Result]

#: words that only apply to runs with a source
ABSENT = re.compile(r"\b(zero.?shot|gains?|gained|retention|source|clean|forgets?|forgot|shifted)\b", re.IGNORECASE)
CLASSES = tuple("abcde")
IMAGES, SEEDS = 200, 2


def epoch(number: int, accuracy: float | None) -> Epoch:
    return Epoch(number, 1 / number, 0.5, None, accuracy, 2.0, 0.5, 2.0 * number)


def prepared(
    strategy: str, seed: int, wrong: int, folder: Path, classes: Sequence[str] = CLASSES, images: int = IMAGES
) -> tuple[RunStart, RunResult]:
    """Return a run that predicts the next class for the first `wrong` target test images, in a fixed order."""
    truth = numpy.arange(images) % len(classes)
    predicted = truth.copy()
    predicted[(37 * numpy.arange(wrong) + seed) % images] += 1
    predicted %= len(classes)
    found = Predictions(numpy.arange(images), truth, predicted, numpy.full(images, 0.9))
    trainable = {"full": 1000, "head": 60, "lora": 160}[strategy]
    run = RunStart(
        kind="adaptation",
        name=f"{strategy} seed={seed}",
        params={
            "strategy": strategy, "seed": seed, "dataset": "none", "target": "folder:photos", "shift": "none",
            "backbone": "torchvision:resnet18", "epochs": 2, "batch_size": 32, "lr": 0.001, "shots": 8,
            "base.epochs": 5,
        },
        tags={
            "adaptkit.kind": "adaptation", "adaptkit.arm": strategy, "adaptkit.data_fingerprint": "e" * 64,
            "adaptkit.base_fingerprint": "c" * 64, "adaptkit.pair_id": f"{'e' * 12}-{seed}",
            "adaptkit.timing": "alone", "adaptkit.pool_images": "80", "adaptkit.drawn_images": "40",
        },
    )  # fmt: skip
    (folder / "adapter.json").write_text(json.dumps({"classes": classes}))
    result = RunResult(
        metrics={
            "final/shifted_accuracy": found.accuracy,
            "final/shifted_macro_f1": found.accuracy,
            "params/total": 1160,
            "params/trainable": trainable,
            "params/trainable_fraction": trainable / 1160,
            "params/trainable_head": 60,
            "params/trainable_adapter": 100 if strategy == "lora" else 0,
            "params/trainable_base": 940 if strategy == "full" else 0,
            "size/adapter_bytes": 4 * trainable,
            "memory/peak_bytes": 40 * trainable,
            "time/train_seconds": trainable / 100 + 0.1 * seed,
            "time/evaluation_seconds": 1.0,
            "time/inference_ratio": 1.0,
        },
        epochs=(epoch(1, 0.4), epoch(2, found.accuracy)),
        predictions={"shifted": found},
        classes=tuple(classes),
        config="strategy: head\n",
        files={"adapter/adapter.json": folder / "adapter.json"},
        samples={"shifted": torch.rand(8, 3, 32, 32)},
    )
    return run, result


@pytest.fixture
def uri(store: Path) -> str:
    return f"sqlite:///{store}"


def record(uri: str, *runs: tuple[RunStart, RunResult], experiment: str = "adaptkit") -> list[str]:
    with Tracker(open_store(uri, experiment)) as tracker:
        for run, result in runs:
            tracker.record(run, result.epochs, result, nn.Identity())
    assert tracker.fault is None
    return [str(tracker.run_id(run.name)) for run, _ in runs]


@dataclass(frozen=True)
class Three:
    """A store with runs of three strategies, and their ids."""

    uri: str
    run_ids: list[str]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Three:
    """Record the runs once for all tests that compare them."""
    folder = tmp_path_factory.mktemp("three")
    uri = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
    wrong = {"full": 20, "lora": 30, "head": 60}
    seeds = range(SEEDS)
    runs = [prepared(name, seed, count + seed, folder) for name, count in wrong.items() for seed in seeds]
    return Three(uri, record(uri, *runs))


def files_of(uri: str, run_id: str) -> list[str]:
    return sorted(file.path for file in MlflowClient(tracking_uri=uri).list_artifacts(run_id))


class Text(HTMLParser):
    """All text of a page, including alternative texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.hidden = tag == "style"
        self.parts += [value or "" for name, value in attributes if name in ("alt", "aria-label", "title")]

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def test_recorded_metrics_and_artifacts(uri: str, tmp_path: Path) -> None:
    run, result = prepared("head", 0, 20, tmp_path)
    (run_id,) = record(uri, (run, result))
    client = MlflowClient(tracking_uri=uri)
    assert set(client.get_run(run_id).data.metrics) == set(result.metrics) | {
        *("train/loss", "train/accuracy", "shifted/accuracy", "time/epoch_seconds", "time/cumulative_seconds"),
    }
    assert files_of(uri, run_id) == [
        *("adapter", "classification_report_shifted.json", "classification_report_shifted.txt", "config.yaml"),
        *("confusion_shifted.png", "curves.png", "environment.txt"),
        *("predictions.csv", "predictions.parquet", "samples.png"),
    ]
    path = client.download_artifacts(run_id, "predictions.csv", str(tmp_path))
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    assert len(rows) == IMAGES
    assert {(row["test_set"], row["base_prediction"]) for row in rows} == {("shifted", "")}
    assert sum(row["truth"] == row["prediction"] for row in rows) == 180


def test_untrained_base_has_no_history(uri: str, tmp_path: Path) -> None:
    run = RunStart(
        "base", "base torchvision:resnet18", {"dataset": "none", "base.epochs": 5}, {"adaptkit.kind": "base"}
    )
    weights = tmp_path / "base.json"
    weights.write_text("{}")
    result = RunResult({}, (), {}, CLASSES, "dataset: none\n", files={"base/base.json": weights})
    (run_id,) = record(uri, (run, result))
    found = MlflowClient(tracking_uri=uri).get_run(run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {})
    assert files_of(uri, run_id) == ["base", "config.yaml", "environment.txt"]


def test_tables_and_sentences(cli: Cli, three: Three) -> None:
    result = cli("compare", "--no-track", "--tracking-uri", three.uri)
    assert result.exit_code == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0].split() == ["strategy", "target", "trainable", "share", "seconds"]
    assert [line.split()[0] for line in lines[2:5]] == ["full", "lora", "head"]
    assert lines[2].split() == ["full", "89.8", "±", "2.9", "1,000", "86.21", "%", "10.1", "±", "0.6"]
    assert lines[5].split() == ["constant", "20.0"]
    assert lines[6] == "target accuracy in %; mean of 2 runs ± 95 % interval"
    assert "target accuracy, differences in points [95 % interval]; Holm-corrected p" in lines
    sentences = [line for line in lines if line.startswith("In target accuracy")]
    assert sentences[0].startswith("In target accuracy, full is better than lora by 5.0 points [")
    assert sentences[0].endswith("It trains 6.2 times the parameters and took 6.1 times as long.")
    assert not ABSENT.search(result.stdout)
    # Only strategies that are not dominated have a dash: the better one dominates at equal memory.
    assert [line.split()[0] for line in lines if "\N{EN DASH}" in line] == ["full"]


def test_json_has_null_for_missing_values(cli: Cli, three: Three) -> None:
    found = json.loads(cli("compare", "--no-track", "--json", "--tracking-uri", three.uri).stdout)
    assert found["metric"] == "final/shifted_accuracy"
    for arm in found["arms"]:
        assert (arm["gain"], arm["clean"], arm["retention"]) == (None, None, None)
        assert arm["shifted"]["mean"] == arm["mean"] and len(arm["confusion"]) == len(CLASSES)
    for pair in found["pairs"]:
        assert (pair["gain_difference"], pair["retention_difference"], pair["n"]) == (None, None, SEEDS)
    (comparison,) = found["comparisons"]
    assert (comparison["zero_shot"], comparison["base_accuracy"]) == (None, None)
    assert not ABSENT.search(" ".join(found["sentences"] + comparison["notes"]))


@pytest.mark.slow
def test_report_has_no_empty_columns_or_figures(cli: Cli, three: Three, tmp_path: Path) -> None:
    result = cli("compare", "--output", "report", "--tracking-uri", three.uri)
    assert result.exit_code == 0, result.stderr
    folder = Path("report")
    stems = ["accuracy_over_training", "accuracy_parameters", "class_f1", "confusion_differences", "differences"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            "report.html",
            "report.md",
            "comparison.json",
            *(f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")),
        ]
    )
    markdown = (folder / "report.md").read_text()
    assert re.findall(r"!\[.*\]\((.*)\)", markdown) == [f"{stem}.png" for stem in stems]
    assert "| Strategy | Target (%) | Macro F1 (%) | Runs |\n" in markdown
    assert (
        "| Pair | Verdict | Difference (points) \\[95 % interval\\] | p (Holm) | p (unadjusted) "
        "| Shared runs | Disagreement (%) |\n"
    ) in markdown
    assert "folder:photos · torchvision:resnet18 · 6 runs · 200 target test images" in markdown
    assert "| base.epochs |" not in markdown
    assert "| metric | target accuracy (final/shifted_accuracy) |" in markdown
    assert "On the target test set, mean over seeds." in markdown
    page = "\n".join(Text((folder / "report.html").read_text()).parts)
    drawn = "\n".join((folder / f"{stem}.svg").read_text() for stem in stems)
    for text in (markdown, page, drawn):
        assert "arget accuracy" in text and not ABSENT.search(text)
    client = MlflowClient(tracking_uri=three.uri)
    (experiment,) = (found for found in client.search_experiments() if found.name == "adaptkit")
    (recorded,) = client.search_runs([experiment.experiment_id], "tags.`adaptkit.kind` = 'comparison'")
    assert recorded.data.params["dataset"] == "none"
    assert not ABSENT.search(recorded.data.tags["mlflow.note.content"])
    arms = Path(client.download_artifacts(recorded.info.run_id, "arms.csv", str(tmp_path))).read_text().splitlines()
    assert arms[0] == "comparison,slug,arm,seeds,mean,low,high,trainable" and len(arms) == 4


@pytest.mark.parametrize("metric", ["final/retention", "final/gain", "final/test_accuracy", "test/accuracy"])
def test_metrics_of_a_source_are_refused(cli: Cli, three: Three, metric: str) -> None:
    result = cli("compare", "--no-track", "--metric", metric, "--tracking-uri", three.uri)
    assert result.exit_code == 2
    assert result.stderr == f"Error: --metric: these runs have no source, and therefore no {metric}\n"


def test_table_with_another_metric(cli: Cli, three: Three) -> None:
    options = ("--metric", "final/shifted_macro_f1", "--tracking-uri", three.uri)
    lines = cli("compare", "--no-track", *options).stdout.splitlines()
    headings = next(line for line in lines if line.strip()).split()
    assert headings == ["strategy", "macro", "F1", "target", "trainable", "share", "seconds"]
    assert any(line.startswith("In target macro F1, full is better than lora") for line in lines)


def test_runs_with_and_without_source_are_separate(cli: Cli, three: Three) -> None:
    # Even under the same fingerprints.
    same = {"adaptkit.data_fingerprint": "e" * 64, "adaptkit.base_fingerprint": "c" * 64}
    run_ids = [
        fabricate(three.uri, name, seed, range(wrong + seed), params={"shots": "8"}, tags=same, experiment="source")
        for name, wrong in (("one", 20), ("other", 50))
        for seed in range(SEEDS)
    ]

    def compared(*options: str) -> str:
        return cli("compare", *three.run_ids, *run_ids, "--no-track", "--tracking-uri", three.uri, *options).stdout

    found = json.loads(compared("--json"))
    apart = "compared separately, because the runs differ in more than the strategy: "
    assert [comparison["reason"] for comparison in found["comparisons"]] == [
        f"{apart}no source", f"{apart}a base trained on a source"
    ]  # fmt: skip
    assert [comparison["zero_shot"] for comparison in found["comparisons"]] == [None, 0.5]
    tables = compared().split("Comparison 2 of 2")
    assert "target" in tables[0] and not ABSENT.search(tables[0].replace(": no source", ""))
    assert "zero-shot" in tables[1] and "In target accuracy, one is better than other" in tables[1]
    retention = json.loads(compared("--json", "--metric", "final/retention"))
    assert [arm["name"] for arm in retention["arms"]] == ["one", "other"]
    assert "full seed=0 is left out: has no metric final/retention" in retention["notes"]


def test_collected_runs_equal_stored_runs(uri: str, tmp_path: Path) -> None:
    collector, runs = Collector(), [prepared(strategy, 0, 20, tmp_path) for strategy in ("full", "head")]
    for run, result in runs:
        collector.adaptkit_run_ended(run, result, nn.Identity())
    ids = dict(zip([run.name for run, _ in runs], record(uri, *runs), strict=True))
    watched = judge_runs(collector.runs(ids)).to_dict()
    reader = open_reader(uri)
    read: list[ComparedRun] = reader.with_curves(reader.read(reader.find((), None, None)))
    assert [run.curve.clean if run.curve else () for run in read] == [None, None]
    assert [run.curve.shifted if run.curve else () for run in read] == [(0.4, 0.9), (0.4, 0.9)]

    def timeless(found: dict[str, Any]) -> str:
        return json.dumps(found["arms"] + found["pairs"] + found["sentences"])

    assert timeless(judge_runs(read).to_dict()) == timeless(watched)


def test_incomplete_record_is_left_out(cli: Cli, three: Three, tmp_path: Path) -> None:
    run, result = prepared("lora", 0, 20, tmp_path)
    gap = {key: value for key, value in result.metrics.items() if key != "params/total"}
    run = dataclasses.replace(run, name="with a gap")
    (run_id,) = record(three.uri, (run, dataclasses.replace(result, metrics=gap)), experiment="gap")
    options = ("--no-track", "--json", "--tracking-uri", three.uri)
    (left_out,) = json.loads(cli("compare", run_id, *three.run_ids, *options).stdout)["left_out"]
    assert (left_out["status"], left_out["reason"]) == ("incomplete", "its record lacks params/total")


def plan(dataset: str = "none") -> Plan:
    return Plan(
        dataset=dataset,
        target="folder:photos",
        shift="none",
        backbone="torchvision:vit_b_16",
        device="cpu",
        precision="fp32",
        source_images=0 if dataset == "none" else 100,
        pool_images=40,
        shots=2,
        drawn_images=20,
        clean_test_images=0 if dataset == "none" else 50,
        shifted_test_images=60,
        classes=tuple("abcdefghij"),
        base_cached=False,
        arms=(
            ArmPlan("full", "full", {}, 1e-4, 85_806_346, 85_806_346, 7_690, 0, 85_798_656),
            ArmPlan("lora", "lora rank=16", {}, 5e-3, 87_118_346, 1_319_690, 7_690, 1_312_000, 0),
        ),
        seeds=(0,),
        epochs=1,
        base_parameters=85_806_346,
        steps=4,
        training_counts=(2,) * 10,
        evaluation_counts=(8, *(6,) * 8, 4),
        constant_answer="a",
        constant_accuracy=8 / 60,
    )


def printed(what: Plan) -> list[str]:
    console = Console(width=80, record=True, file=None, force_terminal=False, quiet=False, highlight=False)
    with console.capture() as captured:
        print_plan(console, what)
    return [line.rstrip() for line in captured.get().splitlines() if line.strip()]


def test_plan_fits_80_columns() -> None:
    assert printed(plan()) == [
        "Target   folder:photos: 20 training (drawn from 40), 60 test",
        "Classes  10 with 2 images each in a training, 4 to 8 evaluated; always answering a is right for 13.3 %",
        "Base     torchvision:vit_b_16, 10 classes, on cpu in fp32; "
        "used without training; every strategy trains a new head",
        "Runs     seed 0; 1 epoch (4 steps) each; compared by accuracy",
        "                                                                       learning",
        " strategy       trainable   head    adapter        base     share          rate",
        " ──────────────────────────────────────────────────────────────────────────────",
        " full          85,806,346  7,690          0  85,798,656  100.00 %        0.0001",
        " lora rank=16   1,319,690  7,690  1,312,000           0    1.51 %         0.005",
        "trainable = head + adapter (added) + base; size of the base: 85,806,346",
    ]
    with_source = printed(plan("photos"))
    assert with_source[0] == "Source   photos: 100 training, 50 test"
    assert with_source[3].endswith("; to be trained first")


def test_progress_lines_and_bars(tmp_path: Path) -> None:
    run, _ = prepared("head", 0, 20, tmp_path)
    console = Console(width=120, force_terminal=False)
    with console.capture() as captured:
        ProgressLines(console).adaptkit_epoch_ended(run, epoch(1, 0.75))
        ProgressLines(console).adaptkit_epoch_ended(run, epoch(2, None))
    assert captured.get().splitlines() == [
        "[head seed=0] epoch 1/2  loss 1.000  train 50.0 %  target 75.0 %  1.50 s + 0.50 s evaluation",
        "[head seed=0] epoch 2/2  loss 0.500  train 50.0 %  1.50 s + 0.50 s evaluation",
    ]
    bars = ProgressBars(console)
    bars.adaptkit_run_started(RunStart("base", "base", {"dataset": "none"}, {}), nn.Identity())
    assert bars.progress.tasks == []


def test_bar_of_a_run_with_folds(tmp_path: Path) -> None:
    run, _ = prepared("head", 0, 20, tmp_path)
    run = replace(run, folds=3)
    bars = ProgressBars(Console(width=120, force_terminal=False, quiet=True))
    bars.adaptkit_run_started(run, nn.Identity())
    shown = []
    for fold, number in ((0, 1), (0, 2), (1, 1), (2, 2), (None, 1), (None, 2)):
        bars.adaptkit_epoch_ended(run, replace(epoch(number, 0.75), fold=fold))
        (task,) = bars.progress.tasks
        shown.append((task.description, task.completed, task.total))
    bars.close()
    assert shown == [
        ("head seed=0 fold 1/3", 1, 6),
        ("head seed=0 fold 1/3", 2, 6),
        ("head seed=0 fold 2/3", 3, 6),
        ("head seed=0 fold 3/3", 6, 6),
        ("head seed=0", 6, 6),
        ("head seed=0", 6, 6),
    ]


@pytest.mark.slow
def test_artifacts_of_a_thousand_classes(three: Three, tmp_path: Path) -> None:
    names = [f"{number:04} " + "a very long name of a class, with its Latin one" for number in range(1000)]
    run, result = prepared("head", 0, 600, tmp_path, names, images=2000)
    started = time.process_time()
    (run_id,) = record(three.uri, (run, result), experiment="many")
    assert time.process_time() - started < 5
    client = MlflowClient(tracking_uri=three.uri)
    report = json.loads(Path(client.download_artifacts(run_id, "classification_report_shifted.json")).read_text())
    assert len(report) == 1004 and list(report["classes"]) == names
    height, width, _ = imread(client.download_artifacts(run_id, "confusion_shifted.png")).shape
    assert max(height, width) < 1400


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_artifacts_with_odd_class_names(tmp_path: Path) -> None:
    names = ("\u6570\u636e", "$x_{$", "a\tb", "<b>", "\\alpha")
    run, result = prepared("head", 0, 20, tmp_path, names)
    write_artifacts(tmp_path, run, result)
    assert {"confusion_shifted.png", "samples.png", "predictions.csv"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_comparison_of_a_thousand_classes(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(1000)]
    collector = Collector()
    for strategy, wrong in (("full", 100), ("head", 700)):
        for seed in range(2):
            run, result = prepared(strategy, seed, wrong, tmp_path, names, images=2000)
            collector.adaptkit_run_ended(run, result, nn.Identity())
    found = judge_runs(collector.runs({}))
    comparison: Comparison = found.comparisons[0]
    assert [len(arm.confusion) for arm in comparison.arms] == [0, 0]
    assert len(found.to_json()) < 400_000
    table = class_scores(comparison)
    assert (table.title, len(table.rows)) == ("F1 of classes (%)", 50)
    assert table.note.endswith("The 50 of 1,000 classes on which the strategies differ most.")
    drawings = {drawing.stem: drawing for drawing in draw_comparison(comparison)}
    panel = drawings["confusion_differences"].figure.axes[0]
    assert len(panel.get_xticklabels()) == 15
    assert len(drawings["class_f1"].figure.axes[0].get_xticklabels()) == 20
