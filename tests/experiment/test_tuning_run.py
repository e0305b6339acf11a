"""Tuning runs: training and validation images, and that no test image is used."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.experiments import TINY_SETTINGS

from adaptkit.data.protocols import Labels, hold_back
from adaptkit.errors import BadInput
from adaptkit.events import Epoch, RunResult, RunStart
from adaptkit.experiment.adaptation import adapt_once
from adaptkit.experiment.base import obtain_base
from adaptkit.experiment.prepare import Experiment, draw_target, prepare
from adaptkit.experiment.stage import Stage, open_stage
from adaptkit.experiment.tuning_run import blinded, require_validation, tune_once
from adaptkit.hookspecs import hookimpl
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.system.core_sharing import Seat
from adaptkit.training.loop import VALIDATION


class Watcher:
    """Record the events of a tuning run."""

    def __init__(self) -> None:
        self.runs: list[RunStart] = []
        self.epochs: list[Epoch] = []
        self.results: list[RunResult] = []
        self.errors: list[BaseException] = []

    @hookimpl
    def adaptkit_run_started(self, run: RunStart, model: Any) -> None:
        self.runs.append(run)

    @hookimpl
    def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
        self.epochs.append(epoch)

    @hookimpl
    def adaptkit_run_ended(self, run: RunStart, result: RunResult, model: Any) -> None:
        self.results.append(result)

    @hookimpl
    def adaptkit_run_failed(self, run: RunStart, error: BaseException) -> None:
        self.errors.append(error)


class Unusable:
    """Images that raise an error when they are used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"attribute {name} of a test image was read")

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("a test image was read")


@contextmanager
def stage(
    *strategies: str, reuse: bool = True, plugins: Plugins | None = None, **more: Any
) -> Iterator[tuple[Stage, Watcher]]:
    plugins, watcher = plugins or load_plugins(), Watcher()
    request = resolve([Layer({"strategy": list(strategies), **TINY_SETTINGS, **more})], plugins)
    experiment = prepare(request)
    with Seat() as seat:
        base = obtain_base(experiment, plugins).base
        plugins.manager.register(watcher)
        yield open_stage(experiment, base, plugins=plugins, seat=seat, feature_cache=reuse), watcher


def without_tests(stage: Stage) -> Stage:
    """Return the stage with test sets that raise an error when they are used."""
    experiment: Experiment = stage.experiment
    nothing: Any = (Unusable(), Unusable())
    experiment = dataclasses.replace(experiment, clean=nothing, shifted=nothing)
    tests: Any = dict.fromkeys(stage.inputs.tests, Unusable())
    inputs = dataclasses.replace(stage.inputs, experiment=experiment, tests=tests)
    return dataclasses.replace(stage, experiment=experiment, inputs=inputs)


def test_validation_takes_a_fifth_of_each_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 3 + [3] * 2 + [4])
    classes = tuple("abcde")
    training, held = hold_back(Labels(labels, classes), seed=0)
    assert sorted([*training.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert Counter(labels[held].tolist()) == {0: 10, 1: 2, 2: 1, 3: 1}
    again = hold_back(Labels(labels, classes), seed=0)
    assert torch.equal(again[0], training) and torch.equal(again[1], held)
    assert not torch.equal(hold_back(Labels(labels, classes), seed=1)[1], held)


def test_validation_does_not_divide_groups() -> None:
    labels = torch.arange(60) % 3
    groups = tuple(f"group {number // 4}" for number in range(60))
    training, held = hold_back(Labels(labels, ("a", "b", "c"), groups), seed=0)
    assert sorted([*training.tolist(), *held.tolist()]) == list(range(60)) and len(held) == 12
    assert not {groups[index] for index in training} & {groups[index] for index in held}
    alone = hold_back(Labels(labels, ("a", "b", "c"), ("one",) * 60), seed=0)
    assert (len(alone[0]), len(alone[1])) == (60, 0)


def test_one_shot_cannot_be_tuned(own_folder: Path) -> None:
    with stage("head", shots=1) as (one, _), pytest.raises(BadInput, match="use at least 2 shots a class"):
        require_validation(one.experiment, 0)


def test_score_of_the_deciding_metric(own_folder: Path) -> None:
    with stage("head", metric=["nll"]) as (one, watcher):
        (arm,) = one.experiment.request.arms
        record = tune_once(without_tests(one), arm, 0)
    # The loss of the last epoch is the negative log-likelihood of the same images.
    assert record.metrics["validation/nll"] == pytest.approx(record.metrics["validation/loss"], rel=1e-5)
    assert watcher.results[0].metrics == {"validation/nll": record.metrics["validation/nll"]}


class Failing:
    """A metric that fails."""

    name, title, unit, higher_is_better = "failing", "failing", "", True

    def score(self, probabilities: Any, truth: Any, *, weights: Any = None, groups: Any = None) -> float:
        raise ZeroDivisionError("by design")


class FailingMetric:
    """A plugin with that metric."""

    @hookimpl
    def adaptkit_metrics(self) -> list[type]:
        return [Failing]


def test_metric_that_fails_is_named(own_folder: Path) -> None:
    plugins = load_plugins([], [FailingMetric()])
    with stage("head", plugins=plugins, metric=["failing"]) as (one, _):
        record = tune_once(one, one.experiment.request.arms[0], 0)
    assert record.status == "failed"
    assert str(record.error).startswith("metric failing fails in score()") and "by design" in str(record.error)


@pytest.mark.parametrize("reuse", [True, False])
def test_tuning_uses_no_test_image(own_folder: Path, reuse: bool) -> None:
    with stage("head", "lora", "full", reuse=reuse) as (one, watcher):
        for arm in one.experiment.request.arms:
            record = tune_once(without_tests(one), arm, 0)
            assert (record.status, record.error) == ("finished", None)
            assert sorted(record.metrics) == ["validation/accuracy", "validation/loss"]
    assert [epoch.test_accuracy for epoch in watcher.epochs] == [None] * 6
    assert [epoch.shifted_accuracy for epoch in watcher.epochs] == [None] * 6
    assert all(0 <= (epoch.validation_accuracy or 0) <= 1 for epoch in watcher.epochs)
    assert all(result.predictions == {} and result.metrics == {} for result in watcher.results)


def test_params_and_tags_of_a_tuning_run(own_folder: Path) -> None:
    with stage("head") as (one, watcher):
        (arm,) = one.experiment.request.arms
        adapt_once(one, arm, 0)
        tune_once(one, arm, 0)
    adaptation, tuning = watcher.runs[-2:]
    assert (tuning.kind, tuning.tags["adaptkit.kind"]) == ("tuning", "tuning")
    assert tuning.params == adaptation.params
    assert set(tuning.tags) == set(adaptation.tags)
    assert tuning.tags["adaptkit.trial_key"] != adaptation.tags["adaptkit.trial_key"]


def test_tuning_divides_the_draw_of_its_seed(own_folder: Path) -> None:
    with stage("head", augment="flip=1", epochs=3) as (one, _):
        (arm,) = one.experiment.request.arms
        tune_once(one, arm, 0)
        drawn = draw_target(one.experiment.request, one.experiment.domains, 0)
        training, held = require_validation(one.experiment, 0)
        assert training + held == len(drawn)
        kept = {name: value for (kind, name), value in one.inputs.store._kept.items() if kind == "images"}
        assert sorted(kept) == ["views 0/tuning 1", "views 0/tuning 2", "views 0/tuning 3", "views 0/tuning validation"]
        assert len(kept["views 0/tuning validation"].tensor) == held
        first, second = (kept[f"views 0/tuning {epoch}"].tensor for epoch in (1, 2))
        assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
        assert len(first) == training and not torch.equal(first, second)
        one.inputs.forget(0)
        assert not one.inputs.store._kept


def test_feature_cache_does_not_change_tuning(own_folder: Path) -> None:
    with stage("head", "lora") as (one, _):
        head, lora = one.experiment.request.arms
        records = [tune_once(one, arm, 0) for arm in (head, lora, dataclasses.replace(head, lr=0.1))]
        names = {name for kind, name in one.inputs.store._kept if kind != "images"}
        assert names == {"views 0/tuning 1", "views 0/tuning 2", "views 0/tuning validation"}
    with stage("head", "lora", reuse=False) as (whole, _):
        for record, arm in zip(records, (head, lora, dataclasses.replace(head, lr=0.1)), strict=True):
            again = tune_once(whole, arm, 0)
            assert again.metrics["validation/accuracy"] == record.metrics["validation/accuracy"]
            assert again.metrics["validation/loss"] == pytest.approx(record.metrics["validation/loss"], rel=1e-4)


def test_diverged_run_is_a_failed_record(own_folder: Path) -> None:
    with stage("full", optimizer="sgd") as (one, watcher):
        (arm,) = one.experiment.request.arms
        record = tune_once(one, dataclasses.replace(arm, lr=1e30), 0)
    assert record.status == "failed"
    assert "finite" in (record.error or "")
    assert len(watcher.errors) == 1


def test_blinded_images_are_black(own_folder: Path) -> None:
    with stage("head") as (one, _):
        domains = one.experiment.domains
        blind = blinded(domains)
        assert set(blind.tests) == set(domains.tests)
        for name, test in blind.tests.items():
            assert len(test) < len(domains.tests[name])
            assert not torch.as_tensor(test.pixels).any() and not test.labels.any()
        assert blind.fingerprint == domains.fingerprint
        assert torch.equal(blind.pool.labels, domains.pool.labels)


def test_validation_metric_names() -> None:
    assert VALIDATION == "validation"
