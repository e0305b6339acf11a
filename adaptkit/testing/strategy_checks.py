"""Checks of a strategy on one small model."""

from __future__ import annotations

import contextlib
import copy
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.adapters.files import load_adapter, save_adapter
from adaptkit.errors import BadInput, listed
from adaptkit.experiment.preflight import depends_on_batch, differs_each_time, merge_fault, moved_buffers
from adaptkit.experiment.stage import AdaptedModel
from adaptkit.plugins.components import is_fitted, starts_at_base
from adaptkit.testing.outcomes import (
    CheckFailed,
    NotTried,
    apart,
    described,
    hooked,
    require,
    seeded,
    shapes,
    tensors,
    watched,
)
from adaptkit.testing.trials import TOLERANCE, Refused, Trial, apply, declared, long_training, method_of
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import count, set_train_mode


def declares_what_it_trains(trial: Trial) -> None:
    """Check that `adapt` returns parameters of the model, at least one, none twice; or that `fit` fits a head."""
    try:
        with watched():
            trial.adapted_or_raise()
    except Refused:
        trial.adapted()  # raises NotTried
    except BadInput as error:
        raise CheckFailed(described(error)) from error
    except Exception as error:
        raise CheckFailed(f"{method_of(trial.create())}() raises {described(error)}") from error


def counts_each_parameter_once(trial: Trial) -> None:
    """Check that exactly the declared parameters are trained, and that no two parameters share memory."""
    adapted = trial.adapted()
    numbers = sum(parameter.numel() for parameter in declared(adapted))
    trainable = count(adapted.model).trainable
    require(trainable == numbers, f"{numbers:,} parameters are declared, {trainable:,} would be trained")
    seen: dict[int, str] = {}
    for name, parameter in adapted.model.named_parameters():
        address = parameter.untyped_storage().data_ptr()
        require(address not in seen, f"{name} shares memory with {seen.get(address)} and would be counted twice")
        seen[address] = name


def starts_at_the_base(trial: Trial) -> None:
    """Check that the adapted model gives the logits of its base before training."""
    adapted = trial.adapted()
    if not starts_at_base(adapted.strategy):
        raise NotTried("its head is fitted" if is_fitted(adapted.strategy) else "it declares starts_at_base = False")
    gap = apart(trial.logits(trial.base()), trial.logits(adapted.model))
    require(
        gap <= TOLERANCE,
        f"before training, logits differ from the base by {gap:.2g}; if intended, declare starts_at_base = False",
    )


def trains(trial: Trial) -> None:
    """Check that loss and weights stay finite in a training with the default learning rate."""
    error = long_training(trial).error
    if error is not None:
        raise CheckFailed(f"training fails: {described(error)}") from error


def trains_all_that_it_declares(trial: Trial) -> None:
    """Check that training changes each declared parameter."""
    training = trial.long_training()
    trained = declared_names(training.adapted)
    moved = training.changed(trained)
    idle = [name for name in trained if name not in moved]
    require(not idle, f"{listed(idle)} is declared, but training does not change it")


def changes_only_what_it_declares(trial: Trial) -> None:
    """Check that training does not change other parameters."""
    training = trial.long_training()
    trained = declared_names(training.adapted)
    moved = training.changed(name for name, _ in training.adapted.model.named_parameters() if name not in trained)
    require(not moved, f"{listed(moved)} changes in training, but is not declared")


def leaves_frozen_buffers(trial: Trial) -> None:
    """Check that buffers of the base, such as BatchNorm statistics, change only in layers with trained weights."""
    training = trial.long_training()
    adapted = training.adapted
    frozen = [
        f"{path}.{name}".lstrip(".")
        for path, module in adapted.model.named_modules()
        for name, _ in module.named_buffers(recurse=False)
        if f"{path}.{name}".lstrip(".") in adapted.inherited.buffers and not is_trained(module)
    ]
    moved = training.changed(frozen)
    require(not moved, f"{listed(moved)} changes in training, but its layer is frozen")


def saves_and_loads(trial: Trial) -> None:
    """Check that an adapter file, loaded into a new base, gives the logits of the trained model."""
    trained = trial.long_training().adapted
    expected = trial.logits(trained.model)
    fresh = trial.adapted()
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
        save_adapter(Path(folder), trained.inherited.adapter(trained.model), {"base_fingerprint": ""})
        try:
            load_adapter(Path(folder), fresh.model, "", free_rows=is_fitted(trained.strategy))
        except Exception as error:
            raise CheckFailed(f"the adapter file cannot be loaded into a new base: {described(error)}") from error
    gap = apart(expected, trial.logits(fresh.model))
    require(
        gap <= TOLERANCE,
        f"loaded into a new base, its logits differ by {gap:.2g}; is there state outside of parameters and buffers?",
    )


def merges_exactly(trial: Trial) -> None:
    """Check that `merge` gives the logits of the adapted model with exactly the parameters of the base."""
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
        raise CheckFailed(f"merge() raises {described(error)}") from error
    ours, theirs = shapes(model), shapes(trial.base())
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    require(not differing, f"the merged model does not have the parameters of the base: {listed(differing)}")
    gap = apart(expected, trial.logits(model))
    require(gap <= TOLERANCE, f"after merge(), logits differ by {gap:.2g}")
    left = sorted(hooked(model) - hooked(trial.base()))
    require(not left, f"after merge(), hooks are left on {listed(left)}")
    fault = merge_fault(trained.model, trained.strategy, trial.data[0])
    require(not fault, fault)


def repeats_itself(trial: Trial) -> None:
    """Check that the same seeds give the same weights."""
    ours, theirs = (trial.trained().model.state_dict() for _ in range(2))
    require(list(ours) == list(theirs), "two models adapted with the same seeds have different parameters or buffers")
    differing = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    require(not differing, f"the same seeds give different values of {listed(differing)}; use torch's global generator")


def resumes(trial: Trial) -> None:
    """Check that a training that resumes from a checkpoint with the strategy's state gives the same weights."""
    if not hasattr(trial.create(), "state_dict"):
        raise NotTried("it has no state_dict()")
    expected, resumed = (adapted.model.state_dict() for adapted in trial.interrupted())
    differing = [name for name, value in expected.items() if not torch.equal(value, resumed[name])]
    require(not differing, f"a resumed training gives different values of {listed(differing)}")


def pickles_and_copies(trial: Trial) -> None:
    """Check that a pickled or copied model gives the same logits."""
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
            raise CheckFailed(f"the adapted model cannot be {way}: {described(error)}") from error
        require(torch.equal(expected, trial.logits(other)), f"the {way} model gives different logits")
        with torch.no_grad():
            for name in adapted.inherited.adapter(adapted.model):
                if (tensor := other.state_dict()[name]).is_floating_point():
                    tensor += 0.1
        require(
            not torch.equal(expected, trial.logits(other)),
            f"the {way} model does not use its own parameters; does a hook use those of the original?",
        )


def works_in_training_and_evaluation(trial: Trial) -> None:
    """Check for finite logits in training mode, and repeatable, independent logits in evaluation mode."""
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
        attempt("in evaluation", adapted.model, pixels.clone())
        attempt("for one image", adapted.model, pixels[:1].clone())
    moved = moved_buffers(adapted.model, pixels)
    require(not moved, f"in evaluation mode it changes {listed(moved)}")
    require(not differs_each_time(adapted.model, pixels), "in evaluation mode it gives different logits each time")
    require(
        not depends_on_batch(adapted.model, pixels[:4]),
        "in evaluation mode the logits of an image depend on the other images",
    )


def shares_nothing_between_models(trial: Trial) -> None:
    """Check that training one adapted model does not change another one."""
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
    require(not moved, f"training one adapted model changes {listed(moved)} of another one")


def changes_no_global_state(trial: Trial) -> None:
    """Check that no global state changes, except random generators."""
    trial.long_training()  # imports happen here, before global state is compared
    with watched() as changes:
        adapted = trial.adapted_or_raise()
        trial.train_or_raise(adapted)
        if hasattr(adapted.strategy, "merge"):
            with contextlib.suppress(Exception):  # another check reports it
                adapted.strategy.merge(copy.deepcopy(adapted.model))
    require(not changes, f"it changes {listed(changes)} for the whole process")
    generators = seeded(lambda: apply(trial.create(), trial.base()))
    require(not generators, f"it seeds the random generator of {listed(generators)} for the whole process")


#: in the order of the output
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
    "resumes": resumes,
    "pickles and copies": pickles_and_copies,
    "works in training and evaluation": works_in_training_and_evaluation,
    "shares nothing between models": shares_nothing_between_models,
    "changes no global state": changes_no_global_state,
}


def declared_names(adapted: AdaptedModel) -> list[str]:
    """Return the names of the parameters that the strategy trains."""
    trained = {id(parameter) for parameter in declared(adapted)}
    return [name for name, parameter in adapted.model.named_parameters() if id(parameter) in trained]


def attempt(when: str, model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the logits of a model; raise CheckFailed if it fails."""
    try:
        logits: Tensor = model(pixels)
    except Exception as error:
        raise CheckFailed(f"{when} it raises {described(error)}") from error
    return logits


def is_trained(module: nn.Module) -> bool:
    """Return whether the weight of a layer is trained, so that its statistics may change."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.requires_grad
