"""`adaptkit run` and `adaptkit.run`: output, precedence of settings, and repeatability; without tracking."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from support.experiments import BITFIT, TINY, TINY_SETTINGS

import adaptkit
from adaptkit.events import Epoch, RunResult, RunStart

Cli = Callable[..., Result]


class Watcher:
    """Collect the events of runs."""

    def __init__(self) -> None:
        self.runs: list[RunStart] = []
        self.results: list[RunResult] = []
        self.adapters: list[bytes] = []
        self.batches: list[tuple[torch.Tensor, ...]] = []

    @adaptkit.hookimpl
    def adaptkit_run_started(self, run: RunStart, model: torch.nn.Module) -> None:
        seen: list[torch.Tensor] = []
        self.runs.append(run)
        if run.kind == "adaptation":
            model.register_forward_pre_hook(
                lambda module, inputs: seen.append(inputs[0].clone()) if torch.is_grad_enabled() else None
            )
            self.seen = seen

    @adaptkit.hookimpl
    def adaptkit_run_ended(self, run: RunStart, result: RunResult, model: torch.nn.Module) -> None:
        self.results.append(result)
        if run.kind == "adaptation":
            self.adapters.append(result.files["adapter/adapter.safetensors"].read_bytes())
            self.batches.append(tuple(self.seen))


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith(("time/", "memory/"))}


def learning(epochs: tuple[Epoch, ...]) -> list[tuple[Any, ...]]:
    return [(e.number, e.loss, e.train_accuracy, e.test_accuracy, e.shifted_accuracy) for e in epochs]


#: metrics of predictions that every run without groups has
OF_PREDICTIONS = (
    *("accuracy", "auroc", "average_precision", "balanced_accuracy", "brier", "ece", "kappa", "macro_f1", "nll"),
    *("weighted_kappa", "worst_class_recall"),
)


def test_results_and_progress(cli: Cli, own_folder: Path) -> None:
    result = cli("run", "-s", "lora", "-s", "head", "--seeds", "0-1", *TINY, "--no-track")
    assert result.exit_code == 0
    heading, rule, *rows = [line for line in result.stdout.splitlines() if line.strip()]
    assert heading.split() == ["strategy", "target", "gain", "source", "retention", "trainable", "share", "seconds"]
    assert set(rule.strip()) == {"─"}
    assert [row.split()[0] for row in rows[:3]] == ["zero-shot", "head", "lora"]
    assert rows[1].count("±") == 5
    assert rows[3].split() == ["constant", "10.0"]
    assert rows[4] == (
        "accuracies in %, gain and retention in points; mean of 2 runs ± 95 % interval".ljust(len(rows[4]))
    )
    lines = result.stderr.splitlines()
    assert lines[0] == "Source   mnist5k: 200 training, 100 test"
    assert lines[1] == "Target   mnist5k under rotate=45,noise=0.3: 50 training (drawn from 100), 100 test"
    assert lines[2] == (
        "Classes  10 with 5 images each in a training, 10 evaluated; always answering 0 is right for 10.0 %"
    )
    assert [line.split("] epoch")[0] for line in lines if "] epoch" in line and "base" not in line] == [
        f"[{name} seed={seed}" for seed in (0, 1) for name in ("lora", "head") for _ in range(2)
    ]
    assert "\x1b" not in result.stdout + result.stderr
    assert list(own_folder.iterdir()) == []


def test_quiet(cli: Cli) -> None:
    result = cli("run", "-s", "head", *TINY, "--no-track", "-q")
    assert result.stderr == ""
    assert "head" in result.stdout


def test_json(cli: Cli) -> None:
    result = cli("run", "-s", "lora", "-o", "rank=2", *TINY, "--no-track", "--json")
    outcome = json.loads(result.stdout)
    assert list(outcome) == [
        *("plan", "base", "runs", "data_fingerprint", "refit", "refit_error"),
        *(
            "experiment",
            "tracking_uri",
            "ui_command",
            "ui_url",
            "notices",
            "tracking_error",
            "parent_run_id",
            "comparison",
        ),
    ]
    assert outcome["base"]["test_accuracy"] == outcome["runs"][0]["metrics"]["final/base_test_accuracy"]
    (run,) = outcome["runs"]
    assert (run["strategy"], run["label"], run["seed"], run["status"]) == ("lora", "lora rank=2", 0, "finished")
    assert run["options"] == {
        "rank": 2,
        "alpha": 16.0,
        "dropout": 0.0,
        "targets": "auto",
        "rslora": False,
        "dora": False,
        "plus": 1.0,
        "train_head": False,
        "bias": "none",
    }
    assert list(run["metrics"]) == [
        "final/test_accuracy",
        *(f"final/shifted_{name}" for name in OF_PREDICTIONS),
        "final/zero_shot_accuracy",
        "final/base_test_accuracy",
        "final/gain",
        "final/retention",
        "params/total",
        "params/trainable",
        "params/trainable_fraction",
        "params/trainable_head",
        "params/trainable_adapter",
        "params/trainable_base",
        "size/adapter_bytes",
        "memory/peak_bytes",
        "time/train_seconds",
        "time/evaluation_seconds",
        "time/inference_ratio",
    ]
    assert run["metrics"]["params/trainable"] == 2 * (3136 + 128) + 2 * (128 + 10)
    assert [epoch["number"] for epoch in run["epochs"]] == [1, 2]
    for epoch in run["epochs"]:
        assert 0 < epoch["evaluation_seconds"] < epoch["seconds"] <= epoch["cumulative_seconds"]


@pytest.mark.slow
def test_python_and_command_agree(cli: Cli) -> None:
    printed = json.loads(cli("run", "-s", "lora", "-o", "rank=2", *TINY, "--no-track", "--json").stdout)
    outcome = adaptkit.run("lora", options={"rank": 2}, settings=TINY_SETTINGS, track=False)
    assert isinstance(outcome, adaptkit.RunOutcome)
    assert timeless(dict(outcome.runs[0].metrics)) == timeless(printed["runs"][0]["metrics"])
    assert outcome.base.fingerprint == printed["base"]["fingerprint"]
    assert outcome.data_fingerprint == printed["data_fingerprint"]


@pytest.mark.slow
def test_repeat_is_identical() -> None:
    watchers, outcomes = [], []
    for seed in (0, 0, 1):
        watcher = Watcher()
        settings = TINY_SETTINGS | {"lora.dropout": 0.2}
        outcomes.append(adaptkit.run("lora", seeds=seed, settings=settings, track=False, plugins=[watcher]))
        watchers.append(watcher)
    first, second, other = (outcome.runs[0] for outcome in outcomes)
    assert learning(first.epochs) == learning(second.epochs)
    assert timeless(dict(first.metrics)) == timeless(dict(second.metrics))
    assert watchers[0].adapters == watchers[1].adapters
    assert learning(first.epochs) != learning(other.epochs)
    assert watchers[0].adapters != watchers[2].adapters


@pytest.mark.slow
def test_strategies_of_a_seed_see_equal_batches() -> None:
    watcher = Watcher()
    adaptkit.run(
        ["full", "head", "lora", "scratch", "bitfit"],
        seeds="0-1",
        settings=TINY_SETTINGS | {"lora.dropout": 0.1},
        track=False,
        plugins=[watcher, BITFIT],
    )
    by_run = dict(zip([run.name for run in watcher.runs if run.kind == "adaptation"], watcher.batches, strict=True))
    for seed in (0, 1):
        full = by_run[f"full seed={seed}"]
        assert len(full) == 2 * 2  # 50 images, batches of 32, two epochs
        for name in ("head", "lora dropout=0.1", "scratch", "bitfit"):
            assert all(torch.equal(a, b) for a, b in zip(full, by_run[f"{name} seed={seed}"], strict=True))
    assert not torch.equal(by_run["full seed=0"][0], by_run["full seed=1"][0])
    # Each epoch draws new augmentations.
    assert not torch.equal(by_run["full seed=0"][0], by_run["full seed=0"][2])


@pytest.mark.slow
def test_random_numbers_of_plugins() -> None:
    class Drawing:
        @adaptkit.hookimpl
        def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
            torch.manual_seed(99)
            torch.rand(epoch.number)

    settings = TINY_SETTINGS | {"lora.dropout": 0.5}
    quiet = adaptkit.run("lora", settings=settings, track=False)
    drawing = adaptkit.run("lora", settings=settings, track=False, plugins=[Drawing()])
    assert learning(quiet.runs[0].epochs) == learning(drawing.runs[0].epochs)


def test_precedence_of_settings(cli: Cli, own_folder: Path) -> None:
    (own_folder / "c.yaml").write_text("preset: quick\nepochs: 7\nshots: 8\nbatch_size: 9\nstrategy: [head]\n")
    arguments = ("run", "--config", "c.yaml", "--set", "epochs=5", "--set", "shots=6", "--epochs", "4", "--dry-run")
    plan = json.loads(cli(*arguments, "--json").stdout)
    assert plan["epochs"] == 4  # option
    assert plan["drawn_images"] == 60  # --set
    assert [arm["strategy"] for arm in plan["arms"]] == ["head"]  # config
    assert plan["source_images"] == 1000  # preset
    assert plan["clean_test_images"] == 400
    assert plan["arms"][0]["lr"] == 0.01  # the strategy's default


def test_option_overrides_config_file(cli: Cli, own_folder: Path) -> None:
    for key, flag in (("strategy.rank", "lora.rank=4"), ("lora.rank", "rank=4"), ("strategy.rank", "rank=4")):
        (own_folder / "c.yaml").write_text(f"strategy: lora\n{key}: 8\n")
        plan = json.loads(cli("run", "--config", "c.yaml", "-o", flag, *TINY, "--dry-run", "--json").stdout)
        assert plan["arms"][0]["options"]["rank"] == 4


@pytest.mark.parametrize("content", ["shift: noise=0.2,rotate=10\n", "shift: {noise: 0.2, rotate: 10}\n"])
def test_order_and_amounts_of_shifts(cli: Cli, own_folder: Path, content: str) -> None:
    (own_folder / "c.yaml").write_text(content)
    arguments = ("run", "-s", "head", *TINY, "--config", "c.yaml", "--dry-run", "--json")
    assert json.loads(cli(*arguments).stdout)["shift"] == "noise=0.2,rotate=10"
    changed = cli(*arguments, "--set", "shift.noise=0.5", "--set", "shift.blur=1")
    assert json.loads(changed.stdout)["shift"] == "noise=0.5,rotate=10,blur=1"
    replaced = cli(*arguments, "--set", "shift.noise=0.5", "--shift", "contrast=0.5")
    assert json.loads(replaced.stdout)["shift"] == "contrast=0.5"


def test_dry_run(cli: Cli, own_folder: Path) -> None:
    cache = own_folder / "cache"
    result = cli("run", "-s", "lora", "-s", "full", *TINY, "--set", "base.seed=77", "--dry-run")
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines() if line.strip()]
    assert lines[3] == (
        "Base     small_cnn, 1 x 28 x 28 pixels, 10 classes, on cpu in fp32, inputs standardized by the source images; "
        "to be trained first"
    )
    assert lines[5].split() == ["strategy", "trainable", "head", "adapter", "base", "share", "learning", "rate"]
    assert lines[7].split() == ["lora", "27,216", "0", "27,216", "0", "6.06", "%", "0.005"]
    assert lines[8].split() == ["full", "421,642", "1,290", "0", "420,352", "100.00", "%", "0.0015"]
    assert lines[9] == "trainable = head + adapter (added) + base; size of the base: 421,642"
    assert lines[10].startswith("Estimated time: ") and lines[10].endswith(
        "of training and evaluation on this machine."
    )
    assert result.stderr == ""
    assert not cache.exists() and list(own_folder.iterdir()) == []
    again = json.loads(cli("run", "-s", "lora", *TINY, "--set", "base.seed=77", "--dry-run", "--json").stdout)
    assert again["base_cached"] is False and again["seconds"] > 0


@pytest.mark.slow
def test_digits_as_target(cli: Cli) -> None:
    outcome = json.loads(cli("run", "-s", "head", "--target", "digits", *TINY, "--no-track", "--json").stdout)
    assert (outcome["plan"]["target"], outcome["plan"]["shift"]) == ("digits", "none")
    shifted = json.loads(
        cli("run", "-s", "head", "--target", "digits", "--shift", "rotate=20", *TINY, "--no-track", "--json").stdout
    )
    assert shifted["plan"]["shift"] == "rotate=20"
    assert shifted["base"]["fingerprint"] == outcome["base"]["fingerprint"]
    assert shifted["data_fingerprint"] != outcome["data_fingerprint"]


def test_target_test_set_only_at_the_end() -> None:
    at_end = adaptkit.run("head", settings=TINY_SETTINGS, evaluate_shifted="end", track=False)
    each = adaptkit.run("head", settings=TINY_SETTINGS, track=False)
    assert [epoch.shifted_accuracy for epoch in at_end.runs[0].epochs] == [None, None]
    final = each.runs[0].epochs[-1].shifted_accuracy
    assert at_end.runs[0].metrics["final/shifted_accuracy"] == each.runs[0].metrics["final/shifted_accuracy"] == final


def test_preset_notebook(cli: Cli, own_folder: Path) -> None:
    from adaptkit.plugins.loading import load_plugins
    from adaptkit.settings.resolve import Layer, resolve

    layers = [Layer({"strategy": ["full", "head", "lora"], "preset": "notebook"})]
    request = resolve(layers, load_plugins())
    params = request.run_params(request.arms[2], 42)
    assert {key: params[key] for key in ("dataset", "shift", "lr", "batch_size", "epochs", "shots")} == {
        "dataset": "mnist",
        "shift": "rotate=25,noise=0.15",
        "lr": 0.001,
        "batch_size": 128,
        "epochs": 5,
        "shots": 200,
    }
    assert {key: value for key, value in params.items() if key.startswith(("base.", "split.", "strategy."))} == {
        "base.epochs": 5,
        "base.min_steps": "none",
        "base.augment": "none",
        "base.schedule": "constant",
        "base.clip": "none",
        "base.standardize": False,
        "base.lr": 0.001,
        "base.batch_size": 128,
        "base.mode": "train",
        "base.seed": 42,
        "split.seed": 42,
        "split.source": 20_000,
        "split.pool": 40_000,
        "split.test": 5_000,
        "split.sampling": "random",
        "split.file": "none",
        "strategy.rank": 8,
        "strategy.alpha": 16.0,
        "strategy.dropout": 0.0,
        "strategy.targets": "auto",
        "strategy.rslora": False,
        "strategy.dora": False,
        "strategy.plus": 1.0,
        "strategy.train_head": False,
        "strategy.bias": "none",
    }
    assert [arm.lr for arm in request.arms] == [0.001] * 3
    assert request.settings.seed == (42,) and request.settings.evaluate_shifted == "end"


@pytest.mark.slow
def test_bf16(cli: Cli) -> None:
    result = cli("run", "-s", "lora", "--precision", "bf16", *TINY, "--no-track", "-q")
    assert (result.exit_code, result.stderr) == (0, "")


def test_broken_torchvision(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    result = cli("run", "-s", "head", "--dataset", "mnist", "--no-track")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1 and "pip install" in result.stderr
    assert cli("run", "-s", "head", *TINY, "--no-track", "-q").exit_code == 0
