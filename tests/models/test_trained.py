"""Models of finished runs: `adaptkit.load`, its preprocessing, and the errors for damaged records."""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from mlflow import MlflowClient
from PIL import Image
from support.artifacts import artifacts_of, copied, run_of
from support.experiments import TINY_SETTINGS, Tracked
from torch import nn

import adaptkit
from adaptkit.adapters.files import card_digest, save_adapter
from adaptkit.adapters.weights import fingerprint, pack, unpack
from adaptkit.backbones.small_cnn_layers import SmallCNNModel
from adaptkit.errors import BadInput
from adaptkit.models.preprocessing import Preprocessing
from adaptkit.models.run_images import run_data
from adaptkit.models.trained import find_trained, given_plugins
from adaptkit.system.files import sha256_of

Cli = Callable[..., Result]

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def own(tracked: Tracked, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a copy of the tracked store for the tests of this file; each test leaves it unchanged."""
    return copied(tracked, tmp_path_factory.mktemp("own") / "store")


@pytest.fixture
def folder(own: str, tracked: Tracked) -> Iterator[Path]:
    """Yield the adapter folder of the copied LoRA run; restore its files after the test."""
    adapter = artifacts_of(own, run_of(tracked, "lora")) / "adapter"
    before = {path: path.read_bytes() for path in adapter.iterdir()}
    yield adapter
    for path, content in before.items():
        path.write_bytes(content)


@pytest.fixture
def no_cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start from an empty cache, as on a new machine."""
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    return own_folder / "cache"


@pytest.mark.parametrize("strategy", ["lora", "head"])
def test_load_repeats_recorded_predictions(strategy: str, tracked: Tracked, no_cache: Path) -> None:
    run_id = run_of(tracked, strategy)
    model = adaptkit.load(run_id, tracking_uri=tracked.uri)
    assert list(model.state_dict()) == ["source_mean", "source_std", *SmallCNNModel(1, 28, 10).state_dict()]
    assert not model.training and model.classes == DIGITS
    trained = find_trained(run_id, tracked.uri, given_plugins([]))
    _, domains = run_data(trained.stored, given_plugins([]))
    with (artifacts_of(tracked.uri, run_id) / "predictions.csv").open() as file:
        recorded = [row["prediction"] for row in csv.DictReader(file) if row["test_set"] == "shifted"]
    assert [DIGITS[number] for number in model(domains.shifted_test.pixels).argmax(1)] == recorded
    adapted = adaptkit.load(run_id, tracking_uri=tracked.uri, merged=False)
    pixels = torch.rand(16, 1, 28, 28)
    assert (adapted(pixels) - model(pixels)).abs().max() < 1e-5
    assert (strategy == "lora") == any("lora_A" in name for name in adapted.state_dict())


def test_load_base(tracked: Tracked) -> None:
    base = tracked.outcome["base"]
    model = adaptkit.load(base["run_id"], tracking_uri=tracked.uri)
    assert fingerprint(model.state_dict()) == base["fingerprint"]
    assert model.classes == DIGITS


def test_preprocess_after_copy(tracked: Tracked, own_folder: Path) -> None:
    model: Any = copy.deepcopy(adaptkit.load(run_of(tracked, "lora"), tracking_uri=tracked.uri))
    Image.new("RGB", (60, 40), (255, 0, 0)).save("red.png")
    bytes_image = torch.full((28, 28), 51, dtype=torch.uint8)
    batch = model.preprocess(["red.png", own_folder / "red.png", Image.new("L", (28, 28), 255), bytes_image])
    assert batch.shape == (4, 1, 28, 28) and batch.dtype == torch.float32
    # Red's luminance is 0.299 * 255 = 76.
    assert batch.amax((1, 2, 3)).tolist() == pytest.approx([76 / 255, 76 / 255, 1.0, 0.2])
    assert model(batch).shape == (4, 10)


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (torch.full((3, 8, 8), 9.0), "float images must be in 0..1, got 9 to 9; images in 0..255 must be uint8"),
        (
            torch.full((3, 8, 8), float("nan")),
            "float images must be in 0..1, got nan to nan; images in 0..255 must be uint8",
        ),
        (torch.rand(2, 8, 8), "images have 2 channels, but the model takes 1"),
        (torch.rand(8), "images must have the shape [c, h, w] or [n, c, h, w], got [8]"),
        (torch.ones(1, 8, 8, dtype=torch.int64), "images must be uint8 or floats in 0..1, got int64"),
        ([], "no images to preprocess"),
    ],
)
def test_preprocess_refuses_bad_images(images: Any, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        Preprocessing(1, 28)(images)
    assert caught.value.problems == (problem,)


def test_preprocess_converts_channels_and_size() -> None:
    wide = torch.zeros(1, 3, 40, 80, dtype=torch.uint8)
    wide[..., 20:60] = 255
    # The shorter side becomes 20, and the middle 20 of 40 columns are white.
    assert torch.equal(Preprocessing(3, 20)(wide)[..., 1:-1], torch.ones(1, 3, 20, 18))
    assert Preprocessing(3, 20)(torch.rand(28, 28)).shape == (1, 3, 20, 20)


def test_load_from_moved_store(tracked: Tracked, tmp_path: Path, no_cache: Path) -> None:
    uri = copied(tracked, tmp_path / "moved", Path("/gone/away"))
    model = adaptkit.load(run_of(tracked, "lora"), tracking_uri=uri)
    original = adaptkit.load(run_of(tracked, "lora"), tracking_uri=tracked.uri)
    assert fingerprint(model.state_dict()) == fingerprint(original.state_dict())


@pytest.mark.slow
def test_load_refuses_runs_without_model(cli: Cli, own: str, tracked: Tracked) -> None:
    client = MlflowClient(tracking_uri=own)
    experiment = client.get_run(run_of(tracked, "lora")).info.experiment_id
    ids = {}
    for name, tags, status in (
        ("foreign", {}, "FINISHED"),
        ("failed", {"adaptkit.kind": "adaptation"}, "FAILED"),
        ("killed", {"adaptkit.kind": "adaptation"}, "KILLED"),
        ("running", {"adaptkit.kind": "adaptation"}, None),
    ):
        ids[name] = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        if status:
            client.set_terminated(ids[name], status)
    parent = tracked.outcome["parent_run_id"]
    lora, head = run_of(tracked, "lora"), run_of(tracked, "head")
    expected = {
        "0" * 32: f"no run '{'0' * 32}' in {own.removeprefix('sqlite:///')}; `adaptkit ui` shows the ids of its runs",
        ids["foreign"]: "was not made by adaptkit: it has no model that adaptkit could rebuild",
        ids["failed"]: "failed: it has no model",
        ids["killed"]: "was killed: it has no model",
        ids["running"]: "is still running: wait for it",
        parent: "groups others and has no model; train one on all labels with "
        f"`adaptkit refit {parent}`, or name one of its runs: {lora} (lora rank=4 seed=0), {head} (head seed=0)",
    }
    Path("picture.png").touch()
    for run_id, problem in expected.items():
        result = cli("predict", run_id, "picture.png", "--tracking-uri", own)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ") and result.stderr.endswith(f"{problem}\n")
        assert result.stderr.count("\n") == 1
    client.delete_run(ids["failed"])
    with pytest.raises(BadInput, match="was deleted; `mlflow runs restore --run-id"):
        adaptkit.load(ids["failed"], tracking_uri=own)


def truncate(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def alter(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def truncate_and_sign(folder: Path) -> None:
    truncate(folder)
    change(sha256=hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest())(folder)


def rename(folder: Path) -> None:
    tensors = unpack((folder / "adapter.safetensors").read_bytes())
    tensors["nowhere.weight"] = tensors.pop("classifier.3.lora_A.weight")
    save_adapter(folder, tensors, json.loads((folder / "adapter.json").read_text()))


def reshape(folder: Path) -> None:
    tensors = unpack((folder / "adapter.safetensors").read_bytes())
    tensors["classifier.3.lora_A.weight"] = torch.zeros(5, 128)
    save_adapter(folder, tensors, json.loads((folder / "adapter.json").read_text()))


def change(**values: Any) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        card = json.loads((folder / "adapter.json").read_text())
        card |= values
        kept = {key: value for key, value in card.items() if value is not None}
        (folder / "adapter.json").write_text(json.dumps(kept))

    return changed


def seal(folder: Path, own: str, run_id: str) -> str:
    """Sign a changed card again, also in the run, as an attacker would; return the original signature."""
    path = folder / "adapter.json"
    card = json.loads(path.read_text())
    card["card_sha256"] = card_digest(card)
    path.write_text(json.dumps(card))
    client = MlflowClient(own)
    before = client.get_run(run_id).data.tags["adaptkit.adapter_sha256"]
    client.set_tag(run_id, "adaptkit.adapter_sha256", sha256_of(path))
    return before


def take_anothers(folder: Path) -> None:
    other = next(path for path in folder.parents[2].glob("*/artifacts/adapter") if path != folder)
    for path in other.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


ALTERED = r"its adapter/adapter\.json was altered or belongs to another run"
#: damages of the card itself, which its signature reveals; for all others the card is signed again
UNSIGNED: dict[str, tuple[Callable[[Path], None], str]] = {
    "other options": (change(options={"rank": 4, "alpha": 64.0}), ALTERED),
    "other classes": (change(classes=list("9876543210")), ALTERED),
    "another run's": (take_anothers, ALTERED),
}
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, r"adapter\.safetensors is damaged: its sha256 is \w{64}, and adapter\.json says \w{64}"),
    "altered": (alter, r"adapter\.safetensors is damaged: its sha256 is \w{64}, and adapter\.json says \w{64}"),
    "truncated, with its own sha256": (truncate_and_sign, r"adapter\.safetensors is damaged: .+"),
    "another tensor": (
        rename,
        "the adapter does not fit the model: it has tensors that are not the model's: nowhere.w",
    ),
    "another shape": (reshape, "the adapter does not fit the model: it has tensors of another shape or type than the "),
    "no card": (lambda folder: (folder / "adapter.json").unlink(), r"has no artifact adapter/adapter\.json"),
    "no JSON": (lambda folder: (folder / "adapter.json").write_text("{"), r"adapter\.json is damaged: it is not JSON"),
    "a list": (lambda folder: (folder / "adapter.json").write_text("[]"), "is damaged: it is a JSON list, not an obj"),
    "a key lacks": (change(classes=None), "is damaged, or not written by adaptkit: it lacks classes"),
    "a wrong type": (change(channels="1", size=True), "is damaged: channels, size cannot be '1', True"),
    "a strategy unknown": (change(strategy="lorra"), "unknown strategy 'lorra'; did you mean 'lora'?"),
    "an option unknown": (change(options={"rnk": 4}), "unknown option 'lora.rnk'; did you mean 'rank'?"),
    "a backbone unknown": (
        change(backbone="mine"),
        r"unknown backbone 'mine'; known: .*; name its plugin with --plugin PATH",
    ),
    "a model from Python": (
        change(backbone="python:Net"),
        r"its backbone python:Net is a Python object; pass it again: adaptkit\.load\(run_id, backbone=model\)",
    ),
    "another size": (change(size=32), "the layers of the backbone small_cnn differ from those of the saved weights"),
    "another base": (change(base_fingerprint="a" * 64), r"the adapter was made for base a{64}, not \w{64}"),
}


@pytest.mark.parametrize("damage", [*UNSIGNED, *DAMAGES])
def test_load_refuses_damaged_adapter(damage: str, folder: Path, own: str, tracked: Tracked) -> None:
    break_it, problem = (UNSIGNED | DAMAGES)[damage]
    run_id = run_of(tracked, "lora")
    break_it(folder)
    signed = None
    with contextlib.suppress(OSError, ValueError, AttributeError):  # the damage removed the card
        signed = seal(folder, own, run_id) if damage in DAMAGES else None
    try:
        with pytest.raises(BadInput, match=problem) as caught:
            adaptkit.load(run_id, tracking_uri=own)
    finally:
        if signed is not None:
            MlflowClient(own).set_tag(run_id, "adaptkit.adapter_sha256", signed)
    assert len(caught.value.problems) <= 2


def test_load_checks_base_weights(own: str, tracked: Tracked, no_cache: Path) -> None:
    base = tracked.outcome["base"]
    path = artifacts_of(own, base["run_id"]) / "base" / "base.safetensors"
    before = path.read_bytes()
    state = unpack(before)
    state["classifier.3.bias"] += 1
    path.write_bytes(pack(state))
    try:
        with pytest.raises(BadInput) as caught:
            adaptkit.load(run_of(tracked, "lora"), tracking_uri=own)
        assert caught.value.problems == (
            f"run {run_of(tracked, 'lora')} (lora rank=4 seed=0): base/base.safetensors of its base, run "
            f"{base['run_id']} (base small_cnn mnist5k), is damaged: its fingerprint is {fingerprint(state)}, and was "
            f"{base['fingerprint']}",
        )
        with pytest.raises(BadInput, match=f"fingerprint is {fingerprint(state)}, and was {base['fingerprint']}"):
            adaptkit.load(base["run_id"], tracking_uri=own)
        path.write_bytes(before[:-10])
        with pytest.raises(BadInput, match=r"base\.safetensors is damaged"):
            adaptkit.load(run_of(tracked, "lora"), tracking_uri=own)
    finally:
        path.write_bytes(before)


def test_base_from_cache(
    own: str, tracked: Tracked, own_folder: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tracked.outcome["base"]
    # In the cache of the test process that ran the experiment.
    cards = [path for path in shared.glob("cache-*/bases/*/base.json") if base["fingerprint"] in path.read_text()]
    monkeypatch.setenv("ADAPTKIT_CACHE", str(cards[0].parents[2]))
    folder = artifacts_of(own, base["run_id"]) / "base"
    kept = own_folder / "kept"
    folder.rename(kept)
    try:
        model = adaptkit.load(run_of(tracked, "head"), tracking_uri=own)
        original = adaptkit.load(run_of(tracked, "head"), tracking_uri=tracked.uri)
        assert fingerprint(model.state_dict()) == fingerprint(original.state_dict())
        monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
        problem = "its base run has no artifact base/base.safetensors, and the cache of this machine has no base"
        with pytest.raises(BadInput, match=problem):
            adaptkit.load(run_of(tracked, "head"), tracking_uri=own)
    finally:
        kept.rename(folder)


class Net(nn.Module):
    """A model of a user, with a BatchNorm whose statistics differ from the initial ones."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.last = nn.Linear(196, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.body(images))
        return logits


@pytest.mark.slow
def test_load_model_from_python(store: Path, no_cache: Path) -> None:
    torch.manual_seed(0)
    outcome = adaptkit.run("lora", backbone=Net(), options={"targets": "all"}, settings=TINY_SETTINGS, epochs=1)
    run_id = outcome.runs[0].run_id
    with pytest.raises(BadInput, match="python:Net is a Python object"):
        adaptkit.load(run_id)
    model = adaptkit.load(run_id, backbone=Net())
    assert set(model.state_dict()) == set(Net().state_dict())
    trained = find_trained(run_id, None, given_plugins([], Net()))
    _, domains = run_data(trained.stored, given_plugins([], Net()))
    right = (model(domains.shifted_test.pixels).argmax(1) == domains.shifted_test.labels).float().mean()
    assert float(right) == pytest.approx(outcome.runs[0].metrics["final/shifted_accuracy"])
    with pytest.raises(BadInput, match="the model that was passed is python:Sequential"):
        adaptkit.load(run_id, backbone=nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))


@pytest.mark.slow
def test_merged_equals_adapted(store: Path, no_cache: Path) -> None:
    options = {"lora.targets": "all", "ssf.train_head": True}
    names = ["adapter", "full", "head", "lora", "partial", "scratch", "ssf"]
    outcome = adaptkit.run(names, options=options, settings=TINY_SETTINGS, epochs=1)
    pixels = torch.rand(32, 1, 28, 28)
    plain = ["source_mean", "source_std", *SmallCNNModel(1, 28, 10).state_dict()]
    for run in outcome.runs:
        merged, adapted = (adaptkit.load(run.run_id, merged=both) for both in (True, False))
        assert (merged(pixels) - adapted(pixels)).abs().max() < 1e-5, run.strategy
        # The nonlinearity of a bottleneck cannot be merged into a plain layer.
        assert (list(merged.state_dict()) == plain) == (run.strategy != "adapter"), run.strategy
