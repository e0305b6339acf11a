"""Built-in strategies: trained parameters, initial logits, frozen layers and adapters."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.experiments import BITFIT
from torch import nn

from adaptkit.adapters.files import Inherited, load_adapter, save_adapter
from adaptkit.backbones.small_cnn_layers import SmallCNNModel
from adaptkit.backbones.structure import find_head, with_head
from adaptkit.contracts import Strategy
from adaptkit.errors import BadInput
from adaptkit.plugins.loading import load_plugins
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain_passes
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt, count, set_train_mode

CNN_COUNTS = {
    "full": (421_642, 421_642),
    "scratch": (421_642, 421_642),
    "head": (1_290, 421_642),
    "lora": (27_216, 448_858),
    "bitfit": (234, 421_642),
}


def make(name: str, **options: Any) -> Strategy:
    strategy: Strategy = load_plugins([BITFIT]).find("strategy", name).cls(**options)
    return strategy


def cnn() -> Any:
    with RandomStream(1):
        return with_head(SmallCNNModel(1, 28, 10))


class Normed(nn.Module):
    """A convolutional model with BatchNorm and Dropout, and without a property `head`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.out = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 26 * 26, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.stem(x))
        return logits


def train(model: nn.Module, groups: list[dict[str, Any]], epochs: int = 2) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels, labels = torch.rand(40, 1, 28, 28, generator=generator), torch.arange(40) % 10
    passes = plain_passes(model, lambda epoch: pixels, labels=labels, test=(pixels, labels))
    for _ in fit(model, groups, passes, recipe=Recipe(epochs=epochs, batch_size=10, lr=1e-2, order_seed=0)):
        pass


@pytest.mark.parametrize("name", CNN_COUNTS)
def test_counts_on_the_small_cnn(name: str) -> None:
    model = cnn()
    adapt(model, make(name), init_seed=0)
    counts = count(model)
    assert (counts.trainable, counts.total) == CNN_COUNTS[name]


def test_rank_16_doubles_the_parameters() -> None:
    model = cnn()
    adapt(model, make("lora", rank=16), init_seed=0)
    assert count(model).trainable == 54_432


@pytest.mark.parametrize("name", CNN_COUNTS)
def test_adapted_model_starts_at_the_base(name: str) -> None:
    base, model = cnn(), cnn()
    strategy = make(name)
    adapt(model, strategy, init_seed=0)
    pixels = torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    starts_at_base = getattr(strategy, "starts_at_base", True)
    assert starts_at_base == (name != "scratch")
    for mode in (True, False):
        assert torch.equal(base.train(mode)(pixels), model.train(mode)(pixels)) == starts_at_base


@pytest.mark.parametrize("name", CNN_COUNTS)
def test_exactly_the_declared_parameters_change(name: str) -> None:
    model = cnn()
    groups = adapt(model, make(name), init_seed=0)
    declared = {id(parameter) for group in groups for parameter in group["params"]}
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    train(model, groups)
    for key, parameter in model.named_parameters():
        assert torch.equal(before[key], parameter) != (id(parameter) in declared), key


@pytest.mark.parametrize("name", CNN_COUNTS)
def test_adapter_on_a_fresh_base(name: str, tmp_path: Path) -> None:
    model = cnn()
    tensors = (*model.parameters(), *model.buffers())
    groups = adapt(model, make(name), init_seed=3)
    inherited = Inherited.of(model, tensors)
    train(model, groups)
    saved = inherited.adapter(model)
    assert sum(tensor.numel() for tensor in saved.values()) == CNN_COUNTS[name][0]
    save_adapter(tmp_path, saved, {"base_fingerprint": "b" * 64})
    fresh = cnn()
    adapt(fresh, make(name), init_seed=3)
    load_adapter(tmp_path, fresh, "b" * 64)
    pixels = torch.rand(16, 1, 28, 28)
    assert torch.equal(model.eval()(pixels), fresh.eval()(pixels))


def test_foreign_or_damaged_adapter_is_refused(tmp_path: Path) -> None:
    model = cnn()
    tensors = tuple(model.parameters())
    adapt(model, make("head"), init_seed=0)
    save_adapter(tmp_path, Inherited.of(model, tensors).adapter(model), {"base_fingerprint": "a" * 64})
    with pytest.raises(BadInput, match=r"the adapter was made for base a{64}, not b{64}"):
        load_adapter(tmp_path, model, "b" * 64)
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BadInput, match="is damaged"):
        load_adapter(tmp_path, model, "a" * 64)


def test_merged_lora() -> None:
    model, strategy = cnn(), make("lora")
    groups = adapt(model, strategy, init_seed=0)
    train(model, groups)
    frozen = copy.deepcopy(model.state_dict())
    merged = copy.deepcopy(model)
    strategy.merge(merged)  # type: ignore[attr-defined]
    pixels = torch.rand(64, 1, 28, 28)
    assert list(merged.state_dict()) == list(cnn().state_dict())
    assert count(merged).total == 421_642
    assert (merged.eval()(pixels) - model.eval()(pixels)).abs().max() < 1e-5
    assert all(torch.equal(frozen[key], value) for key, value in model.state_dict().items())


def test_lora_tensor_names() -> None:
    model = cnn()
    adapt(model, make("lora", targets="classifier.3", rank=2), init_seed=0)
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"classifier.3.lora_A.weight": (2, 128), "classifier.3.lora_B.weight": (10, 2)}


def test_lora_initialisation_depends_on_the_seed() -> None:
    before = torch.get_rng_state()
    weights = []
    for seed in (5, 5, 6):
        model = cnn()
        adapt(model, make("lora"), init_seed=seed)
        weights.append(model.classifier[1].lora_A.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("name", "moves"), [("full", True), ("scratch", True), ("head", False), ("bitfit", False)])
def test_batchnorm_statistics_of_trained_layers(name: str, moves: bool, tmp_path: Path) -> None:
    def adapted() -> tuple[nn.Module, list[dict[str, Any]], Inherited]:
        with RandomStream(2):
            model = with_head(Normed())
        tensors = (*model.parameters(), *model.buffers())
        groups = adapt(model, make(name), init_seed=0)
        return model, groups, Inherited.of(model, tensors)

    model, groups, inherited = adapted()
    train(model, groups)
    saved = inherited.adapter(model)
    assert (float(model.stem[1].running_mean.abs().sum()) > 0) == moves  # type: ignore[index,union-attr]
    assert ("stem.1.running_mean" in saved) == moves
    save_adapter(tmp_path, saved, {"base_fingerprint": "a"})
    fresh, _, _ = adapted()
    load_adapter(tmp_path, fresh, "a")
    pixels = torch.rand(8, 1, 28, 28)
    assert torch.equal(model.eval()(pixels), fresh.eval()(pixels))


def test_dropout_of_trained_layers() -> None:
    model = with_head(Normed())
    adapt(model, make("head"), init_seed=0)
    set_train_mode(model)
    assert (model.stem[3].training, model.out[1].training) == (False, True)  # type: ignore[index,union-attr]


def test_head_of_any_model() -> None:
    model = with_head(Normed())
    assert model.head is model.out[2]  # type: ignore[index]
    assert [name for name in model.state_dict() if "head" in name] == []
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.head is twin.out[2] and twin.head is not model.head
    adapt(model, make("lora"), init_seed=0)
    assert model.head is model.out[2] and hasattr(model.head, "base_layer")  # type: ignore[index]
    with pytest.raises(BadInput, match="Conv2d has no linear layer"):
        find_head(nn.Conv2d(1, 1, 1))


class Declaring:
    """Declare the parameters that a test passes."""

    name = "declaring"

    def __init__(self, declared: Any) -> None:
        self.declared = declared

    def adapt(self, model: nn.Module) -> Any:
        return self.declared(model)


ADVICE = "return a list of parameters or optimizer groups"


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (lambda model: [], "adapt() returned no parameters to train"),
        (lambda model: [{"params": []}], "adapt() returned no parameters to train"),
        (lambda model: [nn.Parameter(torch.zeros(1))], "adapt() returned a parameter that is not in the model"),
        (lambda model: [*model.head.parameters(), *model.head.parameters()], "adapt() returned a parameter twice"),
        (lambda model: ["head"], f"adapt() returned a list with a str; {ADVICE}"),
        (lambda model: [model.head.weight, None], f"adapt() returned a list with None; {ADVICE}"),
        (lambda model: [{"params": [None]}], f"adapt() returned a list with None; {ADVICE}"),
        (lambda model: None, f"adapt() returned None; {ADVICE}"),
        (lambda model: model, f"adapt() returned a SmallCNNModel; {ADVICE}"),
        (lambda model: nn.Sequential(model.head), f"adapt() returned a Sequential; {ADVICE}"),
        (lambda model: "head", f"adapt() returned a str; {ADVICE}"),
        (lambda model: {"params": model.parameters()}, f"adapt() returned a dict; {ADVICE}"),
        (lambda model: 1, f"adapt() returned a int; {ADVICE}"),
        (lambda model: [{"params": model.head}], f"'params' of an optimizer group is a Linear; {ADVICE}"),
        (lambda model: [{"lr": 1.0}], "an optimizer group from adapt() has no 'params'"),
    ],
)
def test_invalid_declarations(declared: Any, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        adapt(cnn(), Declaring(declared), init_seed=0)
    assert caught.value.problems == (f"strategy declaring ({__file__}): {problem}",)


def test_optimizer_groups() -> None:
    model = cnn()
    declared = Declaring(
        lambda m: [{"params": [m.head.weight], "lr": 0.0}, {"params": m.head.bias}],
    )
    groups = adapt(model, declared, init_seed=0)
    before = copy.deepcopy(model.head.state_dict())
    train(model, groups)
    assert torch.equal(before["weight"], model.head.weight)
    assert not torch.equal(before["bias"], model.head.bias)


def test_scratch_names_layers_without_reset() -> None:
    model = nn.Linear(3, 2)
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    holder = nn.Sequential(model)
    holder.register_parameter("token", nn.Parameter(torch.ones(1)))
    with pytest.raises(BadInput, match=r"token cannot be initialised again \(no reset_parameters\)"):
        adapt(holder, make("scratch"), init_seed=0)
