"""What a strategy promises: each function tries one promise on one small model."""

from __future__ import annotations

import contextlib
import copy
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.adapters.files import load_adapter, save_adapter
from adaptkit.errors import BadInput
from adaptkit.experiment.adaptation import AdaptedModel
from adaptkit.testing.outcomes import CheckFailed, NotTried, apart, listed, require, shapes, tensors, told, watched
from adaptkit.testing.trials import TOLERANCE, Refused, Trial, declared
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import count, set_train_mode


def declares_what_it_trains(trial: Trial) -> None:
    """Parameters of the model, at least one, none twice."""
    try:
        with watched():
            trial.adapted_or_raise()
    except Refused:
        trial.adapted()  # says so
    except BadInput as error:
        raise CheckFailed(told(error)) from error
    except Exception as error:
        raise CheckFailed(f"adapt() raises {told(error)}") from error


def counts_each_parameter_once(trial: Trial) -> None:
    """What is trained is what is declared, and no two parameters share memory."""
    adapted = trial.adapted()
    numbers = sum(parameter.numel() for parameter in declared(adapted))
    trainable = count(adapted.model).trainable
    require(trainable == numbers, f"{numbers:,} parameters are declared, {trainable:,} would be trained")
    seen: dict[int, str] = {}
    for name, parameter in adapted.model.named_parameters():
        address = parameter.untyped_storage().data_ptr()
        require(address not in seen, f"{name} is {seen.get(address)} under another name, and would be counted twice")
        seen[address] = name


def starts_at_the_base(trial: Trial) -> None:
    """Before training, the adapted model says what its base says."""
    adapted = trial.adapted()
    if not getattr(adapted.strategy, "starts_at_base", True):
        raise NotTried("it says that it does not: starts_at_base = False")
    gap = apart(trial.logits(trial.base()), trial.logits(adapted.model))
    require(
        gap <= TOLERANCE,
        f"the first logits are {gap:.2g} from the base's; if that is meant, say starts_at_base = False",
    )


def trains(trial: Trial) -> None:
    """A few steps with its learning rate leave loss and weights finite."""
    adapted = trial.adapted()
    try:
        with watched():
            trial.train_or_raise(adapted)
    except Exception as error:
        raise CheckFailed(f"training fails: {told(error)}") from error


def trains_all_that_it_declares(trial: Trial) -> None:
    """Each declared parameter has a gradient, and moves."""
    adapted = trial.adapted()
    before = [parameter.detach().clone() for parameter in declared(adapted)]
    trial.train(adapted)
    names = {id(parameter): name for name, parameter in adapted.model.named_parameters()}
    pairs = zip(declared(adapted), before, strict=True)
    idle = [names[id(parameter)] for parameter, value in pairs if torch.equal(parameter, value)]
    require(not idle, f"{listed(idle)} is declared, but training leaves it as it is")


def changes_only_what_it_declares(trial: Trial) -> None:
    """Every other parameter keeps its bits in training."""
    adapted = trial.adapted()
    trained = {id(parameter) for parameter in declared(adapted)}
    frozen = {name: parameter for name, parameter in adapted.model.named_parameters() if id(parameter) not in trained}
    moved = moved_by_training(trial, adapted, frozen)
    require(not moved, f"{listed(moved)} changes in training, but is not declared")


def leaves_frozen_buffers(trial: Trial) -> None:
    """Buffers of the base, such as BatchNorm's statistics, stay unless their layer's weight is trained."""
    adapted = trial.adapted()
    frozen = {
        f"{path}.{name}".lstrip("."): buffer
        for path, module in adapted.model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if f"{path}.{name}".lstrip(".") in adapted.inherited.buffers and not is_trained(module)
    }
    moved = moved_by_training(trial, adapted, frozen)
    require(not moved, f"{listed(moved)} changes in training, but its layer is frozen")


def saves_and_loads(trial: Trial) -> None:
    """An adapter file, put onto a fresh base, gives the trained model's logits."""
    trained = trial.trained()
    expected = trial.logits(trained.model)
    fresh = trial.adapted()
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
        save_adapter(Path(folder), trained.inherited.adapter(trained.model), {"base_fingerprint": ""})
        try:
            load_adapter(Path(folder), fresh.model, "")
        except Exception as error:
            raise CheckFailed(f"the adapter file cannot be put onto a fresh base: {told(error)}") from error
    gap = apart(expected, trial.logits(fresh.model))
    require(
        gap <= TOLERANCE,
        f"read back onto a fresh base, its logits are {gap:.2g} from those before; is there state outside of "
        "parameters and buffers?",
    )


def merges_exactly(trial: Trial) -> None:
    """`merge` gives the adapted model's logits with exactly the base's parameters."""
    trained = trial.trained()
    merge = getattr(trained.strategy, "merge", None)
    if merge is None:
        raise NotTried("it has no merge()")
    expected = trial.logits(trained.model)
    model = copy.deepcopy(trained.model)
    try:
        with watched():
            merge(model)
    except Exception as error:
        raise CheckFailed(f"merge() raises {told(error)}") from error
    ours, theirs = shapes(model), shapes(trial.base())
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    require(not differing, f"the merged model has not the base's parameters: {listed(differing)}")
    gap = apart(expected, trial.logits(model))
    require(gap <= TOLERANCE, f"merged, its logits are {gap:.2g} from those before")


def repeats_itself(trial: Trial) -> None:
    """The same seeds give the same weights."""
    ours, theirs = (trial.trained().model.state_dict() for _ in range(2))
    require(list(ours) == list(theirs), "two models adapted with the same seeds have other parameters or buffers")
    differing = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    require(
        not differing, f"trained twice with the same seeds, {listed(differing)} differs: draw from torch's generator"
    )


def pickles_and_copies(trial: Trial) -> None:
    """A model that is pickled or deep-copied says the same."""
    adapted = trial.adapted()
    expected = trial.logits(adapted.model)
    ways: dict[str, Callable[[nn.Module], Any]] = {
        "pickled": lambda model: pickle.loads(pickle.dumps(model)),
        "deep-copied": copy.deepcopy,
    }
    for way, duplicate in ways.items():
        try:
            other = duplicate(adapted.model)
        except Exception as error:
            raise CheckFailed(f"the adapted model cannot be {way}: {told(error)}") from error
        require(torch.equal(expected, trial.logits(other)), f"the {way} model says something else")


def works_in_training_and_evaluation(trial: Trial) -> None:
    """In training it gives finite logits; in evaluation the same each time, for each image by itself."""
    adapted = trial.adapted()
    pixels, expected = trial.data[0], trial.logits(trial.base())
    set_train_mode(adapted.model)
    with RandomStream(3), watched():
        logits = attempt("in training", adapted.model, pixels.clone())
    require(bool(torch.isfinite(logits).all()), "in training its logits are not finite")
    require(
        logits.shape == expected.shape, f"in training its logits are {list(logits.shape)}, not {list(expected.shape)}"
    )
    adapted.model.eval()
    with RandomStream(3), torch.no_grad(), watched():
        together, again = (attempt("in evaluation", adapted.model, pixels.clone()) for _ in range(2))
        alone = torch.cat([attempt("for one image", adapted.model, image[None].clone()) for image in pixels[:4]])
    require(torch.equal(together, again), "in evaluation it says something else each time")
    gap = apart(together[:4], alone)
    require(gap <= TOLERANCE, f"in evaluation what it says of an image depends on the others ({gap:.2g})")


def shares_nothing_between_models(trial: Trial) -> None:
    """Training one adapted model leaves another as it is."""
    ours, theirs = trial.adapted(), trial.adapted()
    addresses = {tensor.untyped_storage().data_ptr() for tensor in tensors(ours.model).values() if tensor.numel()}
    common = [
        name
        for name, tensor in tensors(theirs.model).items()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in addresses
    ]
    require(not common, f"two adapted models share {listed(common)}")
    before = {name: tensor.clone() for name, tensor in tensors(theirs.model).items()}
    trial.train(ours)
    moved = [name for name, tensor in tensors(theirs.model).items() if not torch.equal(tensor, before[name])]
    require(not moved, f"training one adapted model changes {listed(moved)} of another")


def touches_nothing_global(trial: Trial) -> None:
    """Nothing outside of the model changes, random generators aside."""
    trial.trained()  # what is imported for the first time is imported here
    with watched() as changes:
        adapted = trial.adapted_or_raise()
        trial.train_or_raise(adapted)
        if hasattr(adapted.strategy, "merge"):
            with contextlib.suppress(Exception):  # which is a check's business of its own
                adapted.strategy.merge(copy.deepcopy(adapted.model))
    require(not changes, f"it changes {listed(changes)} for everybody in the process")


#: in the order in which they are told
CHECKS: dict[str, Callable[[Trial], None]] = {
    "declares what it trains": declares_what_it_trains,
    "counts each parameter once": counts_each_parameter_once,
    "starts at the base": starts_at_the_base,
    "trains": trains,
    "trains all that it declares": trains_all_that_it_declares,
    "changes only what it declares": changes_only_what_it_declares,
    "leaves frozen buffers": leaves_frozen_buffers,
    "saves and loads": saves_and_loads,
    "merges exactly": merges_exactly,
    "repeats itself": repeats_itself,
    "pickles and copies": pickles_and_copies,
    "works in training and evaluation": works_in_training_and_evaluation,
    "shares nothing between models": shares_nothing_between_models,
    "touches nothing global": touches_nothing_global,
}


def moved_by_training(trial: Trial, adapted: AdaptedModel, frozen: Mapping[str, Tensor]) -> list[str]:
    """Train an adapted model, and return which of these tensors of it are others then."""
    before = {name: tensor.detach().clone() for name, tensor in frozen.items()}
    trial.train(adapted)
    now = tensors(adapted.model)
    return [name for name, value in before.items() if name not in now or not torch.equal(now[name], value)]


def attempt(when: str, model: nn.Module, pixels: Tensor) -> Tensor:
    """Return a model's logits; raise CheckFailed where it gives none."""
    try:
        logits: Tensor = model(pixels)
    except Exception as error:
        raise CheckFailed(f"{when} it raises {told(error)}") from error
    return logits


def is_trained(module: nn.Module) -> bool:
    """Tell whether a layer's own weight is trained, so that its statistics may move."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.requires_grad
