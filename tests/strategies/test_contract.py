"""The members of a strategy beside `adapt`: phases, loss, batch, step_ended with a state, and finish."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from support.experiments import TINY, TINY_SETTINGS
from torch import Tensor, nn

import adaptkit
from adaptkit import BadInput, Phase
from adaptkit.adapters.files import read_weights
from adaptkit.backbones.structure import with_head
from adaptkit.contracts import Step
from adaptkit.training.checkpoints import Checkpoint
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain_passes
from adaptkit.training.trainable import adapt

Cli = Callable[..., Result]


def small() -> nn.Module:
    torch.manual_seed(0)
    return with_head(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), (1, 4))


IMAGES = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


def trained(strategy: Any, epochs: int = 4, **more: Any) -> nn.Module:
    model = small()
    groups = adapt(model, strategy, init_seed=0)
    passes = plain_passes(model, lambda epoch: IMAGES, labels=LABELS, test=(IMAGES, LABELS))
    recipe = Recipe(epochs=epochs, batch_size=10, lr=1e-2, order_seed=0)
    for _ in fit(model, groups, passes, recipe=recipe, strategy=strategy, **more):
        pass
    return model


class Two:
    """Record what is trained after each step: the head in a quarter of the steps, then the other layer."""

    name = "two"

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int, bool, bool]] = []
        self.before: dict[str, Tensor] = {}

    def phases(self, model: nn.Module) -> list[Phase]:
        self.before = copy.deepcopy(model.state_dict())
        return [Phase(model[3].parameters(), share=1), Phase(model[1].parameters(), share=3, lr=1e-3)]  # type: ignore[index]

    def step_ended(self, model: nn.Module, step: Step) -> None:
        now = model.state_dict()
        moved = [not torch.equal(now[name], self.before[name]) for name in ("3.weight", "1.weight")]
        self.before = copy.deepcopy(now)
        self.seen.append((step, step.total, step.epoch, moved[0], moved[1]))


def test_phases_train_one_after_the_other() -> None:
    strategy = Two()
    model = trained(strategy)
    assert strategy.seen == [(number, 16, (number - 1) // 4 + 1, number <= 4, number > 4) for number in range(1, 17)]
    assert all(parameter.requires_grad for parameter in model.parameters())  # all of them are saved


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        ([], "phases() must return a list of adaptkit.Phase"),
        (["head"], "phases() must return a list of adaptkit.Phase"),
        ([Phase([], share=1)], "phases() returned no parameters to train"),
        ([Phase("all", share=0)], "the share of a phase must be a number above 0, not 0"),
        ([Phase("all", lr=-1.0)], "the lr of a phase must be a number above 0, not -1.0"),
    ],
)
def test_wrong_phases(returned: list[Any], line: str) -> None:
    class Wrong:
        name = "wrong"

        def phases(self, model: nn.Module) -> list[Any]:
            def filled(phase: Any) -> Any:
                if isinstance(phase, Phase) and phase.groups == "all":
                    return Phase(list(model.parameters()), phase.share, phase.lr)
                return phase

            return [filled(phase) for phase in returned]

    with pytest.raises(BadInput) as caught:
        adapt(small(), Wrong(), init_seed=0)  # type: ignore[arg-type]
    assert line in caught.value.problems[0]


class Full:
    name = "own-full"

    def adapt(self, model: nn.Module) -> Any:
        return model.parameters()


class Averaged(Full):
    """Keep a running mean of the head's bias, as a state."""

    def __init__(self) -> None:
        self.mean, self.count = torch.zeros(3), 0

    def step_ended(self, model: nn.Module, step: Step) -> None:
        self.mean = self.mean.lerp(model.head.bias.detach(), 0.5)  # type: ignore[union-attr, arg-type]
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.count = state["mean"], state["count"]


@pytest.mark.parametrize("make", [Averaged, Two])
def test_training_resumes_with_the_state_of_the_strategy(make: type[Any]) -> None:
    whole, kept = make(), []
    # The tensors of a checkpoint are those of the training until it is written.
    expected = trained(whole, keep=lambda checkpoint: kept.append(copy.deepcopy(checkpoint))).state_dict()
    for epoch in (1, 3):
        checkpoint = kept[epoch - 1]
        assert isinstance(checkpoint, Checkpoint)
        again = make()
        model = trained(again, start=checkpoint)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        if make is Averaged:
            assert again.count == whole.count == 16 and torch.equal(again.mean, whole.mean)


def test_labels_of_a_batch_can_be_probabilities() -> None:
    class Same(Full):
        def batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            torch.rand(1, generator=generator)
            return images, nn.functional.one_hot(labels, 3).float()

    expected = trained(Full()).state_dict()
    assert all(torch.allclose(tensor, expected[name]) for name, tensor in trained(Same()).state_dict().items())


def test_generator_of_a_batch_follows_the_seed() -> None:
    class Drawing(Full):
        def __init__(self) -> None:
            self.drawn: list[float] = []

        def batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            self.drawn.append(torch.rand(1, generator=generator).item())
            return images, labels

    first, second = Drawing(), Drawing()
    for strategy in (first, second):
        trained(strategy)
    assert first.drawn == second.drawn and len(set(first.drawn)) == 16


PLUGIN = """
import torch
from adaptkit import hookimpl
class Full:
    name = "mine"
    def adapt(self, model): return list(model.parameters())
    {member}
@hookimpl
def adaptkit_strategies(): return [Full]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("def loss(self, model, images, labels, logits): return logits.sum(1)", "loss() must return a scalar tensor"),
        ("def loss(self, model, images, labels, logits): return 1.0", "loss() must return a scalar tensor"),
        ("def loss(self, model, images, labels, logits): return 1 / 0", "fails in loss(): ZeroDivisionError"),
        ("def batch(self, images, labels, generator): return images[:1], labels", "batch() must return as many images"),
        ("def finish(self, model, base): raise ValueError('no')", "ValueError: no"),
    ],
)
def test_faults_fail_their_own_run_in_one_line(cli: Cli, own_folder: Path, member: str, words: str) -> None:
    (own_folder / "mine.py").write_text(PLUGIN.format(member=member))
    result = cli("run", "--plugin", "mine.py", "-s", "mine", "-s", "head", *TINY, "--no-track", "-q")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: mine seed=0: strategy mine") and words in line
    result = cli("plugins", "check", "mine.py")
    assert result.exit_code == 1 and "mine" in result.stdout


@pytest.mark.slow
def test_wise_is_the_mean_of_full_and_the_base(store: Path) -> None:
    settings = TINY_SETTINGS | {"lr": 1e-3}
    outcome = adaptkit.run(["full", "wise"], settings=settings)
    base = adaptkit.load(outcome.base.run_id or "").state_dict()
    folders = [next(store.parent.glob(f"mlruns/*/{run.run_id}/artifacts/adapter")) for run in outcome.runs]
    full, wise = (read_weights(folder / "adapter.safetensors") for folder in folders)
    assert full.keys() == wise.keys()
    for name, tensor in wise.items():
        assert torch.allclose(tensor, (full[name] + base[name]) / 2, atol=1e-6)


@pytest.mark.slow
def test_wise_needs_a_source(cli: Cli, own_folder: Path) -> None:
    result = cli("run", "-s", "wise", "--dataset", "none", "--target", "digits", "--weights", "none")
    line = "Error: strategy wise: it needs a base with a trained head; set a source, as in --dataset NAME\n"
    assert (result.exit_code, result.stderr) == (2, line)


@pytest.mark.slow
def test_first_and_last_stages(own_folder: Path) -> None:
    counts = {}
    for stages, number in ((1, 1), (2, 1), ("last", 2), ("first", 1), ("first", 2)):
        options = {"partial.stages": stages, "partial.number": number}
        (run,) = adaptkit.run("partial", settings=TINY_SETTINGS | options, track=False).runs
        counts[stages, number] = run.metrics["params/trainable"]
    head, first, second, third = 1290, 320, 18_496, 401_536
    assert counts == {
        (1, 1): head + third,
        (2, 1): head + third + second,
        ("last", 2): head + third + second,
        ("first", 1): head + first,
        ("first", 2): head + first + second,
    }
