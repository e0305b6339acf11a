"""Write an adapter of LoRA as the folder that Hugging Face PEFT loads."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from adaptkit.adapters.peft_layers import Update, misread, widened
from adaptkit.adapters.peft_reading import CONFIG, PREFIX, WEIGHTS, PeftAdapter, adapter_of
from adaptkit.errors import BadInput

__all__ = ["CONFIG", "WEIGHTS", "PeftAdapter", "adapter_of", "peft_folder", "written_whole"]

#: the version of PEFT whose files these are
PEFT_VERSION = "0.21.2"
#: PEFT's word for a configuration that wraps no layer
NO_TARGETS = "dummy-target-modules"
DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector.weight"


def peft_folder(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], targets: Sequence[str], base: nn.Module | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what PEFT's two files hold, given an adapter's tensors, LoRA's options and the layers that are adapted.

    With the plain `base`, layers that PEFT would compute wrongly are written whole, in `modules_to_save`, beside their
    factors, which PEFT passes over. Without it their factors are all there is. Raises BadInput for what PEFT cannot
    express.
    """
    updates = _updates(tensors, options)
    missing = [name for name in targets if name not in updates and not any(key.startswith(name) for key in tensors)]
    if missing or not updates:
        raise BadInput(f"the adapter has no update of {', '.join(missing) or 'LoRA'}")
    modules = dict(base.named_modules()) if base is not None else {}
    whole, biases = _others(tensors, updates)
    for name in written_whole(tensors, options, base):
        whole[name] = {}
    if base is not None:
        _check_places(base, [*updates, *whole])
    # PEFT saves every module whose name has such an end.
    also = [name for name in modules if name not in whole and name.endswith(tuple(whole))] if whole else []
    kept = [name for name in updates if name not in whole and name not in also]
    if lost := [name for name in kept if any(re.match(rf"(^|.*\.){saved}($|\..*)", name) for saved in whole)]:
        raise BadInput(f"PEFT would leave out {', '.join(lost)}: its names would fit modules_to_save, too")
    written: dict[str, Tensor] = {}
    for name in [*whole, *also]:
        state = _whole(name, whole.get(name, {}), updates.get(name), tensors, modules)
        written |= {f"{PREFIX}{name}.{leaf}": value for leaf, value in state.items()}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, update in updates.items():
        written |= _factors(name, update)
        if (inner := update.down.shape[0]) != options["rank"]:
            share = inner / options["rank"]
            ranks[f"^{re.escape(name)}"] = inner
            alphas[f"^{re.escape(name)}"] = options["alpha"] * (math.sqrt(share) if options["rslora"] else share)
    written |= {PREFIX + key: tensors[key] for key in biases}
    config = {
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
        "r": options["rank"],
        "lora_alpha": _number(options["alpha"]),
        "lora_dropout": options.get("dropout", 0.0),
        "bias": options.get("bias", "none"),
        "use_rslora": options["rslora"],
        "use_dora": options["dora"],
        "init_lora_weights": True,
        "fan_in_fan_out": False,
        "target_modules": _target_modules(kept, modules),
        "modules_to_save": list(whole) or None,
        "rank_pattern": ranks,
        "alpha_pattern": {key: _number(alpha) for key, alpha in alphas.items()},
    }
    return {key: written[key].detach().cpu().clone().contiguous() for key in sorted(written)}, config


def written_whole(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], base: nn.Module | None
) -> Mapping[str, str]:
    """Return which adapted layers are written whole, merged, since PEFT would compute them otherwise, and why."""
    reasons = misread(base, bool(options["dora"])) if base is not None else {}
    return {name: reason for name, reason in reasons.items() if name + DOWN in tensors}


def _updates(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Update]:
    rank = options["rank"]
    scaling = options["alpha"] / (math.sqrt(rank) if options["rslora"] else rank)
    return {
        name: Update(tensors[key], tensors[name + UP], scaling, tensors.get(name + MAGNITUDE))
        for key in tensors
        if key.endswith(DOWN) and (name := key.removesuffix(DOWN)) + UP in tensors
    }


def _others(
    tensors: Mapping[str, Tensor], updates: Mapping[str, Update]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return what else an adapter holds: the tensors of modules that were trained whole, and the keys of biases."""
    factors = {name + end for name in updates for end in (DOWN, UP, MAGNITUDE)}
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key in tensors:
        if key not in factors:
            module, _, leaf = key.rpartition(".")
            found[module][leaf] = tensors[key]
    biases = [
        f"{module}.{leaf}".strip(".") for module, leaves in found.items() for leaf in leaves if [*leaves] == ["bias"]
    ]
    whole = {module: leaves for module, leaves in found.items() if [*leaves] != ["bias"]}
    if odd := [name for name in whole if not name or name.endswith(".base_layer")]:
        told = [f"{name}.{leaf}".strip(".") for name in odd for leaf in whole[name]]
        raise BadInput(f"PEFT's files of LoRA have no place for {', '.join(told)}")
    return whole, biases


def _whole(
    name: str,
    trained: Mapping[str, Tensor],
    update: Update | None,
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
) -> Mapping[str, Tensor]:
    """Return all of a module's state: what was trained, and the base's for the rest."""
    if name not in modules:
        if "weight" not in trained:
            raise BadInput(f"PEFT saves {name} whole or not at all; its weights are the base's, which is not given")
        return trained
    if any(modules[name].children()):
        raise BadInput(f"PEFT would take {name} for a module to save, too: its name ends like that of one that is")
    state = dict(modules[name].state_dict()) | dict(trained)
    if update is not None:
        state["weight"] = update.merged(state["weight"].to(update.up))
        if f"{name}.base_layer.bias" in tensors:
            state["bias"] = tensors[f"{name}.base_layer.bias"]
    return state


def _factors(name: str, update: Update) -> dict[str, Tensor]:
    down = widened(update.down, update.groups) if update.groups > 1 else update.down
    factors = {f"{PREFIX}{name}{DOWN}": down, f"{PREFIX}{name}{UP}": update.up}
    if update.magnitude is not None:
        factors[f"{PREFIX}{name}{MAGNITUDE}".removesuffix(".weight")] = update.magnitude
    return factors


def _check_places(base: nn.Module, names: Iterable[str]) -> None:
    places: dict[int, list[str]] = defaultdict(list)
    for name, module in base.named_modules(remove_duplicate=False):
        places[id(module)].append(name)
    for known in places.values():
        if len(known) > 1 and not set(known).isdisjoint(names):
            raise BadInput(f"PEFT cannot adapt a layer that the model holds in two places: {', '.join(known)}")


def _target_modules(names: Sequence[str], modules: Iterable[str]) -> list[str] | str:
    """Return the names, or a pattern where PEFT would take a longer name with the same end for one of them."""
    if not names:
        return NO_TARGETS
    ends = tuple(f".{name}" for name in names)
    known = list(modules)
    if known and not any(name.endswith(ends) and name not in names for name in known):
        return sorted(names)
    return "|".join(re.escape(name) for name in names)


def _number(value: float) -> float:
    """Return a whole number as one, as PEFT writes it."""
    return int(value) if float(value).is_integer() else float(value)
