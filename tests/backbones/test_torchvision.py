"""Models of torchvision as backbones: results, weights and error messages."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import pickle
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from click.testing import Result
from safetensors.torch import save_file
from support.experiments import TINY
from torch import Tensor, nn
from torchvision.models import DenseNet, ShuffleNet_V2_X0_5_Weights, VisionTransformer, get_model, list_models

from adaptkit.backbones import torchvision_models as torchvision_weights
from adaptkit.backbones.structure import find_head, replace_head, with_head
from adaptkit.backbones.torchvision import Torchvision
from adaptkit.backbones.torchvision_models import _architecture, _require_fit, load_file, published_size
from adaptkit.errors import BadInput
from adaptkit.testing import checks
from adaptkit.training.frozen.division import divide

Cli = Callable[..., Result]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: the smallest model
SMALL = "shufflenet_v2_x0_5"

#: one model of each family, with the name of its classifier
FAMILIES = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "efficientnet_v2_s": "classifier.1",
    "googlenet": "fc",
    "inception_v3": "fc",
    "maxvit_t": "classifier.5",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "regnet_x_400mf": "fc",
    "resnet18": "fc",
    "shufflenet_v2_x0_5": "fc",
    "swin_t": "head",
    "swin_v2_t": "head",
    "vgg11_bn": "classifier.6",
    "vit_b_16": "heads.head",
}


def build(name: str, weights: str = "none", channels: int = 3, size: int = 32, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return with_head(Torchvision(name, weights).build(channels, size, classes)).eval()


def images(channels: int = 3, size: int = 32, count: int = 6) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def problem(act: Callable[[], Any]) -> str:
    with pytest.raises(BadInput) as caught:
        act()
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def same(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that differ."""
    return [
        name for name, tensor in model.state_dict().items() if name not in state or not torch.equal(tensor, state[name])
    ]


def others(classes: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return get_model(SMALL, weights=None, num_classes=classes).state_dict()


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("resnet18", "mobilenet_v3_small", "vit_b_16") else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_head_of_each_family(name: str) -> None:
    _require_fit(name, published_size(name))
    with contextlib.suppress(NotImplementedError), torch.device("meta"):
        model = _architecture(name, published_size(name), 5)
        assert find_head(model) is model.get_submodule(FAMILIES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(list_models(module=torchvision.models)) - {"regnet_y_128gf"}))
def test_published_size_of_each_model(name: str) -> None:
    if name.startswith("squeezenet"):
        assert problem(lambda: _require_fit(name, 224)).endswith("SqueezeNet has no linear layer to serve as head")
    else:
        _require_fit(name, published_size(name))


@pytest.mark.parametrize("check", checks(Torchvision, {"weights": "none"}, argument=SMALL), ids=str)
def test_conformance(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        check
        for name in ("resnet18", "convnext_tiny", "vit_b_32", "swin_t", "densenet121", "mnasnet0_5", "googlenet")
        for check in checks(Torchvision, {"weights": "none"}, argument=name)
        if not (check.subject == "28 px x1" and name in ("convnext_tiny", "vit_b_32", "densenet121"))
    ],
    ids=str,
)
def test_conformance_of_other_families(check: Callable[[], None]) -> None:
    check()


@torch.no_grad()
def test_model_normalises_its_images() -> None:
    model = build("resnet18")
    plain = get_model("resnet18", weights=None, num_classes=5).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))
    assert torch.equal(model(images()), plain((images() - mean) / std))
    grey = build("resnet18", channels=1)
    assert torch.equal(grey(images(1)), plain((images(1).expand(-1, 3, -1, -1) - mean) / std))
    assert "mean=[0.485" in repr(model)  # in the recipe of a base


@torch.no_grad()
def test_copy_pickle_and_load_without_version() -> None:
    model = build("mnasnet0_5")
    logits = model(images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images()), logits)
        assert isinstance(other.head, nn.Linear)
    torch.manual_seed(3)
    fresh = Torchvision("mnasnet0_5", "none").build(3, 32, 5).eval()
    fresh.load_state_dict(dict(model.state_dict()))
    assert torch.equal(fresh(images()), logits)


@pytest.mark.parametrize(
    ("name", "cut"), [("resnet18", "flatten"), pytest.param("vit_b_32", "getitem_5", marks=pytest.mark.slow)]
)
def test_frozen_part(name: str, cut: str) -> None:
    model = build(name)
    model.requires_grad_(False).head.requires_grad_(True)
    division = divide(model, images(), contextlib.nullcontext)
    assert division is not None and [str(node) for node in division.cut] == [cut]


@pytest.mark.slow
@torch.no_grad()
def test_export() -> None:
    model = build("resnet18")
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
    assert torch.allclose(program.module()(images(count=3)), model(images(count=3)), atol=1e-6)


@torch.no_grad()
def test_models_with_auxiliary_logits() -> None:
    model = build("googlenet", size=32)
    assert model.train()(images()).shape == (6, 5)
    assert model.transform_input is True
    assert build("googlenet", channels=4).transform_input is False


def test_other_numbers_of_channels() -> None:
    model = build("mobilenet_v3_small", channels=4)
    assert next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d)).in_channels == 4
    assert model(images(4)).shape == (6, 5)
    assert problem(lambda: build("resnet18", "default", channels=4)) == (
        "backbone torchvision:resnet18: pretrained weights are for images of 3 channels, or of 1, which are expanded, "
        "not of 4; write --set backbone.bands=first3 (the first three), --set backbone.bands=fresh (a new first "
        "layer), or --weights none"
    )
    assert problem(lambda: Torchvision("resnet18", "default", "first3").build(2, 32, 5)) == (
        "backbone torchvision:resnet18: backbone.bands=first3 needs images of 3 channels or more, not of 2"
    )


@torch.no_grad()
def test_pretrained_weights_for_more_bands(tmp_path: Path) -> None:
    plain = build("resnet18")
    torch.save(plain.state_dict(), path := tmp_path / "weights.pt")
    first = Torchvision("resnet18", str(path), "first3")
    assert torch.equal(first.build(13, 32, 5).eval()(images(13)), plain(images(13)[:, :3]))
    assert first.described(13, 32)["mean"].count(",") == 2
    fresh = Torchvision("resnet18", str(path), "fresh").build(13, 32, 5).eval()
    weight = plain.conv1.weight
    assert torch.allclose(fresh.conv1.weight, weight.mean(1, keepdim=True).expand(-1, 13, -1, -1) * 3 / 13)
    assert torch.equal(fresh.fc.weight, plain.fc.weight)
    copied = pickle.loads(pickle.dumps(first.build(13, 32, 5))).eval()
    assert torch.equal(copied(images(13)), plain(images(13)[:, :3]))
    # a saved model is built without weights, and its own weights are loaded
    rebuilt = Torchvision("resnet18", "none", "fresh").build(13, 32, 5)
    rebuilt.load_state_dict(fresh.state_dict())
    assert torch.equal(rebuilt.eval()(images(13)), fresh(images(13)))
    # with colours, bands have no effect
    assert torch.equal(Torchvision("resnet18", str(path), "fresh").build(3, 32, 5).eval()(images()), plain(images()))


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("vit_b_16", 28, "the image size must be a multiple of 16, not 28; "),
        ("vgg11", 28, "it does not work on images of 28x28 pixels (Given input size: (512x1x1). "),
        ("maxvit_t", 64, "it does not work on images of 64x64 pixels (Input size (16, 16) of block 0 is not divisible"),
    ],
)
def test_sizes_that_do_not_fit(name: str, size: int, reason: str) -> None:
    line = problem(lambda: build(name, size=size))
    assert line.startswith(f"backbone torchvision:{name}: {reason}")
    assert line.endswith("set another, such as --image-size 224")


def test_names_and_sizes(cli: Cli) -> None:
    assert [Torchvision(name).image_size for name in ("resnet18", "inception_v3", "vit_h_14")] == [224, 299, 518]
    assert Torchvision("efficientnet_v2_l", "none").described(1, 64) == {
        "input_size": 64,
        "mean": "0.5,0.5,0.5",
        "std": "0.5,0.5,0.5",
        "weights_id": "none",
    }
    title = "backbone torchvision:{0}: torchvision has no classification model '{0}'"
    assert problem(lambda: Torchvision("resnet81")) == f"{title.format('resnet81')}; did you mean 'resnet18'?"
    others = "; it has, among others, resnet18, mobilenet_v3_small and vit_b_16"
    assert problem(lambda: Torchvision("clip")) == title.format("clip") + others
    assert "torchvision:NAME" in cli("backbones").stdout
    assert "--set backbone.weights=default" in cli("backbones", "torchvision:resnet18").stdout


def test_broken_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert problem(lambda: Torchvision("resnet18")) == (
        "backbone torchvision:resnet18: torchvision cannot be imported (import of torchvision.models halted; None in "
        "sys.modules); install the one that matches torch: pip install --force-reinstall torch torchvision"
    )


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize(
    "kept", ["", "state_dict", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "model."]
)
def test_weights_from_a_file(tmp_path: Path, file: str, kept: str) -> None:
    state, path = others(), tmp_path / file
    named = {f"{kept}{name}": tensor for name, tensor in state.items()} if kept.endswith(".") else state
    if file == "w.safetensors":
        save_file(named, path)
    else:
        torch.save({"state_dict": named, "epoch": 3} if kept == "state_dict" else named, path)
    assert same(build(SMALL, str(path)), state) == []
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert Torchvision(SMALL, str(path)).described(3, 32)["weights_id"] == f"sha256:{digest}"


def test_weights_of_a_partly_compiled_model(tmp_path: Path) -> None:
    state = others()
    named = {name.replace("stage2.", "stage2._orig_mod."): tensor for name, tensor in state.items()}
    assert named.keys() != state.keys()
    torch.save(named, tmp_path / "w.pth")
    assert same(build(SMALL, "w.pth"), state) == []
    torch.save(state | {f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "two.pth")
    with pytest.raises(BadInput, match="unexpected: model"):  # only a prefix of all names is removed
        build(SMALL, "two.pth")


def test_classifier_of_other_classes_is_not_loaded(tmp_path: Path) -> None:
    state = others(classes=9)
    save_file(state, tmp_path / "w.safetensors")
    model = build(SMALL, "w.safetensors")
    assert same(model, state) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, build(SMALL, "w.safetensors").fc.weight)
    del state["fc.weight"], state["fc.bias"]
    save_file(state, tmp_path / "headless.safetensors")
    assert same(build(SMALL, "headless.safetensors"), state) == ["fc.weight", "fc.bias"]


def test_old_names_and_auxiliary_logits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"growth_rate": 2, "block_config": (2, 2), "num_init_features": 4, "num_classes": 5}
    model = DenseNet(**settings)
    state = DenseNet(**settings).state_dict()
    old = {re.sub(r"(layer\d+\.(norm|conv))([12])\.", r"\1.\3.", name): tensor for name, tensor in state.items()}
    old = {name: tensor for name, tensor in old.items() if not name.endswith("num_batches_tracked")}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old | {"aux1.fc.weight": torch.zeros(2)}, tmp_path / "densenet.pth")
    load_file(model, tmp_path / "densenet.pth", title="a DenseNet", size=32)
    assert same(model, state) == []


def test_positions_are_interpolated(tmp_path: Path) -> None:
    settings = {"num_layers": 1, "num_heads": 1, "hidden_dim": 4, "mlp_dim": 4, "num_classes": 5}
    state = VisionTransformer(image_size=24, patch_size=8, **settings).state_dict()
    model = VisionTransformer(image_size=16, patch_size=8, **settings)
    old = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t for name, t in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "vit.pth")
    load_file(model, tmp_path / "vit.pth", title="a ViT", size=16)
    assert same(model, state) == ["encoder.pos_embedding"]
    ours, theirs = model.encoder.pos_embedding[0], state["encoder.pos_embedding"][0]
    assert torch.equal(ours[0], theirs[0]) and len(ours) == 5
    assert torch.allclose(ours[1:], theirs[[1, 3, 7, 9]])  # the corners of 3x3, as torchvision aligns them


class Trap:
    """An object that executes code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("w.safetensors", b"no tensors at all", "cannot be read: it is damaged or not a file of weights"),
        ("w.pth", b"no tensors at all", "cannot be read: it is damaged or not a file of weights"),
        ("w.pth", {"conv.weight": torch.tensor([1.0, torch.nan])}, "contains numbers that are not finite: conv.weight"),
        ("w.pth", Trap(), "cannot be read: it contains more than tensors; save only the state_dict() of the model"),
        (
            "w.pth",
            nn.Linear(2, 2),
            "cannot be read: it contains more than tensors; save only the state_dict() of the model",
        ),
        ("w.pth", {"epoch": 3}, "does not contain a model's tensors by name"),
        ("w.pth", [torch.zeros(2)], "does not contain a model's tensors by name"),
        (
            "w.pth",
            {"conv1.0.weight": torch.zeros(24, 1, 3, 3), "x.weight": torch.zeros(2)},
            "does not fit torchvision:shufflenet_v2_x0_5: 279 missing: conv1.1.weight, conv1.1.bias, "
            "conv1.1.running_mean, ...; 1 unexpected: x.weight; "
            "1 of another shape: conv1.0.weight [24, 1, 3, 3] instead of [24, 3, 3, 3]",
        ),
    ],
)
def test_files_without_weights(tmp_path: Path, file: str, content: Any, reason: str) -> None:
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert problem(lambda: build(SMALL, file)).startswith(f"weights: {file} {reason}")
    assert not Path("harm").exists()


def test_missing_file_is_reported_first(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "resnet.pth").touch()
    chosen = ("--backbone", "torchvision:shufflenet_v2_x0_5", "--set", "backbone.weights=resnet.pt", "--set", "shots=0")
    result = cli("run", "-s", "head", *chosen)
    assert result.exit_code == 2
    assert "weights: there is no file 'resnet.pt'; did you mean 'resnet.pth'?\n" in result.stderr
    assert "shots" in result.stderr
    assert problem(lambda: Torchvision(SMALL, "IMAGENET1K")) == (
        "weights: must be default, none or a file (.safetensors, .pth, .pt, .bin), not 'IMAGENET1K'"
    )
    (tmp_path / "resnet.tar").touch()
    assert problem(lambda: Torchvision(SMALL, "resnet.tar")) == (
        "weights: resnet.tar must be a file that ends in .safetensors, .pth, .pt, .bin"
    )


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that publishes weights of a model at a local address, and returns their file."""
    torch.save(others(classes=1000), tmp_path / "made.pth")
    digest = hashlib.sha256((tmp_path / "made.pth").read_bytes()).hexdigest()[:8]
    file = (tmp_path / "made.pth").rename(tmp_path / f"shufflenet-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def publish(address: str) -> Path:
        value = ShuffleNet_V2_X0_5_Weights.DEFAULT.value
        changed = type(value)(f"{address}/{file.name}", value.transforms, value.meta)
        monkeypatch.setattr(ShuffleNet_V2_X0_5_Weights.DEFAULT, "_value_", changed)
        return file

    return publish


def test_published_weights_in_torch_folder(tmp_path: Path, published: Callable[[str], Path]) -> None:
    file = published("http://127.0.0.1:9")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(file, folder)
    state = others(classes=1000)
    assert same(build(SMALL, "default"), state) == ["fc.weight", "fc.bias"]
    assert same(build(SMALL, "default", classes=1000), state) == []
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    assert Torchvision(SMALL).described(1, 32) == {
        "input_size": 32,
        "mean": "0.485,0.456,0.406",
        "std": "0.229,0.224,0.225",
        "weights_id": f"IMAGENET1K_V1 sha256:{digest}",
    }
    (folder / file.name).write_bytes(b"half a file")
    assert problem(lambda: build(SMALL, "default")) == (
        f"weights: IMAGENET1K_V1 of torchvision:shufflenet_v2_x0_5: {folder / file.name} is damaged or a different "
        "file; delete it, or use --weights FILE or --weights none"
    )


def test_download_of_published_weights(tmp_path: Path, published: Callable[[str], Path]) -> None:
    file = published(tmp_path.as_uri())
    assert same(build(SMALL, "default"), others(classes=1000)) == ["fc.weight", "fc.bias"]
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    assert [kept.name for kept in folder.iterdir()] == [file.name]
    (folder / file.name).unlink()
    file.write_bytes(b"other content")
    line = problem(lambda: build(SMALL, "default"))
    assert line.startswith(
        "weights: IMAGENET1K_V1 of torchvision:shufflenet_v2_x0_5: the download failed (invalid hash value"
    )
    assert line.endswith(f"copy the file to {folder / file.name}, or use --weights FILE or --weights none")
    assert list(folder.iterdir()) == []


def test_failed_download(
    cli: Cli, tmp_path: Path, published: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_weights, "ANSWER_WITHIN", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        file = published(f"http://{host}")
        began = time.monotonic()
        result = cli("run", "-s", "head", "--backbone", "torchvision:shufflenet_v2_x0_5", *TINY)
        assert time.monotonic() - began < 5
    path = tmp_path / "torch" / "hub" / "checkpoints" / file.name
    assert (result.exit_code, result.stderr) == (
        2,
        f"Error: weights: IMAGENET1K_V1 of torchvision:shufflenet_v2_x0_5 cannot be downloaded: {host} does not answer"
        f"; copy the file to {path}, or use --weights FILE or --weights none\n",
    )


def test_replace_head() -> None:
    class Wrapper(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.base_layer = layer

    model = nn.Sequential(nn.Linear(4, 3), Wrapper(nn.Linear(3, 2, bias=False).double()))
    fresh = replace_head(model, find_head(model), 7)
    assert model[1] is fresh
    assert (fresh.in_features, fresh.out_features, fresh.bias, fresh.weight.dtype) == (3, 7, None, torch.float64)
    single = nn.Linear(2, 3)
    assert problem(lambda: replace_head(single, single, 4)) == (
        "Linear consists of its head only; put it into a torch.nn.Sequential"
    )
    assert problem(lambda: find_head(nn.Sequential())) == "Sequential has no linear layer to serve as head"
