"""Recipes: steps and schedules, standardized inputs, new heads, default learning rates, and `--lr auto`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from support.experiments import TINY, TINY_SETTINGS
from torch import nn

import adaptkit
from adaptkit.backbones.structure import find_kind, with_head
from adaptkit.training.loop import cosine_factor

Cli = Callable[..., Result]
SMALL = {key: value for key, value in TINY_SETTINGS.items() if key != "epochs"}


def plan_of(cli: Cli, *arguments: str) -> dict[str, Any]:
    result = cli("run", "-s", "head", "-s", "full", *arguments, "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    plan: dict[str, Any] = json.loads(result.stdout)
    return plan.get("plan", plan)


def sized(*parts: str) -> list[str]:
    return [word for part in parts for word in ("--set", part)]


DATA = sized("split.source=200", "split.pool=200", "split.test=100", "base.epochs=1")


def test_few_images_train_for_more_epochs(cli: Cli, store: Path) -> None:
    """50 images are 2 steps of 32 an epoch: 50 epochs are 100 steps."""
    plan = plan_of(cli, *DATA, *sized("shots=5"))
    assert (plan["epochs"], plan["steps"]) == (50, 100)
    plan = plan_of(cli, *DATA, *sized("shots=5"), "--epochs", "3")
    assert (plan["epochs"], plan["steps"]) == (3, 6)
    plan = plan_of(cli, *DATA, *sized("shots=5", "min_steps=none"))
    assert (plan["epochs"], plan["steps"]) == (10, 20)


@pytest.mark.slow
def test_notebook_preset_has_a_plain_recipe(cli: Cli, store: Path) -> None:
    small = sized("dataset=mnist5k", *DATA[1::2], "split.pool=1000")
    result = cli("run", "-s", "head", "--preset", "notebook", *small, *sized("shots=2"), "--epochs", "1", "--json")
    assert result.exit_code == 0, result.stderr
    (run,) = json.loads(result.stdout)["runs"]
    (config,) = store.parent.glob(f"mlruns/*/{run['run_id']}/artifacts/config.yaml")
    params = yaml.safe_load(config.read_text())
    plain = {"schedule": "constant", "clip": "none", "min_steps": "none", "base.standardize": False}
    assert {key: params[key] for key in plain} == plain
    assert (params["lr"], params["base.schedule"], params["base.clip"]) == (0.001, "constant", "none")


def test_cosine_rises_and_falls() -> None:
    factors = [cosine_factor(step, 100) for step in range(1, 101)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[9:]))
    assert 0 < factors[-1] < 1e-3
    assert [cosine_factor(1, 1), cosine_factor(1, 2)] == [1, 1]


def test_clipped_gradients_are_the_largest(own_folder: Path) -> None:
    """With SGD without momentum in the first step, the change of the weights is the gradient times the rate."""
    moved = {}
    for clip in (None, 1e-3):
        torch.manual_seed(0)
        settings = SMALL | {"clip": clip, "epochs": 1, "optimizer": "sgd", "schedule": "constant", "batch_size": 1000}
        outcome = adaptkit.run("head", lr=1.0, settings=settings, track=False, feature_cache=False)
        moved[clip] = outcome.runs[0].metrics["final/gain"]
    assert abs(moved[1e-3]) <= 0.02  # a step of length 0.001 changes almost nothing
    assert moved[None] != moved[1e-3]


def test_kinds_of_backbones() -> None:
    assert find_kind(nn.Sequential(nn.Linear(3, 2))) == "plain"
    assert find_kind(nn.Sequential(nn.BatchNorm2d(3), nn.Linear(3, 2))) == "batch_norm"
    assert find_kind(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2))) == "transformer"


KINDS = """
from adaptkit import hookimpl
class Ours:
    name = "ours"
    lr = {rates}
    def adapt(self, model): return model.head.parameters()
@hookimpl
def adaptkit_strategies(): return [Ours]
"""


@pytest.mark.slow
def test_learning_rate_follows_the_backbone(cli: Cli, store: Path) -> None:
    rates = {"plain": 0.5, "batch_norm": 0.25, "transformer": 0.125}
    plugin = store.parent / "ours.py"
    plugin.write_text(KINDS.format(rates=rates))
    resnet = ("--backbone", "torchvision:resnet18", "--weights", "none", "--image-size", "32")
    for options, lr in (((), 0.5), (resnet, 0.25), ((*resnet, "--lr", "0.7"), 0.7)):
        result = cli("run", "--plugin", str(plugin), "-s", "ours", *DATA, *options, "--dry-run", "--json")
        assert result.exit_code == 0, result.stderr
        plan = json.loads(result.stdout)
        (arm,) = plan.get("plan", plan)["arms"]
        assert arm["lr"] == lr
    plugin.write_text(KINDS.format(rates={"plain": 0.5}))
    result = cli("run", "--plugin", str(plugin), "-s", "ours", "--dry-run")
    assert result.exit_code == 2
    assert "Ours.lr must have a number for each kind of backbone: plain, batch_norm, transformer" in result.stderr


def test_new_head_of_published_weights_starts_near_zero(own_folder: Path) -> None:
    """A pretrained network with large features: the first loss is that of equal probabilities."""
    from torchvision.models import get_model

    from adaptkit.backbones.torchvision_models import build_model

    torch.manual_seed(0)
    donor = get_model("resnet18", weights=None, num_classes=7)
    with torch.no_grad():
        donor.layer4[1].bn2.weight.mul_(40)
    torch.save(donor.state_dict(), own_folder / "donor.pt")
    images, labels = torch.rand(20, 3, 32, 32), torch.arange(20) % 5
    model = build_model("resnet18", str(own_folder / "donor.pt"), channels=3, size=32, classes=5).eval()
    loss = nn.functional.cross_entropy(model(images), labels).item()
    assert loss == pytest.approx(math.log(5), rel=0.05)
    kept = build_model("resnet18", str(own_folder / "donor.pt"), channels=3, size=32, classes=7)
    assert torch.equal(kept.fc.weight, donor.fc.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.slow
def test_statistics_of_the_source_are_kept_with_the_base(store: Path, cli: Cli) -> None:
    """The mean and standard deviation of the 200 source images, in files, after loading and in an export."""
    result = cli("run", "-s", "head", *TINY, "--json")
    (run,) = json.loads(result.stdout)["runs"]
    model = adaptkit.load(run["run_id"])
    mean, std = float(model.source_mean), float(model.source_std)  # type: ignore[arg-type]
    assert 0.05 < mean < 0.3 and 0.2 < std < 0.5
    assert cli("export", run["run_id"], "--to", "merged", "-o", "out").exit_code == 0
    card = json.loads(next((store.parent / "out").glob("*.json")).read_text())
    assert card["preprocessing"]["standardize"] == "source"
    assert card["preprocessing"]["mean"] == pytest.approx([mean]) and card["preprocessing"]["std"] == pytest.approx(
        [std]
    )
    plain = adaptkit.run("head", settings=TINY_SETTINGS | {"base.standardize": False}, track=False)
    assert plain.base.fingerprint != json.loads(result.stdout)["base"]["fingerprint"]
    assert plain.plan.standardize is None


def test_images_are_standardized_one_by_one_without_a_source() -> None:
    torch.manual_seed(0)
    model = with_head(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8), standardize="image")
    images = torch.rand(5, 1, 8, 8)
    assert torch.allclose(model(images), model(0.5 * images + 0.2), atol=0.05)
    assert torch.isfinite(model(torch.zeros(1, 1, 8, 8))).all()


COUNTING = """
from adaptkit import hookimpl
from torch import nn
SEEN = []
class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 16)
    def forward(self, x):
        SEEN.append(len(x))
        return self.layer(x.flatten(1)).relu()
class Counted:
    name = "counted"
    def build(self, channels, size, classes):
        return nn.Sequential(Body(), nn.Linear(16, classes))
@hookimpl
def adaptkit_backbones(): return [Counted]
"""


def test_frozen_layers_of_a_probed_base_run_once(own_folder: Path) -> None:
    import types

    module = types.ModuleType("counting")
    exec(COUNTING, module.__dict__)
    seen = {}
    for epochs in (1, 5):
        module.SEEN.clear()  # type: ignore[attr-defined]
        settings = TINY_SETTINGS | {"base.mode": "probe", "base.epochs": epochs, "epochs": 1}
        adaptkit.run("head", backbone="counted", settings=settings, track=False, plugins=[module], refresh_base=True)
        seen[epochs] = sum(module.SEEN)  # type: ignore[attr-defined]
    assert seen[5] == seen[1]


def test_lr_auto_tries_five_rates_in_each_fit(store: Path, cli: Cli) -> None:
    result = cli(
        "run", "-s", "head", "--lr", "auto", "--target", "digits", "--folds", "2", *TINY[:6], "--epochs", "1", "--json"
    )
    assert result.exit_code == 0, result.stderr
    (run,) = json.loads(result.stdout)["runs"]
    (path,) = store.parent.glob(f"mlruns/*/{run['run_id']}/artifacts/tuning.json")
    tuning = json.loads(path.read_text())
    assert tuning["trials"] == 5 and len(tuning["fits"]) == 2
    rates = sorted(trial["values"]["lr"] for trial in tuning["fits"][0]["trials"])
    default = tuning["fits"][0]["trials"][0]["values"]["lr"]
    assert rates == pytest.approx([default / 10, default / 10**0.5, default, default * 10**0.5, default * 10], rel=0.05)
    result = cli("run", "-s", "head", "--lr", "auto", "--tune", "3", *TINY)
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: lr: auto is a tuning of its own; leave out --lr auto or --tune\n",
    )


def test_d4_gives_the_eight_symmetries() -> None:
    from adaptkit.data.augmentations import D4

    image = torch.arange(9.0).view(1, 1, 3, 3)
    turned = D4().apply(image.expand(400, 1, 3, 3), torch.Generator().manual_seed(0))
    expected = [m.rot90(k, (-2, -1)) for m in (image, image.flip(-1)) for k in range(4)]
    counts = [sum(torch.equal(one, other[0]) for one in turned) for other in expected]
    assert sum(counts) == 400 and min(counts) > 25
    unchanged = D4(probability=0.0).apply(image, torch.Generator().manual_seed(0))
    assert torch.equal(unchanged, image) and unchanged is not image


@pytest.mark.slow
def test_base_and_target_get_their_own_augmentation(cli: Cli, store: Path) -> None:
    result = cli("run", "-s", "head", "--augment", "d4", "--set", "base.augment=d4,flip=0.5", *TINY, "--dry-run")
    assert "Augment  base: d4=1,flip=0.5; target: d4=1\n" in result.stdout
    fingerprints = {
        text: adaptkit.run("head", settings=TINY_SETTINGS | {"base.augment": text}, track=False).base.fingerprint
        for text in ("none", "d4")
    }
    assert len(set(fingerprints.values())) == 2
    result = cli("run", "-s", "head", "--augment", "crop", *TINY)
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: augment: 'crop' is not name=amount, as in rotate=45,noise=0.3\n",
    )
