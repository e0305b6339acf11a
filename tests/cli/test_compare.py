"""`adaptkit compare`: selection of runs, statistics, printed results, and invalid input."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import Result
from mlflow import MlflowClient
from numpy.typing import NDArray
from scipy import stats
from support.experiments import TINY, Tracked
from support.fabrication import BASE, DATA, IMAGES, fabricate
from support.servers import mlflow_ui

import adaptkit
from adaptkit.tracking import search

Cli = Callable[..., Result]

TWIN = """
from adaptkit import hookimpl
from adaptkit.strategies.head import Head

class Twin(Head):
    name = "twin"

@hookimpl
def adaptkit_strategies():
    return [Twin]
"""


@pytest.fixture
def uri(store: Path) -> str:
    return f"sqlite:///{store}"


def compared(cli: Cli, *arguments: str) -> dict[str, Any]:
    result = cli("compare", "--no-track", "--json", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(cli: Cli, *arguments: str) -> list[str]:
    result = cli("compare", "--no-track", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return [line.removeprefix("Error: ") for line in result.stderr.splitlines()]


def record_runs(uri: str, strategy: str, wrong: list[int], **others: Any) -> list[str]:
    """Record one run per seed. `wrong` is the number of wrong predictions of each."""
    return [fabricate(uri, strategy, seed, range(count), **others) for seed, count in enumerate(wrong)]


def right_of(counts: Sequence[int]) -> NDArray[numpy.float64]:
    """Return which test images are right in runs with these numbers of wrong ones, `[runs, images]`."""
    return numpy.stack([numpy.arange(IMAGES) >= count for count in counts]).astype(float)


def error_of(values: NDArray[numpy.float64]) -> tuple[float, float]:
    """Return the standard error of the mean over runs and images, with its degrees of freedom."""
    over_runs = values.mean(1).var(ddof=1) / len(values)
    over_images = max(values.mean(0).var(ddof=1) / IMAGES, IMAGES**-2)
    df = (over_runs + over_images) ** 2 / (over_runs**2 / (len(values) - 1) + over_images**2 / (IMAGES - 1))
    return math.sqrt(over_runs + over_images), float(df)


def test_json_keys_and_numbers(cli: Cli, uri: str) -> None:
    wrong = {"good": [10, 14, 11, 12, 9], "poor": [30, 37, 30, 33, 28]}
    for strategy, counts in wrong.items():
        record_runs(uri, strategy, counts)
    found = compared(cli)
    assert (found["metric"], found["margin"]) == ("final/shifted_accuracy", 0.01)
    assert [arm["name"] for arm in found["arms"]] == ["good", "poor"]
    right = {name: right_of(counts) for name, counts in wrong.items()}
    for arm in found["arms"]:
        values = right[arm["name"]].mean(1)
        error, df = error_of(right[arm["name"]])
        half = stats.t.ppf(0.975, df) * error
        assert arm["n"] == 5
        assert [arm[key] for key in ("mean", "low", "high", "sd", "df")] == pytest.approx(
            [values.mean(), values.mean() - half, values.mean() + half, values.std(ddof=1), df]
        )
    (pair,) = found["pairs"]
    error, df = error_of(right["good"] - right["poor"])
    mean, half = (right["good"] - right["poor"]).mean(), stats.t.ppf(0.975, df) * error
    p = 2 * stats.t.sf(mean / error, df)
    assert (pair["a"], pair["b"], pair["n"], pair["verdict"]) == ("good", "poor", 5, "better")
    # Runs of adaptkit 0.1 have no protocol: their draws overlap.
    assert (pair["protocol"], pair["groups"], pair["only_models"]) == ("overlapping", None, False)
    assert [pair[key] for key in ("p", "p_unadjusted", "low", "high", "df")] == pytest.approx(
        [p, p, mean - half, mean + half, df]
    )
    gone = {"image_low", "image_high", "seeds_verdict", "images_needed", "test"}
    assert not gone & set(pair)
    assert pair["disagreement"] == pytest.approx(sum(b - a for a, b in zip(*wrong.values(), strict=True)) / 5 / IMAGES)
    assert found["sentences"][0].startswith("In target accuracy, good is better than poor by 10.2 points [")
    assert found["sentences"][-1] == (
        "This holds for this base, models trained on 50 images of this pool of 200, and new test images of letters "
        "under this shift; 200 were measured."
    )


@pytest.mark.slow
def test_equal_strategies_tie(cli: Cli, store: Path, own_folder: Path) -> None:
    (own_folder / "twin.py").write_text(TWIN)
    cli("run", "-s", "head", "-s", "twin", "--seeds", "0-1", *TINY, "--plugin", "twin.py", "-q")
    (pair,) = compared(cli)["pairs"]
    assert [pair[key] for key in ("verdict", "difference", "p", "disagreement")] == ["undecided", 0, 1, 0]
    # 100 images without a difference do not show that there is none on others: the error is that of one image.
    assert pair["high"] == -pair["low"] == pytest.approx(stats.t.ppf(0.975, 99) / 100)
    found = compared(cli, "--margin", "2")
    assert found["pairs"][0]["verdict"] == "tie"
    assert found["sentences"][0].startswith(
        "In target accuracy, head and twin are tied within ±2 points: they differ by 0.0 points [-2.0, 2.0] (p = 1.00)."
    )


def test_equal_differences_between_seeds(cli: Cli, uri: str) -> None:
    record_runs(uri, "good", [10, 14, 12])
    record_runs(uri, "poor", [40, 44, 42])
    (pair,) = compared(cli)["pairs"]
    # Equal over seeds, so that all uncertainty is that of the test images.
    error, df = error_of(right_of([10, 14, 12]) - right_of([40, 44, 42]))
    assert pair["sd"] == pytest.approx(0, abs=1e-12)
    assert pair["p"] == pytest.approx(2 * stats.t.sf(0.15 / error, df)) and pair["p"] > 0
    assert pair["high"] - pair["low"] == pytest.approx(2 * stats.t.ppf(0.975, df) * error)


def test_one_run_is_about_the_trained_models(cli: Cli, uri: str) -> None:
    fabricate(uri, "good", 0, range(10))
    fabricate(uri, "poor", 0, range(5, 45))
    found = compared(cli)
    (pair,) = found["pairs"]
    # 5 images are wrong only for the good strategy, 35 only for the poor one.
    assert (pair["n"], pair["verdict"], pair["only_models"]) == (1, "undecided", True)
    values = numpy.repeat([1, -1, 0], [35, 5, 160])
    assert pair["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert found["sentences"][0].startswith(
        "In target accuracy, these two trained models differ: that of good is ahead of that of poor by 15.0 points ["
    )
    assert found["sentences"][1].startswith("One run of each strategy shows nothing about the strategies")
    assert found["sentences"][-1].startswith("This holds for these trained models (50 labelled images) and new test")
    assert not any("better" in sentence or "must choose" in sentence for sentence in found["sentences"][:-2])
    assert found["arms"][1]["dominated_by"]["params/trainable"] == []


def test_one_run_without_a_difference(cli: Cli, uri: str) -> None:
    fabricate(uri, "one", 0, range(10))
    fabricate(uri, "other", 0, range(11))
    found = compared(cli)
    assert found["sentences"][0].startswith(
        "In target accuracy, the trained models of one and other are not shown to differ: one is ahead by 0.5 points ["
    )


def test_seeds_needed(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30, 25])
    record_runs(uri, "other", [27, 28, 31])
    found = compared(cli)
    (pair,) = found["pairs"]
    assert pair["verdict"] == "undecided"
    d = right_of([20, 30, 25]) - right_of([27, 28, 31])
    over_seeds, over_images = d.mean(1).var(ddof=1), d.mean(0).var(ddof=1) / IMAGES

    def shows(count: int) -> bool:
        variance = over_seeds / count + over_images
        df = variance**2 / ((over_seeds / count) ** 2 / (count - 1) + over_images**2 / (IMAGES - 1))
        return bool(d.mean() / math.sqrt(variance) > stats.t.ppf(0.975, df))

    needed = next(count for count in range(4, 101) if shows(count))
    assert pair["seeds_needed"] == needed
    assert found["sentences"][0].endswith(
        f": undecided. If the difference stays the same, about {needed - 3} more seeds ({needed} in all) would show it "
        "with an even chance."
    )


def test_test_images_needed(cli: Cli, uri: str) -> None:
    # The difference is always the same two images: no number of seeds tells whether it is there on others.
    record_runs(uri, "one", [20] * 5)
    record_runs(uri, "other", [22] * 5)
    found = compared(cli)
    (pair,) = found["pairs"]
    assert (pair["verdict"], pair["seeds_needed"]) == ("undecided", None)
    t = stats.t.ppf(0.975, pair["df"])
    d = numpy.repeat([1.0, 0.0], [2, 198])
    assert pair["test_images_needed"] == math.ceil(d.var(ddof=1) * (t / 0.01) ** 2)
    assert "more test images (" in found["sentences"][0]
    assert found["arms"][0]["dominated_by"]["params/trainable"] == []


def test_choice_without_a_best_strategy(cli: Cli, uri: str) -> None:
    record_runs(uri, "large", [20, 24, 18], metrics={"params/trainable": 900.0})
    record_runs(uri, "small", [22, 23, 24], metrics={"params/trainable": 90.0})
    record_runs(uri, "poor", [80, 85, 81], metrics={"params/trainable": 9.0})
    found = compared(cli)
    (large_small,) = [pair for pair in found["pairs"] if pair["b"] == "small"]
    assert large_small["verdict"] == "undecided"
    (sentence,) = [sentence for sentence in found["sentences"] if sentence.startswith("If you must choose now")]
    # `poor` is shown to be worse, although it is cheaper.
    assert sentence == (
        "If you must choose now: of the strategies that are not shown to be worse than large, which has the best mean, "
        "small trains the fewest parameters (90). This choice costs at most "
        f"{100 * large_small['high']:.1f} points (upper end of the 95 % interval)."
    )
    comparison = adaptkit.compare(tracking_uri=uri, track=False)[0]
    assert comparison.choice is not None and (comparison.choice.name, comparison.choice.best) == ("small", "large")
    sizes = sorted(pair["detectable"] for pair in found["pairs"])
    assert f"finds a true difference of {100 * sizes[1]:.1f} points with a probability of 80 %" in " ".join(
        found["sentences"]
    )


def test_wider_margin_makes_a_tie(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30, 25])
    record_runs(uri, "other", [27, 28, 31])
    found = compared(cli, "--margin", "30")
    assert (found["margin"], found["pairs"][0]["verdict"]) == (0.3, "tie")


def test_dominated_by_a_cheaper_better_or_tied_strategy(cli: Cli, uri: str) -> None:
    record_runs(uri, "big", [10, 12, 11], metrics={"params/trainable": 900, "size/adapter_bytes": 300})
    record_runs(uri, "small", [10, 12, 11], metrics={"params/trainable": 10})
    record_runs(uri, "poor", [60, 64, 61], metrics={"params/trainable": 500})
    arms = {arm["name"]: arm for arm in compared(cli)["arms"]}
    assert arms["big"]["dominated_by"] == {
        "params/trainable": ["small"],
        "size/adapter_bytes": [],
        "time/train_seconds": [],
        "memory/peak_bytes": [],
        "time/inference_ratio": [],
    }
    assert arms["small"]["dominated_by"]["size/adapter_bytes"] == ["big"]
    assert arms["poor"]["dominated_by"]["params/trainable"] == ["small"]


def test_undecided_pair_does_not_dominate(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30, 25], metrics={"params/trainable": 10})
    record_runs(uri, "other", [27, 28, 31], metrics={"params/trainable": 20})
    assert all(arm["dominated_by"]["params/trainable"] == [] for arm in compared(cli)["arms"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tags": {"adaptkit.base_fingerprint": "c" * 64}}, "base bbbbbbbb (small_cnn)"),
        ({"tags": {"adaptkit.data_fingerprint": "e" * 64}}, "data dddddddd (letters, shift noise=0.3)"),
        ({"params": {"shots": "10"}}, "50 labelled images per class"),
    ],
)
def test_other_bases_data_and_shots_are_separate(cli: Cli, uri: str, change: dict[str, Any], reason: str) -> None:
    record_runs(uri, "one", [20, 30, 25])
    record_runs(uri, "other", [50, 61, 56])
    record_runs(uri, "one", [10, 11], **change)
    record_runs(uri, "other", [40, 42], **change)
    found = compared(cli)
    assert [(pair["comparison"], pair["n"]) for pair in found["pairs"]] == [(1, 3), (2, 2)]
    apart = "compared separately, because the runs differ in more than the strategy: "
    assert found["comparisons"][0]["reason"] == apart + reason
    printed = cli("compare", "--no-track").stdout
    assert "Comparison 2 of 2" in printed and apart + reason in printed


def test_names_have_the_options_that_differ(cli: Cli, uri: str) -> None:
    for rank, wrong in (("2", [30, 33]), ("8", [20, 22])):
        record_runs(uri, "lora", wrong, options={"rank": rank, "alpha": "16.0"}, arm=f"lora rank={rank}")
    record_runs(uri, "lora", [10, 13], options={"rank": "8", "alpha": "16.0"}, params={"lr": "0.01"})
    record_runs(uri, "head", [40, 44], arm="head bias=False", options={"bias": "False"})
    assert [arm["name"] for arm in compared(cli)["arms"]] == [
        "lora rank=8 lr=0.01", "lora rank=8 lr=0.001", "lora rank=2 lr=0.001", "head bias=False",
    ]  # fmt: skip


def test_failed_killed_and_repeated_runs_are_excluded(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30, 25])
    record_runs(uri, "other", [50, 61, 56])
    fabricate(uri, "other", 3, [], status="FAILED")
    fabricate(uri, "other", 4, [], status="KILLED")
    # The id of a process that no longer exists.
    fabricate(uri, "other", 5, [], status="RUNNING", tags={"adaptkit.pid": "4194305"})
    (again,) = [fabricate(uri, "one", 1, range(40))]
    found = compared(cli)
    assert [arm["n"] for arm in found["arms"]] == [3, 3]
    assert again in [run["run_id"] for run in found["arms"][0]["runs"]]
    assert sorted((run["name"], run["status"]) for run in found["left_out"]) == [
        ("one seed=1", "superseded"),
        ("other seed=3", "failed"),
        ("other seed=4", "killed"),
        ("other seed=5", "killed"),
    ]
    printed = cli("compare", "--no-track").stdout
    assert "Note: 1 failed run left out: other seed=3." in printed
    assert "Note: 2 killed runs left out: other seed=4 and other seed=5 (its process has ended)." in printed


def test_runs_of_other_tools_are_ignored(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30])
    record_runs(uri, "other", [50, 61])
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("adaptkit")
    assert experiment is not None
    client.create_run(experiment.experiment_id, run_name="somebody else's")
    fabricate(uri, "tuned", 0, range(3), tags={"adaptkit.kind": "tuning"})
    found = compared(cli)
    assert [arm["name"] for arm in found["arms"]] == ["one", "other"] and found["left_out"] == []


def test_where_filter(cli: Cli, uri: str) -> None:
    for strategy, wrong in (("one", 20), ("other", 40), ("third", 60)):
        record_runs(uri, strategy, [wrong, wrong + 2], params={"shift.noise": "0.3"})

    def names(where: str) -> list[str]:
        return [arm["name"] for arm in compared(cli, "--where", where)["arms"]]

    assert names("strategy != 'third'") == ["one", "other"]
    assert names("metrics.`final/shifted_accuracy` < 0.85") == ["other", "third"]
    assert names("strategy LIKE 'o%' and shift.noise = '0.3' AND attributes.status = 'FINISHED'") == ["one", "other"]
    assert refused(cli, "--where", "strategy = 'nobody'") == [
        "no run of experiment 'adaptkit' matches --where \"strategy = 'nobody'\""
    ]
    (line,) = refused(cli, "--where", "strategy ~ 3")
    assert line.startswith("--where: Invalid")
    for unquoted in ("lr > 0.001", "strategy = one"):
        (line,) = refused(cli, "--where", unquoted)
        assert line.startswith("--where: ") and line.endswith("; quote the value, as in lr = '0.001'")


def test_no_runs(cli: Cli, uri: str) -> None:
    MlflowClient(tracking_uri=uri).create_experiment("empty")
    nothing = (
        f"no adaptation runs in experiment 'empty' of {Path.cwd() / 'mlflow.db'}: `adaptkit run -s NAME` makes one"
    )
    assert refused(cli, "--experiment", "empty") == [nothing]
    assert refused(cli, "--experiment", "empty", "--where", "lr = '0.001'") == [nothing]


def test_more_than_one_page_of_runs(cli: Cli, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record_runs(uri, "one", [20, 30, 25])
    record_runs(uri, "other", [50, 61, 56])
    monkeypatch.setattr(search, "PAGE", 2)
    assert [arm["n"] for arm in compared(cli)["arms"]] == [3, 3]


def test_runs_by_id_and_parent_id(cli: Cli, uri: str) -> None:
    parent = fabricate(uri, "sweep", 9, [], tags={"adaptkit.kind": "sweep"})
    one = record_runs(uri, "one", [20, 30, 25], tags={"mlflow.parentRunId": parent})
    other = record_runs(uri, "other", [50, 61, 56], tags={"mlflow.parentRunId": parent})
    record_runs(uri, "third", [70, 71])
    assert [arm["name"] for arm in compared(cli, parent)["arms"]] == ["one", "other"]
    assert [arm["n"] for arm in compared(cli, *one[:2], other[0])["arms"]] == [2, 1]


def test_strategies_without_shared_seeds(cli: Cli, uri: str) -> None:
    fabricate(uri, "one", 0, range(10))
    fabricate(uri, "other", 1, range(50))
    found = compared(cli)
    assert (found["pairs"][0]["n"], found["pairs"][0]["verdict"]) == (0, "undecided")
    assert found["sentences"][0] == (
        "In target accuracy, one and other cannot be paired: they share no seed. Run both with the same seeds."
    )
    assert found["comparisons"][0]["notes"][0] == (
        "one has no finished run of seed 1: its pairs use only the seeds that both strategies have."
    )


def test_metric_has_its_unit_and_direction(cli: Cli, uri: str) -> None:
    record_runs(uri, "slow", [20, 21, 22], metrics={"time/train_seconds": 9.0})
    for seed, seconds in enumerate((4.0, 4.5, 4.1)):
        fabricate(uri, "fast", seed, range(20), metrics={"time/train_seconds": seconds})
    found = compared(cli, "--metric", "time/train_seconds")
    assert [arm["name"] for arm in found["arms"]] == ["fast", "slow"]
    (pair,) = found["pairs"]
    assert pair["verdict"] == "better" and pair["difference"] == pytest.approx(-4.8)
    assert found["sentences"][0].startswith("By training time, fast is better than slow by 4.800 s [4.143, 5.457] (p =")


def test_bytes_have_no_decimals(cli: Cli, uri: str) -> None:
    record_runs(uri, "big", [20, 21], metrics={"memory/peak_bytes": 4096})
    record_runs(uri, "small", [20, 21], metrics={"memory/peak_bytes": 1024})
    sentence = compared(cli, "--metric", "memory/peak_bytes")["sentences"][0]
    assert sentence.startswith("By peak memory, small is better than big by 3,072 bytes [3,072, 3,072] (p < 0.001)")


def test_times_of_concurrent_runs_are_not_ranked(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30, 25], metrics={"time/train_seconds": 3.0})
    record_runs(uri, "other", [50, 61, 56], tags={"adaptkit.timing": "shared"})
    found = compared(cli)
    assert found["pairs"][0]["seconds_ratio"] is None and "took" not in found["sentences"][0]
    assert found["arms"][1]["dominated_by"]["time/train_seconds"] == []
    assert "not ranked" in found["comparisons"][0]["notes"][0]


def test_note_on_unequal_epochs(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30])
    record_runs(uri, "other", [50, 61], params={"epochs": "10"})
    assert compared(cli)["comparisons"][0]["notes"] == [
        "The strategies were trained with unequal epochs (2 and 10 epochs): they share only the drawn images."
    ]


def test_bad_input(cli: Cli, uri: str, own_folder: Path) -> None:
    here = own_folder / "mlflow.db"
    assert refused(cli) == [f"--experiment: no experiment 'adaptkit' in {here}; known: template"]
    one = record_runs(uri, "one", [20, 30])
    assert refused(cli) == [
        "only one strategy to compare: one (2 seeds); run another strategy with the same seeds, as in "
        "`adaptkit run -s full -s head --seeds 0-4`"
    ]
    record_runs(uri, "other", [50, 61])
    assert refused(cli, "--metric", "final/shifted_acuracy") == [
        "--metric: no run has a metric 'final/shifted_acuracy'; did you mean 'accuracy'?"
    ]
    assert refused(cli, "--metric", "shifted_macro_f1") == [
        "--metric: no run has a metric 'shifted_macro_f1'; did you mean 'macro_f1'?"
    ]
    assert refused(cli, "--experiment", "adaptkitt") == [
        f"--experiment: no experiment 'adaptkitt' in {here}; did you mean 'adaptkit'?"
    ]
    assert refused(cli, "--experiment", "", "--metric", "") == [
        f"{option}: the value is empty; leave the option out for its default" for option in ("--experiment", "--metric")
    ]
    assert refused(cli, "nothing") == [f"no run 'nothing' in {here}; `adaptkit ui` shows the ids of its runs"]
    assert refused(cli, one[0], "--where", "seed = '0'", "--margin", "-1") == [
        "select runs by their ids, or with --experiment and --where, not both",
        "--margin: must be at least 0, not -1",
    ]
    MlflowClient(tracking_uri=uri).delete_run(one[0])
    assert refused(cli, one[0]) == [f"run {one[0]} was deleted; `mlflow runs restore --run-id {one[0]}` brings it back"]
    tuned = fabricate(uri, "tuned", 0, [], tags={"adaptkit.kind": "tuning"})
    assert refused(cli, tuned) == [f"run {tuned} is of kind tuning; only adaptation runs can be compared"]


def test_failed_runs_leave_one_strategy(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30])
    fabricate(uri, "other", 0, [], status="FAILED")
    assert refused(cli) == [
        "only one strategy to compare: one (2 seeds); left out: other seed=0 (failed); run another strategy with the "
        "same seeds, as in `adaptkit run -s full -s head --seeds 0-4`"
    ]


def test_missing_artifact(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30])
    record_runs(uri, "other", [50])
    lost = fabricate(uri, "other", 1, range(40), artifacts=["adapter/adapter.json"])
    assert refused(cli) == [f"other seed=1 ({lost}) has no artifact predictions.csv"]


def test_damaged_artifact(cli: Cli, uri: str, own_folder: Path) -> None:
    record_runs(uri, "one", [20, 30])
    hurt, _ = record_runs(uri, "other", [50, 61])
    (path,) = own_folder.glob(f"mlruns/*/{hurt}/artifacts/predictions.csv")
    path.write_text("test_set,image\n")
    assert refused(cli) == [
        f"other seed=0 ({hurt}): its predictions cannot be read: ValueError: not a table of predictions"
    ]


def test_running_run_is_noted(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30])
    record_runs(uri, "other", [50, 61])
    going = fabricate(uri, "other", 2, [], status="RUNNING", tags={"adaptkit.pid": str(os.getppid())})
    assert refused(cli) == [
        f"other seed=2 ({going}) is still running: wait for it, or leave it out with --where \"status != 'RUNNING'\""
    ]
    assert len(compared(cli, "--where", "status != 'RUNNING'")["pairs"]) == 1


def test_predictions_of_other_test_images(cli: Cli, uri: str, own_folder: Path) -> None:
    record_runs(uri, "one", [20, 30])
    other, _ = record_runs(uri, "other", [50, 61])
    (path,) = own_folder.glob(f"mlruns/*/{other}/artifacts/predictions.csv")
    path.write_text(path.read_text().replace("\n7,shifted,", "\n777,shifted,"))
    assert refused(cli) == ["other seed=0 and one seed=0 were tested on different target test images"]


def test_missing_store_or_server(cli: Cli, own_folder: Path) -> None:
    assert refused(cli) == [
        f"no tracking store at {own_folder / 'mlflow.db'}: create one with "
        "`adaptkit run`, or name one with --tracking-uri"
    ]
    assert not list(own_folder.iterdir())
    (line,) = refused(cli, "--tracking-uri", "http://127.0.0.1:9")
    assert line == "cannot reach the MLflow server at http://127.0.0.1:9: Connection refused"


@pytest.mark.slow
def test_run_and_compare_agree(cli: Cli, store: Path) -> None:
    ran = json.loads(cli("run", "-s", "lora", "-s", "head", "--seeds", "0-1", *TINY, "--json").stdout)
    read = compared(cli)
    # MLflow stores parameters as text, sorted by name.
    for key in ("metric", "margin", "sentences", "left_out", "notes", "pairs"):
        assert read[key] == ran["comparison"][key], key
    for arm, other in zip(read["arms"], ran["comparison"]["arms"], strict=True):
        assert arm == other
    ids = {run["run_id"] for run in ran["runs"]}
    assert {run["run_id"] for arm in read["arms"] for run in arm["runs"]} == ids


def test_python_and_command_agree(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30, 25])
    record_runs(uri, "other", [50, 61, 56])
    findings = adaptkit.compare(where="strategy != 'nobody'", track=False)
    assert findings.to_dict() == compared(cli)
    assert isinstance(findings, adaptkit.Comparisons)
    assert (findings[0].base_fingerprint, findings[0].data_fingerprint) == (BASE, DATA)
    with pytest.raises(adaptkit.BadInput, match="no run has a metric"):
        adaptkit.compare(metric="none", track=False)


@pytest.mark.slow
def test_quiet_prints_only_the_results(cli: Cli, uri: str) -> None:
    record_runs(uri, "one", [20, 30, 25])
    record_runs(uri, "other", [50, 61, 56])
    loud, quiet = cli("compare", "--output", "report"), cli("compare", "--output", "report", "-q")
    assert (quiet.exit_code, quiet.stderr, quiet.stdout) == (0, "", loud.stdout)
    assert "Report: " in loud.stderr and "In MLflow: " in loud.stderr


def test_printed_tables_and_sentences(cli: Cli, tracked: Tracked) -> None:
    result = cli("compare", "--no-track", "--tracking-uri", tracked.uri)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["strategy", "target", "gain", "source", "retention", "trainable", "share", "seconds"] in lines
    assert ["pair", "difference", "p", "runs", "disagree", "verdict"] in lines
    assert ["strategy", "adapter", "s/epoch", "memory", "inference", "dominated", "by"] in lines
    assert {"zero-shot", "lora", "head"} <= {line[0] for line in lines if line}
    assert "\x1b" not in result.stdout


@pytest.mark.slow
def test_server(cli: Cli, uri: str, own_folder: Path) -> None:
    record_runs(uri, "one", [20, 30, 25])
    record_runs(uri, "other", [50, 61, 56])
    there = compared(cli)
    with mlflow_ui(own_folder) as page:
        assert compared(cli, "--tracking-uri", page.address) == there
        result = cli("compare", "--tracking-uri", page.address)
        assert result.exit_code == 0 and result.stderr.startswith(f"In MLflow: {page.address}/#/")
        run = page.runs()["compare one, other"]
        assert run["info"]["status"] == "FINISHED"
        served = page.get("get-artifact", run_id=run["info"]["run_id"], path="comparison.json").json()
    assert served == there
