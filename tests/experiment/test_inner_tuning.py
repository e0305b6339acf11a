"""Tuning inside the fits: which images it sees, what it records, and that later commands repeat it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from support.experiments import TINY_SETTINGS

import adaptkit
from adaptkit.experiment import inner_tuning
from adaptkit.experiment.adaptation import AdaptationRun
from adaptkit.system.signals import Interrupted

Cli = Callable[..., Any]
CLASSES, EACH, SIDE, TRIALS = ("a", "b"), 9, 12, 3
#: a built-in target without augmentation, so that features of frozen layers are the same for all trials
TINY = TINY_SETTINGS | {"base.epochs": 1, "epochs": 1}
FOLDS: dict[str, Any] = {
    "target": "digits",
    "folds": 3,
    "settings": {key: value for key, value in TINY.items() if key != "shots"},
}


def picture(path: Path, seed: int, colour: int | None) -> None:
    noise = numpy.random.default_rng(seed).normal(60, 40, (SIDE, SIDE, 3))
    if colour is not None:
        noise[..., colour] += 120
    Image.fromarray(noise.clip(0, 255).astype(numpy.uint8)).save(path)


@pytest.fixture
def work(own_folder: Path) -> Path:
    for number, name in enumerate(CLASSES):
        (own_folder / "pics" / name).mkdir(parents=True)
        for index in range(EACH):
            picture(own_folder / "pics" / name / f"{index}.png", 100 * number + index, number)
    return own_folder


def own_images(**more: Any) -> adaptkit.RunOutcome:
    """Run a tuned strategy on own images."""
    choices = {"dataset": "none", "target": "folder:pics", "image_size": SIDE, "epochs": 1, "folds": 3}
    return adaptkit.run("scratch", **choices | {"tune": TRIALS} | more)


def tuning_of(folder: Path, run_id: str | None) -> dict[str, Any]:
    (path,) = folder.glob(f"mlruns/*/{run_id}/artifacts/tuning.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def same_metrics(first: Any, second: Any) -> bool:
    """Check whether two runs have the same metrics, apart from times and memory."""
    names = [key for key in first.metrics if not key.startswith(("time/", "memory/"))]
    return [first.metrics[key] for key in names] == [second.metrics[key] for key in names]


@pytest.mark.slow
def test_pixels_of_evaluated_images_do_not_change_the_tuning(work: Path) -> None:
    before = own_images()
    run_id = before.runs[0].run_id
    (path,) = work.glob(f"mlruns/*/{run_id}/artifacts/predictions.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        evaluated = [row["path"] for row in csv.DictReader(stream) if row["fold"] == "0"]
    assert len(evaluated) == 2 * EACH // 3
    for number, name in enumerate(evaluated):
        picture(work / "pics" / name, 1000 + number, None)
    first, *others = tuning_of(work, run_id)["fits"]
    again, *changed = tuning_of(work, own_images().runs[0].run_id)["fits"]
    assert again == first
    assert all(fit["trials"] != earlier["trials"] for fit, earlier in zip(changed, others, strict=True))


@pytest.mark.slow
def test_trials_use_the_training_images_of_their_fit_only(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[Any] = []
    seen: list[tuple[int, set[int], set[int]]] = []
    tune, train = AdaptationRun._tune, inner_tuning.train

    def noted_fit(self: AdaptationRun, fit: Any, number: int) -> Any:
        fits.append(fit)
        return tune(self, fit, number)

    def noted_train(*arguments: Any) -> Any:
        trained = train(*arguments)
        passes: Any = trained.passes
        assert list(passes.tests) == ["validation"]
        training, held = set(passes.rows.tolist()), set(passes.evaluated["validation"].tolist())
        assert len(passes.labels) == len(training) and len(passes.tests["validation"].labels) == len(held)
        seen.append((len(fits) - 1, training, held))
        return trained

    monkeypatch.setattr(AdaptationRun, "_tune", noted_fit)
    monkeypatch.setattr(inner_tuning, "train", noted_train)
    adaptkit.run(["head", "lora"], tune=TRIALS, track=False, **FOLDS)
    assert len(seen) == 2 * 3 * TRIALS
    for number, training, held in seen:
        labelled, evaluated = set(fits[number].train.tolist()), set(fits[number].evaluated.tolist())
        assert training | held == labelled and not training & held and not (training | held) & evaluated
    # Strategies of one seed are paired: they divide the images of a fit in the same way.
    divisions = [{(frozenset(a), frozenset(b)) for n, a, b in seen if n % 3 == fold} for fold in range(3)]
    assert [len(found) for found in divisions] == [1, 1, 1]


@pytest.mark.slow
def test_equal_trials_choices_and_costs_are_recorded(own_folder: Path) -> None:
    outcome = adaptkit.run(["head", "lora"], tune=TRIALS, **FOLDS)
    assert (outcome.plan.tuning_trials, outcome.plan.fits, outcome.failed) == (TRIALS, 3, ())
    assert [sorted(arm.searched) for arm in outcome.plan.arms] == [["lr"], ["lr", "rank"]]
    client = MlflowClient(f"sqlite:///{own_folder / 'mlflow.db'}")
    for run in outcome.runs:
        content = tuning_of(own_folder, run.run_id)
        assert content["trials"] == TRIALS and len(content["fits"]) == 3
        for fit in content["fits"]:
            assert [trial["number"] for trial in fit["trials"]] == list(range(1, TRIALS + 1))
            assert (
                fit["trials"][0]["values"]["lr"] == {"head": 0.01, "lora": 0.005}[run.strategy]
            )  # the defaults are the first trial
            best = min(fit["trials"], key=lambda trial: (-trial["accuracy"], trial["loss"]))
            assert fit["best"] == best["number"] and fit["chosen"] == best["values"]
        record = client.get_run(str(run.run_id)).data
        assert record.tags["adaptkit.tuned_inside"] == str(TRIALS) and "adaptkit.tuned_on" not in record.tags
        assert record.params["tuning.trials"] == str(TRIALS)
        trained = run.metrics["time/train_seconds"] + run.metrics["time/evaluation_seconds"]
        total = 3 * (trained + run.metrics["time/tuning_seconds"])
        assert run.metrics["time/all_folds_seconds"] == pytest.approx(total)
    ranks = {fit["chosen"]["rank"] for fit in tuning_of(own_folder, outcome.runs[1].run_id)["fits"]}
    cards = own_folder.glob(f"mlruns/*/{outcome.runs[1].run_id}/artifacts/adapter/fold-*/adapter.json")
    assert {json.loads(card.read_text())["options"]["rank"] for card in cards} == ranks


@pytest.mark.slow
def test_a_tuned_run_equals_a_run_with_the_chosen_values(own_folder: Path) -> None:
    tuned = adaptkit.run("lora", tune=TRIALS, settings=TINY)
    (fit,) = tuning_of(own_folder, tuned.runs[0].run_id)["fits"]
    chosen = dict(fit["chosen"])
    plain = adaptkit.run("lora", lr=chosen.pop("lr"), options=chosen, settings=TINY, track=False)
    assert same_metrics(tuned.runs[0], plain.runs[0])
    # Its model is the one with the chosen values.
    assert adaptkit.load(str(tuned.runs[0].run_id))(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.slow
def test_the_feature_cache_does_not_change_the_choice(own_folder: Path) -> None:
    chosen = []
    for cache in (True, False):
        run = adaptkit.run("head", tune=TRIALS, feature_cache=cache, **FOLDS).runs[0]
        chosen.append([fit["chosen"] for fit in tuning_of(own_folder, run.run_id)["fits"]])
    assert chosen[0] == chosen[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "more"), [("first fit", {}), pytest.param("second fold", FOLDS, marks=pytest.mark.slow)]
)
def test_resume_after_a_stop_inside_the_tuning(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str, more: dict[str, Any]
) -> None:
    more = {"settings": TINY, **more}
    whole = adaptkit.run("lora", tune=TRIALS, experiment="undisturbed", **more).runs[0]
    calls: list[int] = []
    train = inner_tuning._train

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == (2 if moment == "first fit" else TRIALS + 2):
            raise Interrupted(15)
        return train(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(inner_tuning, "_train", stopping)
        with pytest.raises(KeyboardInterrupt) as caught:
            adaptkit.run("lora", tune=TRIALS, **more)
    (note,) = caught.value.__notes__
    resumed = adaptkit.resume(note.rpartition(" ")[2]).runs[0]
    assert (resumed.status, resumed.error) == ("finished", None)
    assert same_metrics(resumed, whole)
    assert tuning_of(own_folder, resumed.run_id) == tuning_of(own_folder, whole.run_id)


@pytest.mark.slow
def test_a_refit_tunes_once_more_on_all_labels(work: Path) -> None:
    run_id = str(own_images().runs[0].run_id)
    summary = adaptkit.refit(run_id)
    assert summary.tuning_trials == TRIALS and list(summary.tuned) == ["lr"]
    content = tuning_of(work, summary.run_id)
    (fit,) = content["fits"]
    assert len(fit["trials"]) == TRIALS and fit["training"] + fit["held_back"] == len(CLASSES) * EACH
    assert fit["chosen"]["lr"] == summary.lr == summary.tuned["lr"]
    record = MlflowClient(f"sqlite:///{work / 'mlflow.db'}").get_run(str(summary.run_id)).data
    assert record.tags["adaptkit.tuned_inside"] == str(TRIALS)
    assert f"tuned once more, on all of them, with {TRIALS} trials" in record.tags["mlflow.note.content"]
    assert len(adaptkit.predict(str(summary.run_id), "pics")) == len(CLASSES) * EACH


@pytest.mark.slow
def test_reproduce_sweep_and_compare(own_folder: Path) -> None:
    run_id = str(adaptkit.run("lora", tune=TRIALS, **FOLDS).runs[0].run_id)
    assert adaptkit.reproduce(run_id).verdict == "identical"
    grid = {"tuning.trials": [0, 2, TRIALS]}
    outcome = adaptkit.sweep("lora", grid=grid, **FOLDS)
    assert [trial.status for trial in outcome.trials] == ["finished", "finished", "found"]
    (comparison,) = outcome.comparisons
    assert sorted(arm.name for arm in comparison.arms) == ["lora", "lora tuning.trials=2", "lora tuning.trials=3"]


@pytest.mark.slow
def test_failed_trials_count_and_a_run_without_a_good_one_fails(own_folder: Path) -> None:
    settings = {**TINY, "optimizer": "sgd"}
    run = adaptkit.run("full", tune=4, space={"lr": "1e-3,1e25"}, settings=settings).runs[0]
    (fit,) = tuning_of(own_folder, run.run_id)["fits"]
    errors = [trial["error"] for trial in fit["trials"]]
    assert len(errors) == 4 and fit["chosen"]["lr"] == 1e-3
    assert {"not finite" in (error or "not finite") for error in errors} == {True} and any(errors)
    run = adaptkit.run("full", tune=2, space={"lr": "1e25,1e26"}, settings=settings, track=False).runs[0]
    assert run.error is not None and run.error.startswith("every trial of its tuning failed: the ")


def test_plan_in_numbers(cli: Cli, work: Path) -> None:
    start = ("run", "-s", "scratch", "--target", "folder:pics", "--image-size", str(SIDE), "--folds", "3")
    result = cli(*start, "--tune", "10", "--seeds", "0-1", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "Each fit tries 10 configurations of each strategy" in result.stdout
    assert "1 x 6 x 10 = 60 short trainings" in result.stdout
    assert "scratch: searches lr 0.001..0.1 (log)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--tune", "1"), "tuning.trials: must be 0 (no tuning) or at least 2, not 1"),
        (("--tune", "few"), "tuning.trials: must be a whole number, not 'few'"),
        (("--tune", "4", "--lr", "0.1"), "scratch: nothing is left to tune; name a range, as in --space scratch.lr="),
        (("--space", "lr=1e-3,1e-2"), "tuning.space: without trials, nothing is searched"),
        (("--tune", "4", "--space", "scratsh.lr=1e-3,1e-2"), "--space scratsh.lr: strategy scratsh is not tuned; did"),
        (("--tune", "4", "--set", "folder.group=[ab0-9]png"), "folder"),
        (("--tune", "2", "--set", "shots=1"), "tuning: none of the 2 training images of a fit can be held back"),
    ],
)
def test_bad_input(cli: Cli, work: Path, arguments: tuple[str, ...], line: str) -> None:
    start = ("run", "-s", "scratch", "--target", "folder:pics", "--image-size", str(SIDE), "--folds", "3")
    result = cli(*start, *arguments, "--dry-run")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {line}") and len(result.stderr.splitlines()) == 1
