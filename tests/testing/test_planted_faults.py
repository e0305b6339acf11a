"""`plugins check` finds faults that were seen in plugins for real networks: each planted fault fails a check."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from adaptkit.backbones.structure import replace_layer
from adaptkit.testing import checks, try_all


class Update(nn.Module):
    """A low-rank update of a layer, as a first attempt at LoRA writes it."""

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        width = base_layer.weight[0].numel()
        self.down = nn.Parameter(torch.randn(2, width) * 0.1)
        self.up = nn.Parameter(torch.zeros(base_layer.weight.shape[0], 2))

    def delta(self) -> Tensor:
        return (self.up @ self.down).view_as(self.base_layer.weight)


class LinearUpdate(Update):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        return y + x @ self.delta().T


class FlatUpdate(Update):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        return y + torch.mm(x.reshape(-1, x.shape[1]), self.delta().T).view_as(y)


class ConvUpdate(Update):
    def forward(self, x: Tensor) -> Tensor:
        base = self.base_layer
        y: Tensor = base(x)
        return y + nn.functional.conv2d(x, self.delta(), None, base.stride, base.padding, base.dilation, base.groups)


@dataclass
class Simple:
    """Update the layers of one type, without a look at how the model uses them."""

    name: ClassVar[str] = "simple"
    kind: ClassVar[type[nn.Module]] = nn.Linear
    update: ClassVar[type[Update]] = LinearUpdate

    def adapt(self, model: Any) -> list[nn.Parameter]:
        trained: list[nn.Parameter] = []
        for layer in [module for module in model.modules() if type(module) is self.kind]:
            wrapped = self.update(layer)
            replace_layer(model, layer, wrapped)
            trained += [wrapped.down, wrapped.up]
        return trained or list(model.head.parameters())

    def merge(self, model: Any) -> None:
        for module in list(model.modules()):
            if isinstance(module, Update):
                layer = copy.deepcopy(module.base_layer)
                layer.weight.data += module.delta().data
                replace_layer(model, module, layer)


class FlatInputs(Simple):
    update: ClassVar[type[Update]] = FlatUpdate


class AnyConvolution(Simple):
    update: ClassVar[type[Update]] = ConvUpdate

    def adapt(self, model: Any) -> list[nn.Parameter]:
        trained: list[nn.Parameter] = []
        plain = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.padding_mode == "zeros"]
        for layer in plain:
            wrapped = self.update(layer)
            replace_layer(model, layer, wrapped)
            trained += [wrapped.down, wrapped.up]
        return trained or list(model.head.parameters())


class Tied(Simple):
    """Update also layers that share a weight, but no layer whose weight is read."""

    def adapt(self, model: Any) -> list[nn.Parameter]:
        trained: list[nn.Parameter] = []
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and name in ("first", "second"):
                wrapped = self.update(layer)
                replace_layer(model, layer, wrapped)
                trained += [wrapped.down, wrapped.up]
        return trained or list(model.head.parameters())

    def merge(self, model: Any) -> None:
        for module in list(model.modules()):
            if isinstance(module, Update):
                module.base_layer.weight.data += module.delta().data
                replace_layer(model, module, module.base_layer)


class Original:
    """Merge into the layers that were adapted, whichever model is to be merged."""

    name = "original"

    def adapt(self, model: Any) -> list[nn.Parameter]:
        self.head = model.head
        return list(model.head.parameters())

    def merge(self, model: Any) -> None:
        self.head.weight.data *= 1.5


class Hooked:
    """Change outputs by a hook that holds a parameter of the model that was adapted."""

    name = "hooked"

    def adapt(self, model: Any) -> list[nn.Parameter]:
        bias = model.bias = nn.Parameter(torch.zeros(1))
        model.register_forward_hook(lambda module, inputs, output: output + bias * torch.arange(output.shape[1]))
        return [bias]


class HookedMerge(Hooked):
    """Leave the hook when the adapter is merged."""

    def adapt(self, model: Any) -> list[nn.Parameter]:
        model.register_forward_hook(observe)
        return list(model.head.parameters())

    def merge(self, model: Any) -> None:
        pass


def observe(module: Any, inputs: Any, output: Any) -> None:
    """Do nothing; a function, so that the model can be pickled."""


class Seeding:
    name = "seeding"

    def adapt(self, model: Any) -> list[nn.Parameter]:
        torch.manual_seed(0)
        return list(model.head.parameters())


class Counting(nn.Module):
    """Count the images that pass."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        y: Tensor = self.base_layer(x)
        return y


class MovingBuffers:
    name = "moving"

    def adapt(self, model: Any) -> list[nn.Parameter]:
        parameters = list(model.head.parameters())
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        replace_layer(model, first, Counting(first))
        return parameters


class Late:
    """Fail after as many steps as the warm-up of a schedule has."""

    name = "late"

    def adapt(self, model: Any) -> list[nn.Parameter]:
        return list(model.head.parameters())

    def step_ended(self, model: Any, step: int) -> None:
        if step == 30:
            raise RuntimeError("the warm-up has no end")


class Head:
    name = "planted"

    def adapt(self, model: Any) -> list[nn.Parameter]:
        return list(model.head.parameters())


class FitsNothing:
    name = "fits-nothing"

    def fit(self, model: Any, features: Tensor, labels: Tensor) -> None:
        pass


class FitsAList:
    name = "fits-a-list"

    def fit(self, model: Any, features: Tensor, labels: Tensor) -> Any:
        return list(model.head.parameters())


class Scaled(nn.Linear):
    """A head with a number outside of its parameters and buffers, which no file holds."""

    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class FitsHidden:
    name = "fits-hidden"

    def fit(self, model: Any, features: Tensor, labels: Tensor) -> nn.Module:
        head = Scaled(features.shape[1], model.head.out_features)
        head.scale = float(features.abs().mean()) + len(labels)
        return head


class FitsSeeded(FitsHidden):
    name = "fits-seeded"

    def fit(self, model: Any, features: Tensor, labels: Tensor) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(features.shape[1], model.head.out_features)


class NoPhase:
    name = "no-phase"

    def phases(self, model: Any) -> list[Any]:
        return []


class NoLoss(Head):
    def loss(self, model: Any, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        return logits.sum() * float("nan")


class HalfBatch(Head):
    """Forget the labels of half of the images."""

    def batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images, labels[: len(labels) // 2]


class FinishesMore(Head):
    """Change parameters at the end that were not trained, and are not saved."""

    @torch.no_grad()
    def finish(self, model: Any, base: Any) -> None:
        for parameter in model.parameters():
            parameter *= 0.9


class Forgetful(Head):
    """Give a state that is not the whole state."""

    def __init__(self) -> None:
        self.count = 0

    def step_ended(self, model: Any, step: int) -> None:
        self.count += 1
        with torch.no_grad():
            model.head.weight *= 1 - 0.01 * self.count

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


STRATEGIES = {
    FitsNothing: ("cnn", "trains all that it declares", "is declared, but training does not change it"),
    FitsAList: ("cnn", "declares what it trains", "fit() returned a list; return the new head, or None"),
    FitsHidden: ("cnn", "saves and loads", "is there state outside of parameters and buffers?"),
    FitsSeeded: ("cnn", "changes no global state", "it seeds the random generator of torch for the whole process"),
    NoPhase: ("cnn", "declares what it trains", "phases() must return a list of adaptkit.Phase"),
    NoLoss: ("cnn", "trains", "the loss is not finite in epoch 1"),
    HalfBatch: ("cnn", "trains", "training fails"),
    FinishesMore: ("cnn", "changes only what it declares", "changes in training, but is not declared"),
    Forgetful: ("cnn", "resumes", "a resumed training gives different values of"),
    Simple: ("entangled", "works in training and evaluation", "AttributeError: 'LinearUpdate' object has no attribute"),
    FlatInputs: ("channels-last", "works in training and evaluation", "in training it raises RuntimeError"),
    AnyConvolution: ("channels-last", "works in training and evaluation", "in training it raises RuntimeError"),
    Tied: ("entangled", "merges exactly", "after merge() the logits differ by"),
    Original: ("cnn", "merges exactly", "merge() of a copy"),
    Hooked: ("cnn", "pickles and copies", "the adapted model cannot be pickled"),
    HookedMerge: ("cnn", "merges exactly", "after merge(), hooks are left on the model"),
    Seeding: ("cnn", "changes no global state", "it seeds the random generator of torch for the whole process"),
    MovingBuffers: ("cnn", "works in training and evaluation", "in evaluation mode it changes features.0.seen"),
    Late: ("cnn", "trains", "training fails: RuntimeError: the warm-up has no end"),
}


def failures(cls: type, subject: str, check: str) -> list[str]:
    """Return the reasons of a check's failures on the subjects whose name begins with this text."""
    chosen = [one for one in checks(cls) if one.name == check and one.subject.startswith(subject)]
    assert chosen
    return [verdict.reason for verdict in try_all(chosen) if verdict.word == "failed"]


@pytest.mark.parametrize("cls", STRATEGIES, ids=lambda cls: cls.__name__)
def test_strategy(cls: type) -> None:
    subject, check, reason = STRATEGIES[cls]
    found = failures(cls, subject, check)
    assert found and reason in found[0]


class Net(nn.Module):
    """A sound model; the others have one fault each."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.fc = nn.Linear(4, classes)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features(x))


@dataclass
class Output:
    logits: Tensor


class WithLogits(Net):
    def forward(self, x: Tensor) -> Any:
        return Output(super().forward(x))


class TupleInTraining(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return (y, y) if self.training else y


class SecondHead(Net):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.other = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Any:
        return (self.fc(self.features(x)) + self.other(self.features(x))) / 2


class OtherSecondHead(SecondHead):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.other = nn.Linear(4, classes, bias=False)
        self.wider = nn.Linear(4, 6)
        self.last = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.wider(self.features(x))) + self.other(self.features(x))


class UnusedHead(Net):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.auxiliary = nn.Linear(4, classes)


class Softmax(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).softmax(1)


class Moving(Net):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.seen = self.seen + len(x)
        return super().forward(x)


class Random(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


class Statistics(Net):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.fc = nn.Linear(4, classes)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))


class Seeded(Net):
    def __init__(self, channels: int, classes: int) -> None:
        torch.manual_seed(0)
        super().__init__(channels, classes)


BACKBONES = {
    Net: ("gives logits", ""),
    WithLogits: ("gives logits", "its forward() gives a Output; return its attribute `logits`, a tensor [1, 10]"),
    TupleInTraining: ("trains", "its forward() gives a tuple in training mode; return the logits alone"),
    SecondHead: ("has a head", "model.head is not its only classifier: fc, other are averaged or added"),
    OtherSecondHead: ("has a head", "model.head is not its only classifier"),
    UnusedHead: ("has a head", "the logits do not depend on model.head"),
    Softmax: ("treats images independently", "its outputs are probabilities, not logits"),
    Moving: ("treats images independently", "in evaluation mode it changes seen"),
    Random: ("treats images independently", "in evaluation mode it gives different logits each time"),
    Statistics: ("treats images independently", "the logits of an image depend on the other images"),
    Seeded: ("changes no global state", "it seeds the random generator of torch for the whole process"),
}


@pytest.mark.parametrize("net", BACKBONES, ids=lambda net: net.__name__)
def test_backbone(net: type[Net]) -> None:
    class Planted:
        name = "planted"

        def build(self, channels: int, size: int, classes: int) -> nn.Module:
            return net(channels, classes)

    check, reason = BACKBONES[net]
    found = failures(Planted, "28 px", check)
    assert (reason in found[0]) if reason else (not found)
