"""Models and strategies are tried on a few images before training: faults are refused or named, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.experiments import TINY, TINY_SETTINGS
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import adaptkit
from adaptkit import hookimpl
from adaptkit.errors import BadInput, PlanNotice
from adaptkit.training.loop import split_batches

SETTINGS = TINY_SETTINGS | {"base.epochs": 1, "epochs": 1}


class Net(nn.Module):
    """A small network for grey images of 28 x 28 pixels."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 7, 7)
        self.middle = middle or nn.Linear(128, 16)
        self.fc = nn.Linear(16, 10)

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = functional.relu(self.middle(functional.relu(self.conv(x)).flatten(1)))
        return features

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features(x))


def run(strategies: Any, model: nn.Module, **choices: Any) -> adaptkit.RunOutcome:
    settings = SETTINGS | choices.pop("settings", {})
    return adaptkit.run(strategies, backbone=model, settings=settings, track=False, **choices)


def refusal(strategies: Any, model: nn.Module, **choices: Any) -> str:
    with pytest.raises(BadInput) as caught:
        run(strategies, model, **choices)
    (line,) = caught.value.problems
    return line


# Outputs


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Wrapped(Net):
    """Give the logits in the way of `kind`, in training or always."""

    def __init__(self, kind: str, always: bool = True) -> None:
        super().__init__()
        self.kind, self.always = kind, always

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        if not (self.always or self.training):
            return logits
        return {"logits": Output(logits), "dict": {"logits": logits}, "tuple": (logits, logits)}[self.kind]


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("logits", "a Output; return its attribute `logits`"),
        ("dict", "a dict; return its item 'logits'"),
        ("tuple", "a tuple; return the logits alone"),
    ],
)
def test_output_that_is_no_tensor(kind: str, part: str) -> None:
    problem = f"backbone python:Wrapped: its forward() gives {part}, a tensor [4, 10] for 4 images"
    assert refusal(["full", "head"], Wrapped(kind)) == problem


def test_tuple_in_training_mode() -> None:
    assert refusal("head", Wrapped("tuple", always=False)) == (
        "backbone python:Wrapped: its forward() gives a tuple in training mode; return the logits alone, a tensor "
        "[4, 10] for 4 images"
    )


class Auxiliary(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rotation = nn.Linear(16, 10)


def test_last_layer_without_a_part_in_the_logits() -> None:
    assert refusal("lora", Auxiliary()) == (
        "backbone python:Auxiliary: the logits do not depend on its last linear layer, rotation; give the model an "
        "attribute `head` that is its classifier"
    )
    model = Auxiliary()
    model.head = model.fc
    (record,) = run("head", model).runs
    assert record.metrics["params/trainable"] == 16 * 10 + 10


class Softmax(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).softmax(1)


class BatchStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 7, 7), nn.BatchNorm2d(8, track_running_stats=False))


class Counter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.seen = self.seen + 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "notice"),
    [
        (Softmax, "its outputs are probabilities, not logits; does it end in a softmax?"),
        (BatchStatistics, "in evaluation mode the logits of an image depend on the other images of its batch"),
        (Counter, "seen changes in evaluation mode"),
    ],
)
def test_notices_about_a_backbone(model: type[nn.Module], notice: str) -> None:
    with pytest.warns(PlanNotice) as shown:
        notices = run("head", model()).plan.notices
    assert tuple(str(warning.message) for warning in shown) == notices
    assert [line for line in notices if line.startswith(f"backbone python:{model.__name__}: {notice}")]


@pytest.mark.slow
def test_notices_of_sweeps_and_tunings_in_python(store: Path) -> None:
    data = {"dataset": "none", "weights": "none", "target": "digits", "settings": SETTINGS}
    untrained = "^backbone small_cnn has no pretrained weights: the base is untrained$"
    with pytest.warns(PlanNotice, match=untrained):
        adaptkit.sweep("head", grid={"lr": [0.01]}, **data)
    with pytest.warns(PlanNotice, match=untrained):
        adaptkit.tune("head", trials=2, seeds=1, **data)


def test_notices_on_the_command_line_are_part_of_the_plan(cli: Any) -> None:
    result = cli(
        "run", "-s", "head", "--dataset", "none", "--weights", "none", "--target", "digits", *TINY, "--no-track"
    )
    assert "Note: backbone small_cnn has no pretrained weights" in result.stderr and "PlanNotice" not in result.stderr


def test_model_that_cannot_evaluate_one_image() -> None:
    model = Net(nn.Sequential(nn.Linear(128, 16), nn.BatchNorm1d(16, track_running_stats=False)))
    assert refusal("head", model).startswith("backbone python:Net fails for a single image: ValueError: Expected more")


class RandomInEvaluation(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(functional.dropout(x, 0.5, training=True))


def test_random_logits_in_evaluation_mode() -> None:
    assert refusal("head", RandomInEvaluation()) == (
        "backbone python:RandomInEvaluation: in evaluation mode it gives other logits each time"
    )


# Heads


class TwoHeads(Net):
    """A distilled model: the logits are the mean of two heads."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc, self.fc_dist = nn.Linear(16, classes), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        return (self.fc(features) + self.fc_dist(features)) / 2


class Watch:
    """Record which parameters a run trains."""

    trained: dict[str, int]

    @hookimpl
    def adaptkit_run_started(self, run: Any, model: nn.Module) -> None:
        self.trained = {name: tensor.numel() for name, tensor in model.named_parameters() if tensor.requires_grad}


@pytest.mark.parametrize("classes", [10, 1000], ids=["the right classes", "the classes of the pretraining"])
def test_both_heads_are_trained(classes: int) -> None:
    watch = Watch()
    outcome = run("head", TwoHeads(classes), dataset="none", target="digits", image_size=28, plugins=[watch])
    assert watch.trained == {"fc.weight": 160, "fc.bias": 10, "fc_dist.weight": 160, "fc_dist.bias": 10}
    assert outcome.runs[0].metrics["params/trainable_head"] == 340


class OtherHead(Net):
    """Add the logits of a linear layer on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.direct = nn.Linear(784, 10)
        self.head = self.fc

    def forward(self, x: Tensor) -> Any:
        logits: Tensor = super().forward(x) + self.direct(x.flatten(1))
        return logits


def test_second_classifier_of_another_shape() -> None:
    assert "its new head is not its only classifier" in refusal("head", OtherHead(), dataset="none", target="digits")
    assert run("head", OtherHead()).failed == ()  # a source trains both


# Layers: judged by what they do


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * functional.linear(functional.normalize(x), functional.normalize(self.weight), self.bias)


def hooked() -> nn.Module:
    layer = nn.Linear(128, 16)
    layer.register_forward_hook(lambda module, inputs, output: output * 2 + 1)
    return layer


@pytest.fixture
def weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"), torch.no_grad():
        return nn.utils.weight_norm(nn.Linear(128, 16))


def pruned() -> nn.Module:
    with torch.no_grad():
        return prune.l1_unstructured(nn.Linear(128, 16), "weight", 0.5)


OWN = "its forward pass is not that of its type"
COMPUTED = "its weight is computed from other tensors"


@pytest.mark.parametrize(
    ("make", "lora", "ssf"),
    [
        (lambda: Cosine(128, 16), "", OWN),
        (hooked, "", OWN),
        (pruned, COMPUTED, COMPUTED),
        (lambda: nn.utils.spectral_norm(nn.Linear(128, 16)), COMPUTED, COMPUTED),
        (lambda: parametrizations.orthogonal(nn.Linear(128, 16)), COMPUTED, COMPUTED),
    ],
    ids=["own forward", "forward hook", "pruned", "spectral_norm", "parametrized"],
)
def test_layers_that_are_not_what_their_type_says(make: Callable[[], nn.Module], lora: str, ssf: str) -> None:
    outcome = run(["lora", "ssf"], Net(make()), options={"lora.targets": "all"})
    assert outcome.failed == ()
    expected = {"lora": (lora, "2 of 3"), "ssf": (ssf, "2 of 3")}
    for strategy, (reason, counts) in expected.items():
        told = [line for line in outcome.plan.notices if line.startswith(f"{strategy}: adapts")]
        assert told == ([f"{strategy}: adapts {counts} layers; not: middle ({reason})"] if reason else [])


def test_weight_norm_by_hooks(weight_norm: nn.Module) -> None:
    assert run(["lora", "ssf"], Net(weight_norm)).failed == ()


class Read(nn.Module):
    """Use the weight of a layer without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(128, 16)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.inner.weight, self.inner.bias)


class Tied(nn.Module):
    """Two layers that share a weight, and one that is called and read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.both = (nn.Linear(128 if not n else 16, 16) for n in range(4))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(functional.relu(self.a(functional.relu(self.first(x)))))
        return self.both(x) + functional.linear(x, self.both.weight)


NOT_CALLED = "the model uses its weight without calling it"


@pytest.mark.parametrize(
    ("middle", "notice"),
    [
        (Read, f"adapts 2 of 3 layers; not: middle.inner ({NOT_CALLED})"),
        (
            Tied,
            "adapts 3 of 6 layers; not: middle.a (it shares its weight with middle.b); "
            f"middle.b (it shares its weight with middle.a); middle.both ({NOT_CALLED})",
        ),
    ],
)
def test_weights_that_are_read_or_shared(middle: type[nn.Module], notice: str) -> None:
    outcome = run(["lora", "ssf", "full"], Net(middle()), options={"lora.targets": "all"})
    assert outcome.failed == ()
    told = [line for line in outcome.plan.notices if "adapts" in line]
    assert told == [f"lora: {notice}", f"ssf: {notice}"]


class Standardized(nn.Conv2d):
    """A convolution that standardizes its weight and pads to the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(functional.pad(x, (3, 3, 3, 3)), weight, self.bias, self.stride)


@pytest.mark.parametrize("dora", [False, True])
def test_lora_adapts_convolutions_with_a_forward_pass_of_their_own(dora: bool) -> None:
    model = Net(nn.Linear(8 * 4 * 4, 16))
    model.conv = Standardized(1, 8, 7, 7)
    watch = Watch()
    outcome = run("lora", model, options={"targets": "conv", "dora": dora}, plugins=[watch])
    assert outcome.failed == () and not [line for line in outcome.plan.notices if "adapts" in line]
    assert sum(watch.trained.values()) == outcome.runs[0].metrics["params/trainable"] == 8 * (49 + 8) + 8 * dora


def test_less_than_half_of_the_layers() -> None:
    layers = nn.Conv2d(1, 8, 7, 7), nn.ConvTranspose2d(8, 8, 1), nn.Conv2d(8, 8, 1, groups=8)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))
    notices = run("lora", model, options={"targets": "all"}).plan.notices
    assert "lora: adapts 2 of 4 layers; not: 1 (a ConvTranspose2d); 2 (a depth-wise convolution)" in notices
    model = nn.Sequential(*layers, nn.Conv2d(8, 8, 1, groups=8), nn.Flatten(), nn.Linear(128, 10))
    notices = run("lora", model, options={"targets": "all"}).plan.notices
    assert [line for line in notices if line.startswith("lora: adapts only 2 of 5 layers; not: 1 (a ConvTr")]


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(3))


def test_parameters_without_a_part_in_the_logits() -> None:
    watch = Watch()
    outcome = run("full", Unused(), plugins=[watch])
    (notice,) = outcome.plan.notices
    assert notice == "backbone python:Unused: the logits do not depend on mask_token, so it is not trained"
    assert "mask_token" not in watch.trained
    assert outcome.runs[0].metrics["params/trainable"] == sum(watch.trained.values())


class Dead:
    """Train a parameter that the model does not use."""

    name = "dead"

    def adapt(self, model: Any) -> list[nn.Parameter]:
        model.dead = nn.Parameter(torch.zeros(3))
        return [*model.head.parameters(), model.dead]


class WrongMerge:
    """Merge an adapter wrongly."""

    name = "wrong"

    def adapt(self, model: Any) -> list[nn.Parameter]:
        return list(model.head.parameters())

    def merge(self, model: Any) -> None:
        model.head.weight.data *= 1.1


class Offer:
    @hookimpl
    def adaptkit_strategies(self) -> list[type]:
        return [Dead, WrongMerge]


def test_strategies_are_refused_before_training() -> None:
    with pytest.raises(BadInput) as caught:
        run(["dead", "wrong", "head"], Net(), plugins=[Offer()])
    dead, wrong = caught.value.problems
    assert dead == (
        "strategy dead: 1 of the tensors that it trains have no gradient, since the logits do not depend on them: dead"
    )
    assert wrong.startswith("strategy wrong: after merge() the logits differ by ")


# Batches


def test_last_batch_of_one_image_joins_the_one_before() -> None:
    assert [len(part) for part in split_batches(torch.arange(33), 16)] == [16, 17]
    assert [len(part) for part in split_batches(torch.arange(34), 16)] == [16, 16, 2]
    assert [len(part) for part in split_batches(torch.arange(1), 16)] == [1]
    assert torch.cat(split_batches(torch.arange(33), 16)).tolist() == list(range(33))
    model = Net(nn.Sequential(nn.Linear(128, 16), nn.BatchNorm1d(16)))
    assert run(["full", "norm"], model, settings={"shots": 3, "batch_size": 29}).failed == ()


BROKEN = """
from adaptkit import hookimpl

class Broken:
    '''Fail in a layer of torch after the first step.'''
    name = "broken"

    def adapt(self, model):
        return model.head.parameters()

    def step_ended(self, model, step):
        model.classifier[1].weight.data = model.classifier[1].weight.data[0, :3]

@hookimpl
def adaptkit_strategies():
    return [Broken]
"""


def test_error_in_torch_fails_one_run(cli: Any, own_folder: Path) -> None:
    (own_folder / "broken.py").write_text(BROKEN)
    result = cli("run", "-s", "broken", "-s", "head", *TINY, "--plugin", "broken.py", "--no-track", "--json", "-q")
    broken, head = json.loads(result.stdout)["runs"]
    assert (result.exit_code, broken["status"], head["status"]) == (1, "failed", "finished")
    assert broken["error"].startswith("strategy broken fails: ")
    assert "Traceback" not in result.stderr
