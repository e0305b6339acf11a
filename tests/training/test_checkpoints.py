"""Checkpoints: resumed training gives the same bits, and files that do not fit are refused."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plain_model import Plain
from torch import Tensor, nn

from adaptkit.backbones.structure import with_head
from adaptkit.events import Epoch
from adaptkit.training.checkpoints import Checkpoint, read_checkpoint, uncaptured, write_checkpoint
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain_passes
from adaptkit.training.trainable import freeze

IMAGES = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 5
RECIPE = Recipe(epochs=4, batch_size=8, lr=1e-2, order_seed=0)


def part(model: nn.Module, *, head: bool = False) -> list[nn.Parameter]:
    freeze(model)
    trained = list(model.out.parameters() if head else model.parameters())  # type: ignore[union-attr]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def train(
    model: nn.Module,
    trained: Sequence[nn.Parameter],
    recipe: Recipe,
    start: Checkpoint | None = None,
    keep: Callable[[Any], None] | None = None,
) -> list[Epoch]:
    passes = plain_passes(model, lambda epoch: IMAGES, labels=LABELS, test=(IMAGES, LABELS))
    return list(fit(model, [{"params": list(trained)}], passes, recipe=recipe, start=start, keep=keep))


def figures(epochs: Sequence[Epoch]) -> list[tuple[float, ...]]:
    return [(epoch.number, epoch.loss, epoch.train_accuracy, epoch.test_accuracy or 0.0) for epoch in epochs]


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    mine, others = ours.state_dict(), theirs.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("head", [False, True], ids=["all", "head"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_resumed_training_gives_the_same_bits(
    tmp_path: Path, optimizer: str, head: bool, statistics: bool, layout: torch.memory_format
) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, adapt_statistics=statistics, weight_decay=0.01)
    model = with_head(Plain()).to(memory_format=layout)  # type: ignore[call-overload]
    begun = copy.deepcopy(model)
    path, found = tmp_path / "checkpoint", []

    def keep(checkpoint: Any) -> None:
        write_checkpoint(path, checkpoint, "run")
        found.append(path.read_bytes())

    whole = train(model, part(model, head=head), recipe, keep=keep)
    assert len(found) == 4
    for number, content in enumerate(found, start=1):
        path.write_bytes(content)
        again = copy.deepcopy(begun)
        trained = part(again, head=head)
        start = read_checkpoint(path, "run")
        assert start.misfit(again) is None
        assert start.epochs == tuple(whole[:number]) and start.step == 5 * number
        torch.manual_seed(number)  # draws outside of training must not matter
        rest = train(again, trained, recipe, start=start)
        assert figures(rest) == figures(whole[number:])
        assert same(again, model)
        # The time of earlier epochs is included.
        for epoch, before in zip(rest, [*whole[number - 1 : number], *rest], strict=False):
            assert epoch.cumulative_seconds == pytest.approx(before.cumulative_seconds + epoch.seconds)


def kept(path: Path, model: nn.Module, recipe: Recipe = RECIPE) -> list[Checkpoint | str]:
    found: list[Checkpoint | str] = []
    train(model, part(model, head=True), recipe, keep=found.append)
    if isinstance(found[-1], Checkpoint):
        write_checkpoint(path, found[-1], "run")
    return found


def test_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(FileNotFoundError):
        read_checkpoint(path, "run")
    kept(path, with_head(Plain()), dataclasses.replace(RECIPE, epochs=1))
    content = path.read_bytes()
    with pytest.raises(ValueError, match="it belongs to another run"):
        read_checkpoint(path, "other")
    generator = torch.Generator().manual_seed(0)
    places = [*torch.randint(len(content), (60,), generator=generator).tolist(), 0, 8, 9, len(content) - 1]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError):
            read_checkpoint(path, "run")
        path.write_bytes(content[:place])
        with pytest.raises(ValueError):
            read_checkpoint(path, "run")
    path.write_bytes(content)
    assert read_checkpoint(path, "run").step == 5


def test_checkpoint_of_other_weights_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    kept(path, with_head(Plain()))
    start = read_checkpoint(path, "run")
    model = with_head(Plain())
    assert start.misfit(model) == "its tensors are not those that the model trains"
    part(model, head=True)
    assert start.misfit(model) is None
    with torch.no_grad():
        model.hidden.weight[0, 0] += 1  # type: ignore[union-attr, operator]
    assert start.misfit(model) == "its frozen weights differ"


class Counting(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x) * (1 + 0.01 * self.calls)


class Moving(Plain):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.hidden.bias.add_(0.01)
        return super().forward(x)


class Extra(Plain):
    def get_extra_state(self) -> Any:
        return {}

    def set_extra_state(self, state: Any) -> None: ...


class Anonymous(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: x


OUTSIDE = "the model keeps state outside the tensors that are trained"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counting, OUTSIDE),
        (Moving, OUTSIDE),
        (Extra, "a layer has extra state"),
        (Anonymous, "the state of a layer cannot be compared (AttributeError)"),
    ],
)
def test_models_with_hidden_state_have_no_checkpoint(tmp_path: Path, kind: type[Plain], reason: str) -> None:
    found = kept(tmp_path / "checkpoint", with_head(kind()))
    assert found == [reason] * 4


def test_models_with_hooks_have_no_checkpoint() -> None:
    model = Plain()
    assert uncaptured(model) is None
    model.hidden.register_forward_hook(lambda *given: None)
    assert uncaptured(model) == "the model has hooks"


def test_failed_write_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    (found, *_) = kept(path, with_head(Plain()), dataclasses.replace(RECIPE, epochs=1))
    assert isinstance(found, Checkpoint)
    before = path.read_bytes()
    (tmp_path / "checkpoint.part").mkdir()
    with pytest.raises(OSError):
        write_checkpoint(path, found, "run")
    assert path.read_bytes() == before
