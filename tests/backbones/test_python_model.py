"""Model objects as backbones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit.adapters.weights import fingerprint
from adaptkit.backbones.python_model import python_backbone
from adaptkit.errors import BadInput
from adaptkit.plugins.components import make_checked
from adaptkit.plugins.loading import load_plugins
from adaptkit.testing import checks


class Net(nn.Module):
    """A model with BatchNorm and a layer after its classifier."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.pool(self.body(x)).flatten(1))
        return logits


def backbone(module: nn.Module) -> Any:
    offer = load_plugins(objects=[python_backbone(module)]).find("backbone", f"python:{type(module).__name__}")
    return make_checked("python", offer.cls, {}, argument=type(module).__name__)[0]


def problem(act: Callable[[], Any]) -> str:
    with pytest.raises(BadInput) as caught:
        act()
    (line,) = caught.value.problems
    return line


def test_build_copies_the_model() -> None:
    model = Net().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    given = backbone(model)
    images = torch.rand(3, 3, 8, 8)
    same, other = given.build(3, 8, 4), given.build(3, 8, 7)
    with torch.no_grad():
        assert torch.equal(same.eval()(images), model.eval()(images))
    assert list(other.state_dict()) == list(before) and other.out.out_features == 7
    assert [name for name, tensor in other.state_dict().items() if not torch.equal(tensor, before[name])] == (
        ["out.weight", "out.bias"]
    )
    assert all(parameter.requires_grad for parameter in other.parameters())
    other.body.requires_grad_(True)[0].weight.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert given.described(3, 8) == {"weights_id": fingerprint(before)[:12]}
    assert not hasattr(given, "image_size")


def test_new_head_depends_on_the_seed() -> None:
    given = backbone(Net())
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(given.build(3, 8, 7).out.weight)
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "check",
    # The model is for colour images; it has no options.
    [check for check in checks(type(backbone(Net())), argument="Net") if check.subject == "32 px x3"],
    ids=str,
)
def test_conformance(check: Any) -> None:
    check()


def test_unusable_models() -> None:
    assert problem(lambda: python_backbone("resnet")) == "backbone: must be a name or a torch.nn.Module, not str"  # type: ignore[arg-type]
    assert problem(lambda: python_backbone(nn.Sequential(nn.Flatten()))) == (
        "backbone python:Sequential has no linear layer to serve as head"
    )
    assert problem(lambda: python_backbone(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)))) == (
        "backbone python:Sequential: 1.weight is not initialised yet; call the model on an image first"
    )
    model = Net()
    model.kept = model.out.weight * 2  # type: ignore[assignment]
    assert problem(lambda: python_backbone(model)).startswith(
        "backbone python:Net: it cannot be copied (Only Tensors created explicitly by the user"
    )
    assert problem(lambda: type(backbone(Net()))("Other")) == (
        "backbone python:Other: the model that was passed is python:Net"
    )


def test_images_that_do_not_fit() -> None:
    line = problem(lambda: backbone(Net()).build(1, 8, 4))
    assert line.startswith("backbone python:Net: it does not work on images [1, 8, 8] (Given groups=1, weight of size")
    assert line.endswith("; set another size of images with image_size")
    auxiliary = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 4), nn.Unflatten(1, (-1, 1)))
    assert problem(lambda: backbone(auxiliary).build(3, 8, 7)) == (
        "backbone python:Sequential: its output for 2 images is [2, 7, 1], not logits [2, 7]; "
        "its last linear layer must be its classifier"
    )
