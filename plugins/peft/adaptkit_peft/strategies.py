"""Create a strategy class for each type in the catalogue, with the options of that type."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from adaptkit.errors import BadInput
from pydantic import BeforeValidator

from adaptkit_peft import catalogue
from adaptkit_peft.catalogue import Entry, Option
from adaptkit_peft.methods import DEEP_RATE, FITTED, LEARNING_RATE, LEARNING_RATES, PAPERS, SETTINGS

if TYPE_CHECKING:
    from torch import nn

#: kind -> values by their names on the command line
FLAGS: dict[str, dict[str, bool | None]] = {"bool": {"true": True, "false": False}, "none": {"none": None}}
KINDS = {"bool": bool, "int": int, "float": float, "str": str, "none": None}


class PeftStrategy:
    """Adapt a model with a PEFT type."""

    name: ClassVar[str]
    entry: ClassVar[Entry]

    def adapt(self, model: nn.Module) -> list[nn.Parameter]:
        """Wrap the chosen layers in place and return the trained parameters.

        Raises BadInput if the type cannot be used, does not support a layer, or rejects an option.
        """
        from adaptkit_peft.layers import find_layers
        from adaptkit_peft.wrapping import wrap

        if self.entry.unavailable:
            raise BadInput(f"{self.name} cannot be used: {self.entry.unavailable}")
        heads = self._trained_heads(model)
        layers = find_layers(model, self._targets(), heads, strategy=self.name)
        self._require_fitting(layers)
        wrap(model, self.entry.type, names=layers, settings=self._settings(layers), strategy=self.name)
        self._check_layers(model, layers)
        for head in heads:
            head.requires_grad_(True)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def notices(self, model: nn.Module) -> list[str]:
        """Return a notice about layers that are left out, since the model uses them in another way than their type."""
        from adaptkit.backbones.layers import coverage

        from adaptkit_peft.layers import find_layers, find_left_out

        heads, targets = self._trained_heads(model), self._targets()
        adapted = find_layers(model, targets, heads, strategy=self.name)
        return coverage(self.name, len(adapted), find_left_out(model, targets, heads))

    def _targets(self) -> str:
        return getattr(self, "targets", "norm" if "norm layers" in self.entry.layers else "linear")

    def _trained_heads(self, model: nn.Module) -> list[nn.Module]:
        from adaptkit.backbones.layers import find_heads

        return find_heads(model) if getattr(self, "train_head", False) else []

    def _require_fitting(self, layers: dict[str, nn.Module]) -> None:
        from adaptkit_peft.layers import sorts

        unfit: dict[str, list[str]] = {}
        for name, layer in layers.items():
            for sort in sorts(layer):
                if sort not in self.entry.layers:
                    unfit.setdefault(sort, []).append(name)
        if unfit:
            raise BadInput(
                *(
                    f"{self.name} cannot adapt {sort}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
                    for sort, names in unfit.items()
                )
            )

    def _check_layers(self, model: nn.Module, layers: dict[str, nn.Module]) -> None:
        """Try the smallest layer of each kind with the current options, and let linear layers accept 4-d inputs.

        Raises BadInput if one does not work.
        """
        from adaptkit_peft.layers import sorts, widths
        from adaptkit_peft.proof import fault, needs_sequences
        from adaptkit_peft.wrapping import accept_images

        by_size = sorted(layers, key=lambda name: math.prod(widths(layers[name])), reverse=True)
        for sort, name in {tuple(sorts(layers[name])): name for name in by_size}.items():
            wrapped = model.get_submodule(name)
            reason = fault(wrapped, self.entry.merges)
            if reason:
                raise BadInput(f"{self.name} cannot adapt {sort[-1]} with these options: {name}: {reason}")
            if needs_sequences(wrapped):
                accept_images(model, [name for name, layer in layers.items() if tuple(sorts(layer)) == sort])

    def _settings(self, layers: dict[str, nn.Module]) -> dict[str, Any]:
        """Return the settings for PEFT's configuration: options that differ from their defaults, and required ones."""
        from adaptkit_peft.fitting import fit

        changed = {
            option.name: value
            for option in self.entry.options
            for value in [getattr(self, option.name)]
            if value != option.default or type(value) is not type(option.default)
        }
        fitted = FITTED.get(self.entry.type)
        if fitted and getattr(self, fitted.option) is None:
            changed[fitted.option] = fit(fitted, layers, self.name)
        return SETTINGS.get(self.entry.type, {}) | changed

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle cannot find the class by module and name, because the class is created from the catalogue.
        return rebuild_strategy, (self.entry.type, dict(vars(self)))


class MergingStrategy(PeftStrategy):
    """Adapt a model with a PEFT type that can be folded into the weights."""

    def merge(self, model: nn.Module) -> None:
        """Fold the adapter into the weights, in place."""
        from adaptkit_peft.wrapping import unwrap

        unwrap(model)


def strategy_classes() -> list[type]:
    """Return a strategy class for each type of the installed PEFT. Raises BadInput if PEFT is not installed."""
    return [strategy_class(entry) for entry in catalogue.read()]


@functools.cache
def strategy_class(entry: Entry) -> type[Any]:
    """Return the strategy class of a catalogue entry."""
    options = () if entry.unavailable else (*_own_options(entry), *entry.options)
    rate = LEARNING_RATES.get(entry.type, LEARNING_RATE)
    members: dict[str, Any] = {
        "__doc__": f"{PAPERS.get(entry.type, f'PEFT: {entry.type}')}.",
        "__module__": __name__,
        "name": f"peft-{entry.type.lower()}",
        "lr": {"plain": rate, **dict.fromkeys(("batch_norm", "transformer"), min(rate, DEEP_RATE))},
        "starts_at_base": entry.starts_at_base,
        "entry": entry,
    }
    if entry.unavailable:
        members["unavailable"] = entry.unavailable
    base = MergingStrategy if entry.merges else PeftStrategy
    title = f"Peft{entry.type.title().replace('_', '')}"
    return dataclasses.make_dataclass(title, map(_field, options), bases=(base,), namespace=members)


def rebuild_strategy(peft_type: str, values: dict[str, Any]) -> Any:
    """Return a strategy of this type with these options; used by pickle."""
    entry = next(entry for entry in catalogue.read() if entry.type == peft_type)
    return strategy_class(entry)(**values)


def _own_options(entry: Entry) -> list[Option]:
    """Return adaptkit's own options that apply to this type."""
    if "norm layers" in entry.layers:
        return []
    head = Option(
        name="train_head",
        kinds=("bool",),
        choices=(),
        default=False,
        help="train the head itself instead of adapting it",
    )
    if not any("convolutions" in sort for sort in entry.layers):
        return [head]
    words = ("linear", "conv", "all")
    return [
        Option(
            name="targets",
            kinds=(),
            choices=words,
            default="linear",
            help="layers to adapt: linear, conv (Conv2d) or all",
        ),
        head,
    ]


def _field(option: Option) -> tuple[str, Any, Any]:
    if option.choices:
        # A single literal gives one error message; a union would give one message for each member.
        flags = {word: value for kind in option.kinds for word, value in FLAGS[kind].items()}
        read = BeforeValidator(lambda value: flags.get(value, value) if isinstance(value, str) else value)
        hint: Any = Annotated[Literal[(*flags.values(), *option.choices)], read]
    else:
        hint = functools.reduce(operator.or_, (KINDS[kind] for kind in option.kinds))
    return option.name, hint, dataclasses.field(default=option.default, metadata={"help": option.help})
