"""timm models as backbones: outputs, head, channels, copies."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from adaptkit_timm import Timm
from torch import Tensor, nn

from adaptkit import BadInput
from adaptkit.backbones.structure import find_head, with_head
from adaptkit.settings.resolve import make_checked
from adaptkit.testing import checks

#: one small model of each kind
RESNET = ("resnet10t", {"weights": "none", "size": "data"})
VIT = ("test_vit", {"weights": "none", "size": "32"})
CONVNEXT = ("test_convnext", {"weights": "none", "size": "32"})
MODELS = pytest.mark.parametrize(("name", "options"), [RESNET, VIT, CONVNEXT], ids=["resnet", "vit", "convnext"])


def build(name: str, options: dict[str, str], channels: int = 3, size: int = 32, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return make_checked("timm", Timm, options, argument=name)[0].build(channels, size, classes)


def images(channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "check",
    [check for name, options in (RESNET, VIT, CONVNEXT) for check in checks(Timm, options, argument=name)],
    ids=str,
)
def test_conformance(check):
    check()


@MODELS
@torch.no_grad()
def test_output_matches_timm(name, options):
    model = build(name, options, size=24).eval()
    plain = timm.create_model(name, num_classes=5, **({"img_size": 32} if "vit" in name else {})).eval()
    plain.load_state_dict(model.state_dict())  # exactly timm's names
    small = images(size=24)
    pixels = 24 if options["size"] == "data" else 32
    resized = nn.functional.interpolate(small, (pixels, pixels), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    assert torch.equal(model(small), plain((resized - mean) / std))


@torch.no_grad()
def test_no_resizing_at_model_size():
    model = build("resnet10t", {"weights": "none", "size": "32"}).eval()
    assert model.resized_to is None
    assert torch.equal(model(images()), build(*RESNET).eval()(images()))


@torch.no_grad()
def test_grey_images_are_expanded():
    model, grey = build(*RESNET, channels=1).eval(), images(channels=1)
    assert model.conv1[0].in_channels == 3
    assert torch.allclose(model(grey), model(grey.expand(-1, 3, -1, -1)), atol=1e-6)


@torch.no_grad()
def test_five_channels():
    model = build(*RESNET, channels=5).eval()
    assert model.conv1[0].in_channels == 5
    assert model.input_mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406, 0.485, 0.456])
    assert model(images(channels=5)).shape == (4, 5)


@MODELS
def test_head_is_the_classifier(name, options):
    model = with_head(build(name, options))
    head = find_head(model.head)
    assert head is model.get_classifier()
    assert head.out_features == 5
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})


def test_head_after_wrapping():
    model = build(*RESNET)
    assert model.head is model.fc
    model.fc = nn.Sequential(model.fc)
    assert model.head is model.fc


@MODELS
@torch.no_grad()
def test_pickle_and_deepcopy(name, options):
    model = with_head(build(name, options)).eval()
    expected = model(images())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images()), expected)
        assert twin.head is not model.head
        assert repr(twin) == repr(model)


def test_repr_shows_preprocessing():
    resized, unresized = (repr(build("resnet10t", {"weights": "none", "size": size})) for size in ("64", "data"))
    assert resized.replace("(64, 64)", "None") == unresized
    assert "resized_to=None, mean=[0.48" in unresized


def test_weights_come_from_global_generator():
    ours, same = (build(*RESNET).state_dict() for _ in range(2))
    assert all(torch.equal(ours[key], same[key]) for key in ours)
    torch.manual_seed(1)
    other = Timm("resnet10t", "none", "data").build(3, 32, 5).state_dict()
    assert not torch.equal(ours["fc.weight"], other["fc.weight"])


def test_described_values():
    assert dict(Timm("resnet10t", "none").described(1, 28)) == {
        "channels": 3,
        "input_size": 28,
        "mean": "0.485,0.456,0.406",
        "std": "0.229,0.224,0.225",
        "weights_id": "none",
    }
    assert Timm("resnet10t", "none", "model").described(1, 28)["input_size"] == 176
    assert Timm("vit_tiny_patch16_224", "none", "data").described(1, 32)["input_size"] == 32


@pytest.mark.parametrize(
    ("name", "size", "pixels"),
    [("resnet18", "model", 224), ("resnet18", "data", 224), ("resnet18", "96", 96), ("test_vit", "model", 160)],
)
def test_image_size(name, size, pixels):
    assert Timm(name, "none", size).image_size == pixels


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("resnet81", {}, "backbone timm:resnet81: timm has no model 'resnet81'; did you mean 'resnet18'?"),
        ("qqq", {}, "backbone timm:qqq: timm has no model 'qqq'; timm.list_models() lists the available models"),
        (
            "resnet10t.c4_in1k",
            {},
            "backbone timm:resnet10t.c4_in1k: timm has no weights 'c4_in1k' for resnet10t; did you mean 'c3_in1k'?",
        ),
        ("resnet10t", {"size": "big"}, "timm.size: must be model, data or a number of pixels, not 'big'"),
        ("resnet10t", {"size": 0}, "timm.size: must be model, data or a number of pixels, not 0"),
        (
            "resnet10t",
            {"weights": "lost.pth"},
            "backbone.weights: must be pretrained, default, none or an existing file, got 'lost.pth'",
        ),
        (
            "resnetv2_50x1_bit",
            {"weights": "none", "size": "data"},
            "backbone timm:resnetv2_50x1_bit: its classifier must be a linear layer, got Conv2d",
        ),
    ],
)
def test_invalid_options(name, options, line):
    with pytest.raises(BadInput) as caught:
        build(name, options)
    assert caught.value.problems == (line,)


def test_unsupported_size():
    with pytest.raises(BadInput, match=r"^backbone timm:inception_v3: it fails at 32x32 pixels .*backbone.size$"):
        build("inception_v3", {"weights": "none", "size": "data"})


def test_plugin_imports_no_torch_or_timm():
    code = (
        "import sys, adaptkit_timm\n"
        "adaptkit_timm.adaptkit_backbones()\n"
        "print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert process.stdout == "[]\n"


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
