"""Features of frozen layers: computed once, stored, timed and checked, without a change of results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load
from support.experiments import TINY, TINY_SETTINGS
from support.processes import start
from torch import Tensor, nn

import adaptkit
from adaptkit.system.folders import CacheWarning
from adaptkit.training.frozen.features import FeatureFiles

TEST_IMAGES = 100
EPOCHS = 2


class Stem(nn.Module):
    """Count the images in all forward passes."""

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 5, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        Stem.seen += len(x)
        features: Tensor = self.conv(x).relu().flatten(1)
        return features


class CountedModel(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.middle, self.last = Stem(), nn.Linear(144, 16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.middle(self.stem(x)).relu())
        return logits


class Counted:
    name = "counted"

    def build(self, channels: int, size: int, classes: int) -> nn.Module:
        return CountedModel(classes)


class Tail:
    """Train the same parameters as `head`."""

    name = "tail"

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        return list(model.last.parameters())  # type: ignore[union-attr]


class Offer:
    @adaptkit.hookimpl
    def adaptkit_backbones(self) -> list[type]:
        return [Counted]

    @adaptkit.hookimpl
    def adaptkit_strategies(self) -> list[type]:
        return [Tail]


class Watcher:
    """Record the tags and final weights of each adaptation run."""

    def __init__(self) -> None:
        self.prefixes: dict[str, str] = {}
        self.states: dict[str, dict[str, Tensor]] = {}

    @adaptkit.hookimpl
    def adaptkit_run_ended(self, run: Any, result: Any, model: nn.Module) -> None:
        if run.kind == "adaptation":
            self.prefixes[run.name] = result.tags["adaptkit.frozen_prefix"]
            self.states[run.name] = {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def own_cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    monkeypatch.delenv("ADAPTKIT_NO_FEATURE_CACHE", raising=False)
    return own_folder / "cache"


def passed(strategies: list[str], **choices: Any) -> int:
    """Return the number of images that pass the stem in an experiment."""
    Stem.seen = 0
    keys = {"backbone": "counted", "settings": TINY_SETTINGS, "track": False, "plugins": [Offer()]} | choices
    adaptkit.run(strategies, **keys)
    return Stem.seen


def files(cache: Path) -> list[Path]:
    return sorted((cache / "features").glob("*.safetensors"))


#: images in the checks of an experiment before training: of the backbone with its cached base, and of each strategy
BACKBONE = 4 * 10 + 8
TRIED = 4 * 6
#: images in the passes that find out how the base uses its layers
USAGE = 4 * 2
#: images in passes of the whole model in every run: a step to measure memory, the check of the reloaded model, and the
#: inference times (10 passes of the base and of the model)
FIXED = 32 + TEST_IMAGES + 20 * TEST_IMAGES
#: images in passes of the frozen layers to find and check a division: images in two orders, the features, and two steps
#: each of training and evaluation (an entirely frozen model is only evaluated)
TRIAL = 5 + 3 + 5 + 4 * 5
FROZEN_TRIAL = 5 + 3 + 5 + 2 * 5


def test_no_cache_runs_the_whole_model() -> None:
    passed(["head"])  # trains the base
    training, evaluation = EPOCHS * 50, EPOCHS * 2 * TEST_IMAGES
    base = final = 2 * TEST_IMAGES
    expected = BACKBONE + TRIED + USAGE + base + FIXED + training + evaluation + final
    assert passed(["head"], feature_cache=False) == expected
    assert passed(["head"], feature_cache=False) == expected


@pytest.mark.slow
def test_features_of_test_sets_are_stored_on_disk(own_cache: Path) -> None:
    passed(["head"])  # trains the base
    for path in files(own_cache):
        path.unlink()
    # For expected features, the base, the run, and its reloaded model.
    once = BACKBONE + TRIED + USAGE + 3 * TRIAL + FROZEN_TRIAL + FIXED + EPOCHS * 50
    assert passed(["head"]) == once + 2 * TEST_IMAGES
    assert len(files(own_cache)) == 4  # for each test set the features that `head` reads, and the logits of the base
    checks = 4 * len(files(own_cache))
    assert passed(["head"]) == once + checks
    assert passed(["head"], settings=TINY_SETTINGS | {"epochs": 5}) == once + checks + 3 * 50
    # Another shift changes the target test set, but not the source test set.
    assert passed(["head"], shift="rotate=10") == once + checks // 2 + TEST_IMAGES


@pytest.mark.slow
def test_strategies_of_one_seed_share_features() -> None:
    passed(["head"])
    alone = passed(["head"])
    assert passed(["head", "tail"]) - alone == TRIED + 3 * TRIAL + FIXED
    assert passed(["head"], seeds="0-1") - alone == 2 * TRIAL + FIXED + EPOCHS * 50


@pytest.mark.slow
def test_training_features_are_computed_once_without_shift() -> None:
    passed(["head"], shift="none")
    assert passed(["head"], shift="none", settings=TINY_SETTINGS | {"epochs": 7}) == passed(["head"], shift="none")


@pytest.mark.slow
def test_cache_does_not_change_results(own_cache: Path) -> None:
    outcomes, watchers = [], []
    for feature_cache in (True, True, False):
        watchers.append(Watcher())
        plugins = [Offer(), watchers[-1]]
        names = ["full", "tail", "lora", "head"]
        keys = {"backbone": "counted", "settings": TINY_SETTINGS, "track": False, "plugins": plugins, "seeds": "0-1"}
        outcomes.append(adaptkit.run(names, feature_cache=feature_cache, **keys))
    cold, warm, off = [[figures(run) for run in outcome.runs] for outcome in outcomes]
    assert cold == warm == off
    for name, state in watchers[0].states.items():
        for other in watchers[1:]:
            assert all(torch.equal(value, other.states[name][key]) for key, value in state.items()), name
    assert set(watchers[2].prefixes.values()) == {"none"}
    seen = {name.split()[0]: prefix for name, prefix in watchers[0].prefixes.items()}
    assert seen.pop("lora").startswith("stem,middle.base_layer")
    assert seen == {"full": "none", "tail": "relu", "head": "relu"}


def figures(run: Any) -> list[Any]:
    kept = {key: value for key, value in run.metrics.items() if not key.startswith("time/")}
    return [kept, *((epoch.loss, epoch.train_accuracy, epoch.test_accuracy) for epoch in run.epochs)]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "foreign"])
def test_damaged_files_are_replaced(own_cache: Path, damage: str) -> None:
    keys: dict[str, Any] = {"backbone": "counted", "settings": TINY_SETTINGS, "track": False, "plugins": [Offer()]}
    right = figures(adaptkit.run("head", **keys).runs[0])
    sound = {path: path.read_bytes() for path in files(own_cache)}
    assert len(sound) == 4
    for path, content in sound.items():
        middle = len(content) // 2 if len(content) > 9000 else len(content) - 20
        damaged = {
            "cut": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :],
            "emptied": b"",
            "foreign": b"not a file of tensors",
        }[damage]
        path.write_bytes(damaged)
    with pytest.warns(CacheWarning, match="is damaged and is computed again"):
        assert figures(adaptkit.run("head", **keys).runs[0]) == right
    assert sorted(files(own_cache)) == sorted(sound)
    for path, content in sound.items():
        mended, before = load(path.read_bytes())["features"], load(content)["features"]
        assert torch.equal(mended, before)


def test_changed_layer_code_invalidates_features(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, Any] = {"backbone": "counted", "settings": TINY_SETTINGS, "track": False, "plugins": [Offer()]}
    before = adaptkit.run("head", **keys).runs[0]

    def changed(self: Stem, x: Tensor) -> Tensor:
        return self.conv(x).abs().flatten(1)

    monkeypatch.setattr(Stem, "forward", changed)
    after = adaptkit.run("head", **keys)
    assert not after.base.cached  # its code is part of its recipe
    assert figures(after.runs[0]) == figures(adaptkit.run("head", feature_cache=False, **keys).runs[0])
    assert figures(after.runs[0]) != figures(before)


@pytest.mark.slow
def test_cached_features_count_with_their_original_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.training.frozen import features

    clock = iter(range(10**6))
    outcomes = {}

    class Ticking:
        @staticmethod
        def perf_counter() -> float:
            return float(next(clock))  # one second between two readings of this clock

    monkeypatch.setattr(features, "time", Ticking)
    for cache in ("cold", "warm"):
        outcomes[cache] = adaptkit.run(
            ["head", "tail"], backbone="counted", settings=TINY_SETTINGS, track=False, plugins=[Offer()]
        )
    for outcome in outcomes.values():
        for run in outcome.runs:
            first, second = run.epochs
            # One second each for views and features; the first epoch also includes the features of both test sets.
            assert 2 <= first.seconds - first.evaluation_seconds < 3
            assert 2 <= first.evaluation_seconds < 3
            assert 2 <= second.seconds - second.evaluation_seconds < 3
            assert second.evaluation_seconds < 1


@pytest.mark.slow
def test_large_features_are_computed_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, Any] = {"backbone": "counted", "settings": TINY_SETTINGS, "track": False, "plugins": [Offer()]}
    right = [figures(run) for run in adaptkit.run(["head", "lora"], **keys).runs]
    monkeypatch.setattr("adaptkit.experiment.inputs.MEMORY_LIMIT", 4000)
    watcher = Watcher()
    outcome = adaptkit.run(["head", "lora"], **keys | {"plugins": [Offer(), watcher]})
    assert [figures(run) for run in outcome.runs] == right
    assert "none" not in watcher.prefixes.values()


def test_hooks_see_every_image(own_cache: Path) -> None:
    class Watching:
        seen = 0

        @adaptkit.hookimpl
        def adaptkit_run_started(self, run: Any, model: nn.Module) -> None:
            def count(layer: nn.Module, given: Any, result: Any) -> None:
                Watching.seen += len(result)

            if run.kind == "adaptation":
                model.last.register_forward_hook(count)

    watcher = Watcher()
    passed(["head"], plugins=[Offer(), Watching(), watcher])
    assert watcher.prefixes == {"head seed=0": "none"}
    assert Watching.seen == EPOCHS * (50 + 2 * TEST_IMAGES) + TEST_IMAGES


@pytest.mark.parametrize("feature_cache", [True, False])
def test_plugin_that_leaves_training_mode_on(feature_cache: bool) -> None:
    class Dropping(CountedModel):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x)
            return nn.functional.dropout(logits, 0.5, self.training)

    class Backbone(Counted):
        name = "dropping"

        def build(self, channels: int, size: int, classes: int) -> nn.Module:
            return Dropping(classes)

    class Careless:
        @adaptkit.hookimpl
        def adaptkit_backbones(self) -> list[type]:
            return [Backbone]

        @adaptkit.hookimpl
        def adaptkit_run_started(self, run: Any, model: nn.Module) -> None:
            self.model = model

        @adaptkit.hookimpl
        def adaptkit_epoch_ended(self, run: Any, epoch: Any) -> None:
            self.model.train()

    outcome = adaptkit.run(
        ["full", "head"],
        backbone="dropping",
        settings=TINY_SETTINGS,
        track=False,
        plugins=[Careless()],
        feature_cache=feature_cache,
    )
    assert [(run.status, run.error) for run in outcome.runs] == [("finished", None)] * 2


def test_size_limit_of_the_folder(own_folder: Path) -> None:
    kept = FeatureFiles(own_folder / "features", limit=100_000)
    for number in range(6):
        kept.write(f"key {number}", torch.full((5000,), float(number)), 1.5)
        os.utime(kept.path(f"key {number}"), (number, number))  # in the order of creation
    assert sum(path.stat().st_size for path in (own_folder / "features").iterdir()) <= 100_000
    assert kept.read("key 0") is None
    tensor, seconds = kept.read("key 5") or (torch.empty(0), 0.0)
    assert torch.equal(tensor, torch.full((5000,), 5.0)) and seconds == 1.5
    kept.write("large", torch.zeros(20_000), 1.0)
    assert kept.read("large") is None


def test_features_keep_their_memory_format(own_folder: Path) -> None:
    kept = FeatureFiles(own_folder / "features")
    tensor = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    kept.write("key", tensor, 0.1)
    read, _ = kept.read("key") or (torch.empty(0), 0.0)
    assert torch.equal(read, tensor) and read.stride() == tensor.stride()


def test_read_only_folder_stores_nothing(own_folder: Path) -> None:
    (own_folder / "features").write_text("a file")
    kept = FeatureFiles(own_folder / "features")
    kept.write("key", torch.zeros(3), 0.1)
    assert kept.read("key") is None


@pytest.mark.slow
def test_no_feature_cache_option(cli: Callable[..., Result], own_cache: Path) -> None:
    cli("run", "-s", "head", *TINY, "--no-track", "-q", "--no-feature-cache")
    assert files(own_cache) == []
    cli("run", "-s", "head", *TINY, "--no-track", "-q")
    assert len(files(own_cache)) == 4


@pytest.mark.slow
def test_processes_share_the_folder(cli: Callable[..., Result], own_cache: Path) -> None:
    command = ("run", "-s", "head", "-s", "lora", *TINY, "--no-track", "--json", "-q")
    assert cli(*command).exit_code == 0  # trains the base
    for path in files(own_cache):
        path.unlink()
    running = [start(*command) for _ in range(3)]
    results = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    shown = [[run["metrics"]["final/shifted_accuracy"] for run in json.loads(out)["runs"]] for out, _ in results]
    assert shown[0] == shown[1] == shown[2]
    assert not list((own_cache / "features").glob("*.part"))
