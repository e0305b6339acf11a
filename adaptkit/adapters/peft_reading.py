"""Read a folder of Hugging Face PEFT as an adapter of LoRA."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adaptkit.adapters.files import read_card, read_weights
from adaptkit.adapters.peft_layers import misread, narrowed
from adaptkit.errors import BadInput

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

#: fields of PEFT's configuration that say nothing more of a trained adapter, or that its tensors say better
SILENT = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
        *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform"),
        *("loftq_config", "lora_ga_config", "megatron_core", "modules_to_save", "peft_version"),
        *("qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"),
    )
)
READ = frozenset(
    (
        *("alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "lora_dropout", "peft_type"),
        *("r", "rank_pattern", "use_dora", "use_rslora"),
    )
)
#: ways to draw the first A and B that leave the base as it is
DRAWS = (True, False, "gaussian", "orthogonal", "eva")
#: where PEFT keeps a module to save, and what it was
WRAPPERS = ("modules_to_save", "original_module")
FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<part>A\.weight|B\.weight|magnitude_vector(\.weight)?)")


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT adapter as ours: LoRA's options, the tensors under our names, and the modules that are saved whole.

    `train_head` is true where a linear layer is saved whole; whether that is the model's head, the model knows.
    `doubled` are the layers that were written whole beside their factors, since PEFT would compute those otherwise.
    """

    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    modules_to_save: tuple[str, ...]
    doubled: tuple[str, ...] = ()

    def differs(self, base: nn.Module) -> Mapping[str, str]:
        """Return the layers of the base on which PEFT (0.21) gives other outputs for this adapter than we, and why."""
        reasons = misread(base, bool(self.options["dora"]))
        return {
            name: reason
            for name, reason in reasons.items()
            if f"{name}.lora_A.weight" in self.tensors and name not in self.doubled
        }


def adapter_of(folder: Path) -> PeftAdapter:
    """Return what is in a folder that PEFT's `save_pretrained` wrote; nothing is unpickled.

    Raises BadInput for files that are damaged, and for an adapter that is no LoRA as ours is.
    """
    config = _config(folder)
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise BadInput(f"{folder / 'adapter_model.bin'} is a pickle, which is not read; save it as {WEIGHTS} with PEFT")
    found = read_weights(folder / WEIGHTS)
    if odd := [key for key in found if not key.startswith(PREFIX) or key == PREFIX]:
        raise BadInput(f"{folder / WEIGHTS} is not PEFT's: it has {', '.join(sorted(odd)[:3])}")
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    rest: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in found.items():
        value = value.float() if value.is_floating_point() else value
        name = key.removeprefix(PREFIX)
        if match := FACTOR.fullmatch(name):
            layers[match["layer"]][match["part"].partition(".")[0]] = value
        else:
            module, _, leaf = name.rpartition(".")
            rest[module][leaf] = value
    if foreign := [
        f"{module}.{leaf}" for module, leaves in rest.items() for leaf in leaves if "lora_" in f"{module}{leaf}"
    ]:
        raise BadInput(f"{folder / WEIGHTS}: no tensors of lora as adaptkit has it: {', '.join(foreign[:3])}")
    if not layers:
        raise BadInput(f"{folder / WEIGHTS} has no update of LoRA")
    tensors: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, parts in layers.items():
        try:
            tensors |= _factors(name, parts, config)
        except ValueError as error:
            problems.append(f"{folder}: {name} {error}")
    if problems:
        raise BadInput(*problems)
    saved = []
    for module, leaves in rest.items():
        owner, _, part = module.rpartition(".")
        if part in WRAPPERS and owner in rest:
            continue  # with `bias="all"` PEFT writes the biases of a module to save under these names, too
        if module in layers and "weight" in leaves:
            continue  # a layer that was written whole for PEFT's sake, beside its factors
        place = f"{module}.base_layer" if module in layers else module
        tensors |= {f"{place}.{leaf}".strip("."): value for leaf, value in leaves.items()}
        saved += [module] if [*leaves] != ["bias"] else []
    options = {
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "dropout": float(config["lora_dropout"]),
        "targets": ",".join(exactly(name) for name in layers),
        "rslora": config["use_rslora"],
        "dora": config["use_dora"],
        "train_head": any(rest[module].get("weight", Tensor()).ndim == 2 for module in saved),
        "bias": config["bias"],
    }
    doubled = tuple(name for name in layers if "weight" in rest[name])
    return PeftAdapter(options, tensors, tuple(saved), doubled)


def exactly(name: str) -> str:
    """Return a pattern for `targets` that fits this name, also where that is one of its words or names a type."""
    escaped = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in name)
    is_word = name in ("all", "auto", "conv", "linear") or (name[0].isupper() and name.isidentifier())
    return f"[{name[0]}]{name[1:]}" if is_word else escaped


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    card = read_card(path, {"peft_type": str})
    if card["peft_type"] != "LORA":
        raise BadInput(f"{path}: peft_type {card['peft_type']} cannot be imported; LORA can")
    config = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False}
    config |= {"rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True}
    config |= {key: value for key, value in card.items() if value is not None or key not in config}
    problems = [f"{path}: {line}" for line in _faults(config)]
    if problems:
        raise BadInput(*problems)
    return config


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Say what of a configuration is not valid, or not known here."""
    proper = {
        "r": _is_number(config["r"], int) and config["r"] >= 1,
        "lora_alpha": _is_number(config["lora_alpha"], int | float) and 0 < config["lora_alpha"] < math.inf,
        "lora_dropout": _is_number(config["lora_dropout"], int | float) and 0 <= config["lora_dropout"] < 1,
        "bias": config["bias"] in ("none", "lora_only", "all"),
        "use_rslora": isinstance(config["use_rslora"], bool),
        "use_dora": isinstance(config["use_dora"], bool),
        "rank_pattern": _is_pattern(config["rank_pattern"]),
        "alpha_pattern": _is_pattern(config["alpha_pattern"]),
    }
    yield from (f"{key} cannot be {config[key]!r}" for key, fine in proper.items() if not fine)
    if config["init_lora_weights"] not in DRAWS:
        yield f"init_lora_weights={config['init_lora_weights']} changes the base; convert the adapter to LoRA with PEFT"
    unknown = sorted(key for key, value in config.items() if value and key not in SILENT | READ)
    yield from (f"{key} is not known to adaptkit's lora" for key in unknown)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, dict) or not all(_is_number(number, int | float) for number in value.values()):
        return False
    try:
        return all(re.compile(key) is not None for key in value)
    except re.error:
        return False


def _factors(name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the update of one layer under our names; raise ValueError, worded to follow its name, for another's."""
    wanted = {"A", "B"} | ({"magnitude_vector"} if config["use_dora"] else set())
    if set(parts) != wanted:
        raise ValueError(f"has {', '.join(sorted(parts))} where {', '.join(sorted(wanted))} belong")
    down, up = parts["A"], parts["B"]
    if (down.ndim, up.ndim) not in ((2, 2), (4, 4)):
        raise ValueError("is neither a Linear nor a Conv2d layer")
    inner, out = down.shape[0], up.shape[0]
    rank, alpha = (
        _of(name, config["rank_pattern"], config["r"]),
        _of(name, config["alpha_pattern"], config["lora_alpha"]),
    )
    groups = inner // max(up.shape[1], 1)
    fits = inner == rank and groups * up.shape[1] == inner and (groups == 1 or up.ndim == 4)
    fits = fits and up.shape[2:].numel() == 1 and out % groups == 0 and down.shape[1] % groups == 0
    if not fits:
        raise ValueError(f"is damaged: A {[*down.shape]} and B {[*up.shape]} do not fit rank {rank}")
    factor = _scaling(alpha, inner, config) / _scaling(config["lora_alpha"], config["r"], config)
    if inner != -(-config["r"] // groups) * groups or not math.isclose(factor, 1, rel_tol=1e-9):
        raise ValueError("has a rank or an alpha of its own; adaptkit's lora has one for all layers")
    if groups > 1:
        narrow = narrowed(down, groups)
        if narrow is None:
            raise ValueError("is a grouped convolution whose update mixes the groups; it cannot be merged")
        down = narrow
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    if config["use_dora"]:
        tensors[f"{name}.lora_magnitude_vector.weight"] = parts["magnitude_vector"]
    return tensors


def _of(name: str, pattern: Mapping[str, Any], otherwise: Any) -> Any:
    """Return the value of the first key that fits a name, as PEFT finds it."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)


def _scaling(alpha: float, rank: int, config: Mapping[str, Any]) -> float:
    return alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
