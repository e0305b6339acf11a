"""Checks of a backbone on images of one size and number of channels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptkit.backbones.layers import Usage, find_usage
from adaptkit.backbones.structure import find_head, with_head
from adaptkit.contracts import Backbone
from adaptkit.errors import BadInput, listed
from adaptkit.experiment.preflight import (
    Sample,
    are_probabilities,
    depends_on_batch,
    differs_each_time,
    moved_buffers,
    output_fault,
)
from adaptkit.testing.outcomes import CheckFailed, NotTried, apart, described, require, seeded, watched
from adaptkit.training.objective import loss_of
from adaptkit.training.seeding import RandomStream

#: tolerance for logits that differ only in the order of sums
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Build:
    """A backbone, created by `create()`, with the channels and size of its images and the number of classes."""

    create: Callable[[], Backbone]
    channels: int
    size: int
    classes: int

    def model(self, seed: int = 0) -> nn.Module:
        """Return a model; raise NotTried if the backbone does not support such images."""
        try:
            with watched(), RandomStream(seed):
                model = self.create().build(self.channels, self.size, self.classes)
        except BadInput as error:
            raise NotTried(f"it does not support these images: {described(error)}") from None
        except Exception as error:
            raise NotTried("build() fails") from error
        if not isinstance(model, nn.Module):
            raise NotTried("build() does not return a model")
        return with_head(model, (self.channels, self.size)).eval()

    def images(self, count: int = 4) -> Tensor:
        """Return float images in 0..1."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, self.channels, self.size, self.size, generator=generator)

    @torch.no_grad()
    def logits(self, model: nn.Module, images: Tensor | None = None) -> Tensor:
        """Return the logits of a model in evaluation mode; raise NotTried if it fails."""
        try:
            logits: Tensor = model.eval()((self.images() if images is None else images).clone())
        except Exception as error:
            raise NotTried("the model gives no logits") from error
        return logits


def builds(build: Build) -> None:
    """Check that `build` returns a model, or raises BadInput for unsupported images."""
    try:
        with watched(), RandomStream(0):
            model = build.create().build(build.channels, build.size, build.classes)
    except BadInput as error:
        raise NotTried(f"it does not support these images: {described(error)}") from None
    except Exception as error:
        raise CheckFailed(f"build() raises {described(error)}") from error
    require(isinstance(model, nn.Module), f"build() returned {type(model).__name__}, not a torch.nn.Module")


def gives_logits(build: Build) -> None:
    """Check for finite float32 logits, one for each class, for one image and for several."""
    model = build.model()
    for count in (1, 4):
        try:
            with torch.no_grad():
                logits = model(build.images(count))
        except Exception as error:
            raise CheckFailed(f"for {count} images it raises {described(error)}") from error
        fault = output_fault(logits, Sample(build.images(count), build.classes))
        require(not fault, fault)
        require(logits.dtype == torch.float32, f"its logits have the type {logits.dtype}, not torch.float32")
        require(bool(torch.isfinite(logits).all()), "its logits are not finite")


def has_a_head(build: Build) -> None:
    """Check that `model.head` is, or contains, a last linear layer with one output for each class."""
    model = build.model()
    try:
        head = find_head(model.head)  # type: ignore[arg-type]
    except Exception as error:
        raise CheckFailed(f"model.head raises {described(error)}") from error
    outputs = getattr(head, "out_features", None)
    require(
        outputs == build.classes, f"model.head is {type(head).__name__} with {outputs} outputs, not {build.classes}"
    )
    usage = find_usage(model)
    if usage is None:
        raise NotTried("the model cannot be trained")
    names = {name for name, parameter in model.named_parameters() if any(parameter is p for p in head.parameters())}
    require(not names <= usage.unused, "the logits do not depend on model.head")
    require(
        usage.heads_decide and len(usage.heads) == 1,
        f"model.head is not its only classifier{_others(usage)}; combine them into one layer",
    )


def _others(usage: Usage) -> str:
    return f": {listed(usage.heads)} are averaged or added" if len(usage.heads) > 1 else ""


def draws_from_the_seed(build: Build) -> None:
    """Check that the same seed gives the same weights."""
    ours, theirs = (build.model().state_dict() for _ in range(2))
    differing = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    require(not differing, f"the same seed gives different values of {listed(differing)}; use torch's global generator")


def treats_images_independently(build: Build) -> None:
    """Check that the logits of an image in evaluation mode depend only on this image."""
    model, images = build.model(), build.images()
    together = build.logits(model)
    moved = moved_buffers(model, images)
    require(not moved, f"in evaluation mode it changes {listed(moved)}")
    require(not differs_each_time(model, images), "in evaluation mode it gives different logits each time")
    require(not depends_on_batch(model, images), "in evaluation mode the logits of an image depend on the other images")
    require(not are_probabilities(together), "its outputs are probabilities, not logits; does it end in a softmax?")


def trains(build: Build) -> None:
    """Check that every parameter has a gradient."""
    model = build.model().train()
    try:
        with watched(), RandomStream(0):
            sample = Sample(build.images(8), build.classes)
            logits = model(sample.images)
            fault = output_fault(logits, sample, "in training mode")
            require(not fault, fault)
            loss = loss_of(logits, sample.labels)
            loss.backward()  # type: ignore[no-untyped-call]
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(f"training fails: {described(error)}") from error
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    require(not idle, f"{listed(idle)} has no gradient: the loss does not depend on it")


def loads_its_weights(build: Build) -> None:
    """Check that a model with the weights and buffers of another one gives the same logits."""
    ours, theirs = build.model(seed=0), build.model(seed=1)
    theirs.load_state_dict(ours.state_dict())
    gap = apart(build.logits(ours), build.logits(theirs))
    require(
        gap <= TOLERANCE,
        "with the weights of another model it gives different logits; is there state outside of parameters and "
        "buffers?",
    )


def pickles_and_copies(build: Build) -> None:
    """Check that a pickled or copied model gives the same logits."""
    model = build.model()
    expected = build.logits(model)
    for way, duplicate in (
        ("pickled", lambda: pickle.loads(pickle.dumps(model))),
        ("copied", lambda: copy.deepcopy(model)),
    ):
        try:
            other = duplicate()
        except Exception as error:
            raise CheckFailed(f"it cannot be {way}: {described(error)}") from error
        require(torch.equal(expected, build.logits(other)), f"the {way} model gives different logits")


def changes_no_global_state(build: Build) -> None:
    """Check that no global state changes, except random generators."""
    build.logits(build.model())  # imports happen here, before global state is compared
    with watched() as changes, RandomStream(0):
        build.create().build(build.channels, build.size, build.classes)
    require(not changes, f"it changes {listed(changes)} for the whole process")
    generators = seeded(lambda: build.create().build(build.channels, build.size, build.classes))
    require(not generators, f"it seeds the random generator of {listed(generators)} for the whole process")


#: name of each check, in the order of the output -> its function
CHECKS: dict[str, Callable[[Build], None]] = {
    "builds": builds,
    "gives logits": gives_logits,
    "has a head": has_a_head,
    "draws from the seed": draws_from_the_seed,
    "treats images independently": treats_images_independently,
    "trains": trains,
    "loads its weights": loads_its_weights,
    "pickles and copies": pickles_and_copies,
    "changes no global state": changes_no_global_state,
}
