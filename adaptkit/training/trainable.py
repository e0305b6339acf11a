"""Own what is trained: every `requires_grad` flag and every train/eval mode is set here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adaptkit.contracts import Strategy
from adaptkit.errors import BadInput, suggestion
from adaptkit.training.seeding import RandomStream

#: what an optimizer group may say: `lr_ratio` is how many times the run's learning rate it has
GROUP_KEYS = frozenset(
    ("params", "lr", "lr_ratio", "weight_decay", "betas", "eps", "amsgrad", "momentum", "dampening", "nesterov")
)


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, each counted once."""

    total: int
    trainable: int

    @property
    def fraction(self) -> float:
        """Return the trainable share of all parameters."""
        return self.trainable / self.total


def adapt(model: nn.Module, strategy: Strategy, init_seed: int) -> list[dict[str, Any]]:
    """Let the strategy change the model, freeze all that it does not train, and return its optimizer groups.

    Raises BadInput when the strategy trains nothing, a parameter twice, or one that is not the model's.
    """
    with RandomStream(init_seed):
        returned = strategy.adapt(model)
    if returned is None:
        raise BadInput(f"strategy {strategy.name}: adapt() returned nothing; return the parameters to train")
    declared = list(returned)
    groups = _groups(strategy.name, declared)
    trained = [parameter for group in groups for parameter in group["params"]]
    identities = {id(parameter) for parameter in trained}
    own = {id(parameter) for parameter in model.parameters()}
    if not trained:
        raise BadInput(f"strategy {strategy.name}: adapt() returned no parameters to train")
    if len(identities) < len(trained):
        raise BadInput(f"strategy {strategy.name}: adapt() returned a parameter twice")
    if not identities <= own:
        raise BadInput(f"strategy {strategy.name}: adapt() returned a parameter that is not in the model")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in identities)
    return groups


def freeze(model: nn.Module) -> None:
    """Train nothing of the model."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def count(model: nn.Module) -> Counts:
    """Count the parameters, a shared one once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Counts(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def set_train_mode(model: nn.Module) -> None:
    """Put what is trained into train mode and what is frozen into eval mode.

    Running statistics move only if the layer's weight is trained; a layer without parameters, such as dropout,
    follows the module that holds it.
    """
    everything = all(parameter.requires_grad for parameter in model.parameters())

    def visit(module: nn.Module, holder_trained: bool) -> None:
        flags = [parameter.requires_grad for parameter in module.parameters()]
        trained = any(flags) if flags else holder_trained
        if isinstance(getattr(module, "running_mean", None), Tensor):
            weight = getattr(module, "weight", None)
            trained = weight.requires_grad if isinstance(weight, Tensor) else everything
        module.training = trained
        for child in module.children():
            visit(child, trained)

    visit(model, True)


def _groups(name: str, declared: Sequence[Any]) -> list[dict[str, Any]]:
    if declared and all(isinstance(item, dict) for item in declared):
        if not all("params" in group for group in declared):
            raise BadInput(f"strategy {name}: an optimizer group from adapt() has no 'params'")
        unknown = {key for group in declared for key in group} - GROUP_KEYS
        if unknown:
            raise BadInput(
                *(
                    f"strategy {name}: unknown key {key!r} in an optimizer group{suggestion(str(key), GROUP_KEYS)}"
                    for key in sorted(map(str, unknown))
                )
            )
        groups = [group | {"params": _listed(group["params"])} for group in declared]
    else:
        groups = [{"params": declared}]
    for item in (item for group in groups for item in group["params"]):
        if not isinstance(item, nn.Parameter):
            raise BadInput(f"strategy {name}: adapt() returned a {type(item).__name__} where a parameter belongs")
    return groups


def _listed(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)
