"""What a backbone promises: each function tries one promise on images of one kind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptkit.backbones.structure import find_head, with_head
from adaptkit.contracts import Backbone
from adaptkit.errors import BadInput
from adaptkit.testing.outcomes import CheckFailed, NotTried, apart, listed, require, told, watched
from adaptkit.training.objective import loss_of
from adaptkit.training.seeding import RandomStream

#: logits that may differ in the order of sums only
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Build:
    """A backbone, made anew by `create()`, for images of these channels and this size, and this number of classes."""

    create: Callable[[], Backbone]
    channels: int
    size: int
    classes: int

    def model(self, seed: int = 0) -> nn.Module:
        """Return a model; raise NotTried where there is none for such images."""
        try:
            with watched(), RandomStream(seed):
                model = self.create().build(self.channels, self.size, self.classes)
        except BadInput as error:
            raise NotTried(f"it is not for such images: {told(error)}") from None
        except Exception as error:
            raise NotTried("build() fails") from error
        if not isinstance(model, nn.Module):
            raise NotTried("build() returns no model")
        return with_head(model).eval()

    def images(self, count: int = 4) -> Tensor:
        """Return float images in 0..1."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, self.channels, self.size, self.size, generator=generator)

    @torch.no_grad()
    def logits(self, model: nn.Module, images: Tensor | None = None) -> Tensor:
        """Return what a model in evaluation mode says of some images; raise NotTried where it fails."""
        try:
            logits: Tensor = model.eval()((self.images() if images is None else images).clone())
        except Exception as error:
            raise NotTried("it gives no logits") from error
        return logits


def builds(build: Build) -> None:
    """A model comes out, or a refusal in one line."""
    try:
        with watched(), RandomStream(0):
            model = build.create().build(build.channels, build.size, build.classes)
    except BadInput as error:
        raise NotTried(f"it is not for such images: {told(error)}") from None
    except Exception as error:
        raise CheckFailed(f"build() raises {told(error)}") from error
    require(isinstance(model, nn.Module), f"build() returned {type(model).__name__}, not a torch.nn.Module")


def gives_logits(build: Build) -> None:
    """Finite float32 logits, one for each class, for one image and for several."""
    model = build.model()
    for count in (1, 4):
        try:
            with torch.no_grad():
                logits = model(build.images(count))
        except Exception as error:
            raise CheckFailed(f"for {count} images it raises {told(error)}") from error
        wanted = [count, build.classes]
        require(list(logits.shape) == wanted, f"its logits are {list(logits.shape)}, not {wanted}")
        require(logits.dtype == torch.float32, f"its logits are {logits.dtype}, not torch.float32")
        require(bool(torch.isfinite(logits).all()), "its logits are not finite")


def has_a_head(build: Build) -> None:
    """`model.head` is the last classifier layer, or holds it: a linear layer with an output for each class."""
    model = build.model()
    try:
        head = find_head(model.head)  # type: ignore[arg-type]
    except Exception as error:
        raise CheckFailed(f"model.head raises {told(error)}") from error
    given = getattr(head, "out_features", None)
    require(given == build.classes, f"model.head is {type(head).__name__} with {given} outputs, not {build.classes}")


def draws_from_the_seed(build: Build) -> None:
    """Built twice with one seed, the weights are the same."""
    ours, theirs = (build.model().state_dict() for _ in range(2))
    differing = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    require(not differing, f"built twice with one seed, {listed(differing)} differs: draw from torch's generator")


def takes_each_image_by_itself(build: Build) -> None:
    """In evaluation an image's logits depend on nothing but the image."""
    model, images = build.model(), build.images()
    together = build.logits(model)
    require(torch.equal(together, build.logits(model)), "in evaluation it says something else each time")
    alone = torch.cat([build.logits(model, image[None]) for image in images])
    require(apart(together, alone) <= TOLERANCE, "in evaluation what it says of an image depends on the others")


def trains(build: Build) -> None:
    """Every parameter has a gradient."""
    model = build.model().train()
    try:
        with watched(), RandomStream(0):
            loss = loss_of(model(build.images(8)), torch.arange(8) % build.classes)
            loss.backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise CheckFailed(f"training fails: {told(error)}") from error
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    require(not idle, f"{listed(idle)} has no gradient: nothing depends on it")


def is_its_weights(build: Build) -> None:
    """Weights and buffers of one model, loaded into another, give its logits."""
    ours, theirs = build.model(seed=0), build.model(seed=1)
    theirs.load_state_dict(ours.state_dict())
    gap = apart(build.logits(ours), build.logits(theirs))
    require(gap <= TOLERANCE, "with the weights of another it says something else: is there state outside of them?")


def pickles_and_copies(build: Build) -> None:
    """A model that is pickled or deep-copied says the same."""
    model = build.model()
    expected = build.logits(model)
    for way, duplicate in (
        ("pickled", lambda: pickle.loads(pickle.dumps(model))),
        ("copied", lambda: copy.deepcopy(model)),
    ):
        try:
            other = duplicate()
        except Exception as error:
            raise CheckFailed(f"it cannot be {way}: {told(error)}") from error
        require(torch.equal(expected, build.logits(other)), f"the {way} model says something else")


def touches_nothing_global(build: Build) -> None:
    """Nothing outside of the model changes, random generators aside."""
    build.logits(build.model())  # what is imported for the first time is imported here
    with watched() as changes, RandomStream(0):
        build.create().build(build.channels, build.size, build.classes)
    require(not changes, f"it changes {listed(changes)} for everybody in the process")


#: in the order in which they are told
CHECKS: dict[str, Callable[[Build], None]] = {
    "builds": builds,
    "gives logits": gives_logits,
    "has a head": has_a_head,
    "draws from the seed": draws_from_the_seed,
    "takes each image by itself": takes_each_image_by_itself,
    "trains": trains,
    "is its weights": is_its_weights,
    "pickles and copies": pickles_and_copies,
    "touches nothing global": touches_nothing_global,
}
