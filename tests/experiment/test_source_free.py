"""Experiments without a source or with a pretrained base: heads, notices, statistics and images."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from support.photos import make_photos
from support.plain_model import Plain
from torch import Tensor, nn

import adaptkit
from adaptkit.errors import BadInput
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import Layer
from adaptkit.sweeps.grid import expand

BITFIT = Path(__file__).parents[2] / "plugins" / "bitfit" / "adaptkit_bitfit.py"
SMALL: dict[str, Any] = {"shots": 4, "epochs": 2, "split.pool": 100, "split.test": 100}


def run(strategy: Any, **more: Any) -> adaptkit.RunOutcome:
    settings = SMALL | more.pop("settings", {})
    return adaptkit.run(strategy, backbone=Plain(), settings=settings, track=False, **more)


def test_every_strategy_also_trains_a_new_head() -> None:
    outcome = run(["head", "lora", "norm", "bitfit", "full"], dataset="none", target="digits", plugins=[BITFIT])
    shares = {arm.label: (arm.head, arm.adapter, arm.base) for arm in outcome.plan.arms}
    head = 8 * 10 + 10
    assert shares == {
        "head": (head, 0, 0),
        "lora": (head, 8 * (4 * 16 + 8), 0),
        "norm": (head, 0, 8),
        "bitfit": (head, 0, 4 + 4 + 8),
        "full": (head, 0, 4 * 9 + 4 + 8 + 4 * 16 * 8 + 8),
    }
    assert outcome.failed == ()
    for record, arm in zip(outcome.runs, outcome.plan.arms, strict=True):
        trainable = [record.metrics[f"params/trainable_{part}"] for part in ("head", "adapter", "base")]
        assert tuple(trainable) == shares[record.label]
        assert sum(trainable) == arm.trainable == record.metrics["params/trainable"]
        finals = {key for key in record.metrics if key.startswith("final/")}
        assert finals >= {"final/shifted_accuracy", "final/shifted_macro_f1", "final/shifted_nll"}
        assert all(key.startswith("final/shifted_") for key in finals)
        assert [epoch.test_accuracy for epoch in record.epochs] == [None, None]
        assert all(epoch.shifted_accuracy is not None for epoch in record.epochs)
    assert (outcome.base.test_accuracy, outcome.base.shifted_accuracy, outcome.base.epochs) == (None, None, ())
    assert (outcome.plan.dataset, outcome.plan.source_images, outcome.plan.clean_test_images) == ("none", 0, 0)


def test_no_source_requires_a_target(cli: Any) -> None:
    failed = cli("run", "-s", "head", "--dataset", "none", "--weights", "none")
    assert failed.exit_code == 2
    assert failed.stderr == "Error: dataset none: set the images to adapt to, as in --target folder:PATH\n"


UNTRAINED = (
    "backbone small_cnn has no pretrained weights, and there is no source to train it on: choose a pretrained one "
    "(--backbone torchvision:resnet18), a source (--dataset NAME), -s scratch alone, or --weights none for an "
    "untrained base"
)
DIGITS = ("--dataset", "none", "--target", "digits")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "-s", "head"),
        ("run", "-s", "scratch", "-s", "head", "--dry-run"),
        ("sweep", "-s", "head", "--grid", "lr=1e-3,1e-2"),
        ("sweep", "-s", "head", "--grid", "backbone=small_cnn,torchvision:resnet18"),
        ("tune", "-s", "full", "--trials", "2"),
    ],
)
def test_an_untrained_base_is_refused(cli: Any, own_folder: Path, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments, *DIGITS)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {UNTRAINED}\n")
    assert not list(own_folder.iterdir())


def test_an_untrained_base_is_refused_in_python() -> None:
    with pytest.raises(BadInput) as refused:
        adaptkit.run("head", dataset="none", target="digits")
    assert refused.value.problems == (UNTRAINED,)


@pytest.mark.slow
def test_an_untrained_base_that_was_asked_for(cli: Any, own_folder: Path) -> None:
    (own_folder / "nested.yaml").write_text("backbone:\n  weights: none\n")
    (own_folder / "flat.yaml").write_text("weights: none\n")
    for arguments in (
        ("-s", "scratch"),
        ("-s", "head", "--weights", "none"),
        ("-s", "head", "--set", "weights=none"),
        ("-s", "head", "--set", "backbone.weights=none"),
        ("-s", "head", "--config", "nested.yaml"),
        ("-s", "head", "--config", "flat.yaml"),
    ):
        planned = cli("run", *arguments, *DIGITS, "--dry-run", "--json")
        assert planned.exit_code == 0, planned.stderr
        notices = json.loads(planned.stdout)["notices"]
        assert notices == ["backbone small_cnn has no pretrained weights: the base is untrained"]
    other = cli("run", "-s", "head", "--weights", "default", *DIGITS)
    assert other.stderr == "Error: backbone small_cnn has no pretrained weights; leave out --weights\n"
    with pytest.raises(BadInput, match="leave out `weights`"):
        adaptkit.run("head", dataset="none", target="digits", backbone=Plain(), weights="none")


def test_backbones_that_vary_in_a_sweep_without_source() -> None:
    layers = [Layer({"strategy": "head", "dataset": "none", "target": "digits"})]
    for grid in ({"backbone": ("torchvision:resnet18",)}, {"weights": ("none",)}, {"dataset": ("digits", "mnist5k")}):
        cells = expand(layers, grid, load_plugins())
        assert len(cells) == len(*grid.values())


@pytest.mark.slow
def test_an_untrained_base_of_an_earlier_run(cli: Any, own_folder: Path) -> None:
    """The config of a run repeats it; a run made before `--weights none` was needed is reproduced from its record."""
    small = ("--epochs", "1", "--set", "shots=2", "--set", "split.test=50")
    result = cli("run", "-s", "head", *DIGITS, "--weights", "none", *small, "--json")
    (run,) = json.loads(result.stdout)["runs"]
    folder = own_folder / "mlruns"
    (config,) = (path for path in folder.rglob("config.yaml") if run["run_id"] in str(path))
    again = cli("run", "--config", str(config), "--dry-run")
    assert again.exit_code == 0, again.stderr
    lines = config.read_text().splitlines(keepends=True)
    earlier = [line for line in lines if not line.startswith("backbone.weights")]
    assert len(earlier) == len(lines) - 1
    config.write_text("".join(earlier))
    reproduced = cli("reproduce", run["run_id"])
    assert reproduced.exit_code == 0, reproduced.stderr


class Replaced:
    """Replace the head of the model."""

    name = "replaced"

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        model.out = nn.Linear(8, 10)
        return [model.conv.bias]  # type: ignore[list-item,union-attr]


class Replacing:
    @adaptkit.hookimpl
    def adaptkit_strategies(self) -> list[type]:
        return [Replaced]


def test_head_replaced_by_a_strategy_is_trained() -> None:
    outcome = run("replaced", dataset="none", target="digits", plugins=[Replacing()])
    (arm,) = outcome.plan.arms
    assert (arm.head, arm.adapter, arm.base) == (90, 0, 4) and outcome.failed == ()


@pytest.mark.slow
def test_probed_base_trains_only_its_head(own_folder: Path, store: Path) -> None:
    model = Plain(classes=3)
    outcome = adaptkit.run(
        "head", backbone=model, settings=SMALL | {"base.mode": "probe", "split.source": 200, "base.epochs": 2}
    )
    client = tracking(own_folder)
    base = load_file(client.download_artifacts(outcome.base.run_id, "base/base.safetensors", str(own_folder)))
    unchanged = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, base[name])}
    assert unchanged == set(base) - {"out.weight", "out.bias"} and base["out.weight"].shape == (10, 8)
    card = json.loads(
        Path(client.download_artifacts(outcome.base.run_id, "base/base.json", str(own_folder))).read_text()
    )
    assert card["fingerprint"] == outcome.base.fingerprint and card["backbone"] == "python:Plain"
    trained = adaptkit.run(
        "head", backbone=model, settings=SMALL | {"split.source": 200, "base.epochs": 2}, track=False
    )
    assert trained.base.fingerprint != outcome.base.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(("bn", "moves"), [pytest.param("freeze", False, marks=pytest.mark.slow), ("adapt", True)])
def test_statistics_of_frozen_layers_adapt_on_request(own_folder: Path, store: Path, bn: str, moves: bool) -> None:
    settings = SMALL | {"split.source": 200, "base.epochs": 1}
    outcome = adaptkit.run(["lora", "head"], backbone=Plain(), settings=settings, bn=bn)
    # At its end, each run compares the reloaded model with the trained one, to 1e-4.
    assert outcome.failed == ()
    for record in outcome.runs:
        assert record.run_id is not None
        path = tracking(own_folder).download_artifacts(record.run_id, "adapter/adapter.safetensors", str(own_folder))
        assert {name for name in load_file(path) if "running" in name} == (
            {"norm.running_mean", "norm.running_var"} if moves else set()
        )


def test_store_that_changes_the_adapter_is_reported(
    own_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    download = mlflow.artifacts.download_artifacts

    def corrupt_download(**arguments: str) -> str:
        folder = download(**arguments)
        weights = Path(folder, "adapter.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
        return folder

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", corrupt_download)
    outcome = adaptkit.run("head", dataset="none", target="digits", backbone=Plain(), settings=SMALL)
    assert [run.status for run in outcome.runs] == ["finished"]
    # The run evaluates the adapter that it sent, and the store must return the same file.
    assert outcome.tracking_error is not None
    assert outcome.tracking_error.startswith(
        "adapter.safetensors differs from the original after its upload to the store; the missing records"
    )


def test_augmentations_apply_to_training_only() -> None:
    plain = run("head", dataset="none", target="digits")
    augmented = run("head", dataset="none", target="digits", augment="noise=0.5")
    assert augmented.data_fingerprint == plain.data_fingerprint
    assert augmented.base.fingerprint == plain.base.fingerprint
    assert augmented.runs[0].epochs[0].loss != plain.runs[0].epochs[0].loss
    assert (
        run("head", dataset="none", target="digits", augment="noise=0").runs[0].metrics["final/shifted_accuracy"]
        == (plain.runs[0].metrics["final/shifted_accuracy"])
    )
    with pytest.raises(BadInput) as caught:
        run("head", dataset="none", target="digits", augment="noize=0.5,blur")
    assert caught.value.problems == (
        "unknown shift 'noize'; did you mean 'noise'?",
        "augment: 'blur' is not name=amount, as in rotate=45,noise=0.3",
    )
    with pytest.raises(BadInput) as caught:
        run("head", dataset="none", target="digits", augment="noize=0.5")
    assert caught.value.problems == ("unknown shift 'noize'; did you mean 'noise'?",)


class Sized(Plain):
    """A model that records the size of its images."""

    seen: ClassVar[set[int]] = set()

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor:  # not during tracing
            self.seen.add(x.shape[-1])
        return super().forward(x)


def test_image_size_applies_to_all_images() -> None:
    outcome = adaptkit.run(
        "head", dataset="none", target="digits", backbone=Sized(), settings=SMALL, image_size=20, track=False
    )
    assert outcome.failed == () and Sized.seen == {20}


@pytest.mark.slow
def test_split_file_is_reused(own_folder: Path, store: Path) -> None:
    first = adaptkit.run("head", dataset="none", target="digits", backbone=Plain(), settings=SMALL)
    path = tracking(own_folder).download_artifacts(first.runs[0].run_id, "split.json", str(own_folder))
    written = json.loads(Path(path).read_text())
    assert list(written["parts"]) == ["pool", "shifted_test"]
    assert [len(part["images"]) for part in written["parts"].values()] == [100, 100]
    other = run("head", dataset="none", target="digits", settings={"split.seed": 5})
    assert other.data_fingerprint != first.data_fingerprint
    again = run("head", dataset="none", target="digits", settings={"split.seed": 5, "split.file": path})
    assert again.data_fingerprint == first.data_fingerprint
    written["parts"]["pool"]["images"].append(1797)
    del written["sha256"]  # edited on purpose
    Path(path).write_text(json.dumps(written))
    with pytest.raises(BadInput) as caught:
        run("head", dataset="none", target="digits", settings={"split.file": path})
    assert caught.value.problems == ("split.file: these images are not in digits: 1797",)


def test_duplicates_across_the_split_are_reported(cli: Any, own_folder: Path) -> None:
    make_photos(own_folder / "photos", per_class=10, size=24)
    asked = (
        "run",
        "-s",
        "head",
        "--dataset",
        "none",
        "--weights",
        "none",
        "--target",
        "folder:photos",
        "--image-size",
        "24",
        "--dry-run",
    )
    asked = (*asked, "--protocol", "draws", "--set", "shots=2")
    first = json.loads(cli(*asked, "--json").stdout)["notices"]
    for picture in sorted((own_folder / "photos").rglob("*.*")):
        shutil.copy(picture, picture.with_stem(f"{picture.stem} copy"))
    (line,) = (line for line in json.loads(cli(*asked, "--json").stdout)["notices"] if line not in first)
    assert re.fullmatch(r"\d+ of 48 images of the test set are exact copies of images in the pool: .*, .*", line)


def tracking(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
