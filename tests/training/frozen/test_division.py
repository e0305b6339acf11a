"""Results are the same with and without cached features, for many models and strategies."""

from __future__ import annotations

import random
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from support.experiments import BITFIT, TINY_SETTINGS
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.models import ConvNeXt, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

import adaptkit
from adaptkit import hookimpl
from adaptkit.backbones.torchvision_models import normalising, statistics
from adaptkit.plugins.loading import load_plugins

SMALLEST = TINY_SETTINGS | {
    "batch_size": 16,
    "split.source": 100,
    "split.pool": 50,
    "split.test": 60,
    "base.epochs": 1,
    "shots": 2,
}


@pytest.fixture(autouse=True)
def allowed(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTKIT_NO_FEATURE_CACHE", raising=False)


class Watcher:
    """Offer one backbone and some strategies, and record the result of each adaptation run."""

    def __init__(self, build: Callable[[], nn.Module] | None, adapts: dict[str, Callable[[Any], Any]]) -> None:
        self.build, self.adapts = build, adapts
        self.seen: dict[str, Any] = {}
        self.prefixes: list[str] = []
        self.ended: list[tuple[Any, ...]] = []

    @hookimpl
    def adaptkit_backbones(self) -> list[type]:
        build = self.build

        class Tested:
            name = "tested"

            def build(self, channels: int, size: int, classes: int) -> nn.Module:
                assert build is not None
                return build()

        return [Tested] if build else []

    @hookimpl
    def adaptkit_strategies(self) -> list[type]:
        def offer(name: str, adapt: Callable[[Any], Any]) -> type:
            return type(name, (), {"name": name, "lr": 1e-2, "adapt": lambda self, model: adapt(model)})

        return [offer(name, adapt) for name, adapt in self.adapts.items()]

    @hookimpl
    def adaptkit_run_ended(self, run: Any, result: Any, model: nn.Module) -> None:
        if run.kind != "adaptation":
            return
        self.prefixes.append(result.tags["adaptkit.frozen_prefix"])
        epochs = [(e.loss, e.train_accuracy, e.test_accuracy, e.shifted_accuracy) for e in result.epochs]
        predicted = {name: (p.predicted, p.base_predicted) for name, p in result.predictions.items()}
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.seen[run.name] = state, predicted, epochs


def same_both_ways(
    build: Callable[[], nn.Module] | None, adapts: dict[str, Callable[[Any], Any]], *others: Any, **keys: Any
) -> list[str]:
    """Run strategies with and without cached features, compare the results, and return the cuts."""
    watchers = {}
    for reuse in (True, False):
        watcher = watchers[reuse] = Watcher(build, adapts)
        settings = {"strategies": list(adapts), "preset": "quick", "settings": SMALLEST, "track": False} | keys
        if build is not None:
            settings["backbone"] = "tested"
        outcome = adaptkit.run(plugins=[watcher, *others], feature_cache=reuse, **settings)
        watcher.ended = [(run.label, run.seed, run.status, run.error) for run in outcome.runs]
    divided, whole = watchers[True], watchers[False]
    assert divided.ended == whole.ended
    assert set(whole.prefixes) == {"none"}
    assert divided.seen.keys() == whole.seen.keys() != set()
    for name, (state, predicted, epochs) in divided.seen.items():
        plain_state, plain_predicted, plain_epochs = whole.seen[name]
        assert state.keys() == plain_state.keys()
        for key in state:
            torch.testing.assert_close(state[key], plain_state[key], rtol=1e-6, atol=1e-6, msg=f"{name}: {key}")
        for test in predicted:
            for ours, plain in zip(predicted[test], plain_predicted[test], strict=True):
                assert numpy.array_equal(ours, plain), (name, test)
        assert numpy.allclose(
            numpy.array(epochs, float), numpy.array(plain_epochs, float), rtol=1e-6, equal_nan=True
        ), name
    return divided.prefixes


class Parts(nn.Module):
    """A small network of stem `[n, 4, 13, 13]`, a given middle part of the same shape, and head."""

    def __init__(self, middle: nn.Module, size: int = 676) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.middle = middle
        self.neck = nn.Linear(size, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.middle(self.stem(x)).flatten(1)
        return self.head(torch.relu(self.neck(features)))


def head(model: Any) -> list[nn.Parameter]:
    return list(model.head.parameters())


def neck(model: Any) -> list[nn.Parameter]:
    return list(model.neck.parameters())


def middle(model: Any) -> list[nn.Parameter]:
    return list(model.middle.parameters())


class Norm(nn.Module):
    """A convolution and a given layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv2d(4, 4, 3, padding=1), layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.conv(x))


@pytest.mark.slow
def test_built_in_strategies_on_the_small_cnn() -> None:
    strategies = sorted(set(load_plugins([BITFIT]).components["strategy"]) - {"norm"})  # it has no normalization layer
    cuts = same_both_ways(None, {}, BITFIT, strategies=strategies, options={"lora.rank": 2})
    reused = {name for name, cut in zip(strategies, cuts, strict=True) if cut != "none"}
    # The first bias is in the first layer: nothing before it is frozen.
    fitted = {"centroid", "knn", "lda", "logistic", "ridge"}
    assert reused == {"adapter", "head", "lora", "partial", "ssf"} | fitted


def small_vit() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return normalising(VisionTransformer(**sizes, num_classes=10), *statistics("vit_b_16", 1))


def small_convnext() -> nn.Module:
    blocks = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)]
    model = ConvNeXt(blocks, stochastic_depth_prob=0.1, num_classes=10)
    return normalising(model, *statistics("convnext_tiny", 1))


@pytest.mark.slow
@pytest.mark.parametrize("build", [small_vit, small_convnext])
def test_built_in_strategies_on_torchvision(build: Callable[[], nn.Module]) -> None:
    """The classes of torchvision's vit_b_16 and convnext_tiny, with fewer and narrower layers."""
    strategies = ["head", "lora", "partial"]
    cuts = same_both_ways(build, {}, strategies=strategies, image_size=32, options={"lora.rank": 2})
    assert dict(zip(strategies, cuts, strict=True))["head"] != "none"


@pytest.mark.slow
def test_built_in_strategies_on_resnet18() -> None:
    strategies = ["head", "lora", "partial"]
    keys = {"backbone": "torchvision:resnet18", "weights": "none", "image_size": 28, "options": {"lora.rank": 2}}
    cuts = same_both_ways(None, {}, strategies=strategies, **keys)
    assert dict(zip(strategies, cuts, strict=True))["head"] != "none"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "cuts"),
    [
        (
            {"lora.dora": True},
            ["stem.0.base_layer", "flatten,neck.base_layer,sub_1", "middle.conv", "flatten", "stem.0.base_layer"],
        ),
        (
            {
                "adapter.train_head": True,
                "lora.targets": "middle.*",
                "lora.plus": 16,
                "lora.bias": "lora_only",
                "norm.train_head": True,
                "partial.stages": 2,
                "ssf.train_head": True,
            },
            ["stem.0.base_layer", "stem.2", "middle.conv", "stem.2", "stem.0.base_layer"],
        ),
    ],
    ids=["linear", "convolutional"],
)
def test_batch_normalization(options: dict[str, Any], cuts: list[str]) -> None:
    strategies = ["adapter", "lora", "norm", "partial", "ssf"]
    assert same_both_ways(lambda: Parts(Norm(nn.BatchNorm2d(4))), {}, strategies=strategies, options=options) == cuts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "cuts"),
    [
        (lambda: nn.BatchNorm2d(4), ["relu", "stem.2"]),
        (lambda: nn.BatchNorm2d(4, momentum=None), ["relu", "stem.2"]),
        (lambda: nn.BatchNorm2d(4, affine=False), ["relu", "stem.2"]),
        # Its output depends on the batch, also in evaluation.
        (lambda: nn.BatchNorm2d(4, track_running_stats=False), ["stem.2", "stem.2"]),
        (lambda: nn.GroupNorm(2, 4), ["relu", "stem.2"]),
        (lambda: nn.Dropout2d(0.3), ["relu", "stem.2"]),
        (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)), ["relu", "stem.2"]),
        (lambda: torch.nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)), ["none", "none"]),
    ],
    ids=["batch", "cumulative", "plain", "of-the-batch", "group", "dropout", "parametrized", "hooked"],
)
def test_layers(layer: Callable[[], nn.Module], cuts: list[str]) -> None:
    assert same_both_ways(lambda: Parts(Norm(layer())), {"last": head, "inner": middle}) == cuts


class Code(nn.Module):
    """A convolution followed by any function of the module and its output."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.function, self.factor = function, 1.0
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x))


def dropped(module: Any, y: Tensor) -> Tensor:
    return nn.functional.dropout(y, 0.3, module.training)


def python_depth(module: Any, y: Tensor) -> Tensor:
    return y * (random.random() < 0.5) if module.training else y


def numpy_depth(module: Any, y: Tensor) -> Tensor:
    return y * (numpy.random.rand() < 0.5) if module.training else y


def averaged(module: Any, y: Tensor) -> Tensor:
    if module.training:
        module.mean.mul_(0.9).add_(y.detach().mean((0, 2, 3)), alpha=0.1)
    return y - module.mean.view(1, -1, 1, 1)


def branching(module: Any, y: Tensor) -> Tensor:
    return y * 2 if y.mean() > 0 else y


def by_the_largest(module: Any, y: Tensor) -> Tensor:
    return y / y.max()


def written_through_a_view(module: Any, y: Tensor) -> Tensor:
    y.flatten(1).relu_()
    return y


def by_gradient_mode(module: Any, y: Tensor) -> Tensor:
    return y * (2 if torch.is_grad_enabled() else 1)


def scaled(module: Any, y: Tensor) -> Tensor:
    return y * module.factor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "cuts"),
    [
        (dropped, ["relu", "none"]),
        (python_depth, ["relu", "none"]),
        (numpy_depth, ["relu", "none"]),
        (averaged, ["relu", "none"]),
        (branching, ["relu", "stem.2"]),
        (by_the_largest, ["stem.2", "stem.2"]),
        (written_through_a_view, ["relu", "stem.2"]),
        (by_gradient_mode, ["none", "none"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_code(function: Callable[[Any, Tensor], Tensor], cuts: list[str]) -> None:
    def bias(model: Any) -> list[nn.Parameter]:
        return [model.middle.conv.bias]

    assert same_both_ways(lambda: Parts(Code(function)), {"last": head, "bias": bias}) == cuts


@pytest.mark.slow
def test_layers_with_other_python_values_share_nothing() -> None:
    def by(factor: float) -> Callable[[Any], list[nn.Parameter]]:
        def adapt(model: Any) -> list[nn.Parameter]:
            model.middle.factor = factor
            return head(model)

        return adapt

    assert same_both_ways(lambda: Parts(Code(scaled)), {"once": by(1.0), "thrice": by(3.0)}) == ["relu", "relu"]


@pytest.mark.slow
def test_layers_with_replaced_methods_share_nothing() -> None:
    def by(factor: float) -> Callable[[Any], list[nn.Parameter]]:
        def forward(self: Any, x: Tensor) -> Tensor:
            return type(self).forward(self, x) * factor

        def adapt(model: Any) -> list[nn.Parameter]:
            model.stem[0].forward = types.MethodType(forward, model.stem[0])
            return head(model)

        return adapt

    assert same_both_ways(lambda: Parts(nn.Identity()), {"once": by(1.0), "thrice": by(3.0)}) == ["relu", "relu"]


@pytest.mark.parametrize("part", ["", "neck"], ids=["model", "layer"])
def test_replaced_forward_with_a_zero_parameter(part: str) -> None:
    def adapt(model: Any) -> list[nn.Parameter]:
        changed = model.get_submodule(part)
        model.delta = nn.Parameter(torch.zeros(16 if part else 10))
        plain = changed.forward
        changed.forward = lambda x: plain(x) + model.delta
        return [model.delta, *head(model)]

    assert same_both_ways(lambda: Parts(nn.Identity()), {"added": adapt}) == ["none"]


class Overwriting(Parts):
    """Write into views of cached values, and use a layer and the images twice."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 3, padding=1))
        self.act, self.skip = nn.ReLU(inplace=True), nn.Linear(784, 16)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem((x - torch.tensor([0.13])) / 0.3)
        rows = self.act((features + self.middle(self.middle(features))).flatten(1))
        sums = self.neck(rows)
        sums += self.skip(x.flatten(1))
        return self.head(torch.relu_(sums))


@pytest.mark.slow
def test_cuts_that_overwrite_each_other() -> None:
    def gentle(model: Any) -> list[nn.Parameter]:
        model.act = nn.PReLU(1)
        return [*model.act.parameters(), *head(model)]

    adapts = {
        "gentle": gentle,
        "neck": neck,
        "last": head,
        "inner": middle,
        "skip": lambda model: [model.skip.bias],
        "bias": lambda model: [model.neck.bias],
    }
    cuts = ["flatten,skip", "act,skip", "relu_", "stem.2,skip", "neck,flatten_1", "act,skip"]
    assert same_both_ways(Overwriting, adapts, seeds="0-1") == cuts * 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        if self.training:
            attended = attended * (torch.rand(n, 1, 1) < 0.8)
        return x + self.proj(attended)


class Transformer(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(1, 16, 7, 7), nn.Parameter(torch.zeros(1, 1, 16))
        self.place = nn.Parameter(torch.randn(1, 17, 16) * 0.1)
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


def prompts(model: Any) -> list[nn.Parameter]:
    model.prompt = nn.Parameter(torch.zeros(1, 16))
    model.blocks[1].register_forward_pre_hook(
        lambda layer, given: torch.cat([given[0], model.prompt.expand(len(given[0]), 1, 16)], 1)
    )
    return [model.prompt]


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [lambda: nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True), Block],
    ids=["torch", "own"],
)
def test_transformers(block: Callable[[], nn.Module]) -> None:
    adapts = {
        "last": head,
        "block": lambda model: list(model.blocks[1].parameters()),
        "biases": lambda model: [p for name, p in model.blocks[1].named_parameters() if "bias" in name],
        "places": lambda model: [model.place],
        "prompts": prompts,
    }
    cuts = ["getitem_1", "blocks.0", "blocks.0", "cat", "none"]
    assert same_both_ways(lambda: Transformer([block(), block()]), adapts) == cuts


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [{"target": "digits"}, {"shift": "none", "evaluate_shifted": "end"}, {"precision": "bf16"}],
    ids=["target", "fixed", "bf16"],
)
def test_settings(keys: dict[str, str]) -> None:
    assert same_both_ways(lambda: Parts(nn.Identity()), {"last": head, "neck": neck}, **keys) == ["relu", "flatten"]


class InPlace(Parts):
    """Change the images in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.1))


def test_model_that_writes_into_images() -> None:
    assert same_both_ways(lambda: InPlace(nn.Identity()), {"last": head}) == ["relu"]


class Thawing:
    """Freeze a layer in the first epoch only."""

    @hookimpl
    def adaptkit_run_started(self, run: Any, model: Any) -> None:
        self.model = model if run.kind == "adaptation" else None
        if self.model is not None:
            self.model.neck.requires_grad_(False)

    @hookimpl
    def adaptkit_epoch_ended(self, run: Any, epoch: Any) -> None:
        if self.model is not None:
            self.model.neck.requires_grad_(True)


def test_layers_unfrozen_during_training() -> None:
    both = {"both": lambda model: [*head(model), *neck(model)]}
    same_both_ways(lambda: Parts(nn.Identity()), both, Thawing())


class Counting(nn.Module):
    """Compute something else from the fifth pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.passes = nn.Conv2d(4, 4, 3, padding=1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.conv(x) if self.passes < 5 else self.conv(x) + 1e-6


def test_layers_that_count_passes() -> None:
    assert same_both_ways(lambda: Parts(Counting()), {"last": head}) == ["none"]
