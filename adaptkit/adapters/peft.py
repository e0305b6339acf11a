"""Read and write LoRA adapters in the format of Hugging Face PEFT."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.adapters.files import read_card, read_weights
from adaptkit.errors import BadInput


@dataclass(frozen=True)
class Update:
    """LoRA's update of one layer: A `[rank, in, ...]`, B `[out, rank, ...]`, and DoRA's magnitudes."""

    down: Tensor
    up: Tensor
    scaling: float
    magnitude: Tensor | None = None

    @property
    def groups(self) -> int:
        """Return the number of groups of the layer."""
        return self.down.shape[0] // self.up.shape[1]

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight of the layer with the update added."""
        rank = self.up.shape[1]
        up = self.up.reshape(self.groups, -1, rank)
        down = self.down.reshape(self.groups, rank, -1)
        result: Tensor = weight + self.scaling * (up @ down).reshape(weight.shape)
        if self.magnitude is None:
            return result
        lengths = torch.linalg.vector_norm(result.flatten(1), dim=1).clamp_min(1e-30)
        gain: Tensor = self.magnitude.flatten() / lengths
        return result * gain.reshape(-1, *[1] * (weight.ndim - 1))


def widened(down: Tensor, groups: int) -> Tensor:
    """Return the A of a grouped convolution in PEFT's shape: over all channels, with zeros for other groups.

    `[rank, in / groups, h, w]` becomes `[rank, in, h, w]`.
    """
    rank, width = down.shape[0] // groups, down.shape[1]
    wide = down.new_zeros(down.shape[0], width * groups, *down.shape[2:])
    for group in range(groups):
        rows = slice(group * rank, (group + 1) * rank)
        wide[rows, group * width : (group + 1) * width] = down[rows]
    return wide


def narrowed(wide: Tensor, groups: int) -> Tensor | None:
    """Undo `widened`; return None if the update connects different groups, which cannot be merged."""
    rank, width = wide.shape[0] // groups, wide.shape[1] // groups
    parts = [
        wide[group * rank : (group + 1) * rank, group * width : (group + 1) * width].clone() for group in range(groups)
    ]
    down = torch.cat(parts)
    return down if torch.equal(widened(down, groups), wide) else None


def misread(base: nn.Module, dora: bool) -> Mapping[str, str]:
    """Return the layers, by name, on which PEFT (0.21) computes a different update than adaptkit, with the reason.

    PEFT's A has the layer's kernel, stride and padding, but neither its dilation nor its padding mode
    (huggingface/peft#3697).
    """
    read_directly = {
        id(layer)
        for encoder in base.modules()
        if isinstance(encoder, nn.TransformerEncoderLayer)
        for layer in (encoder.linear1, encoder.linear2)
    }
    reasons = {
        name: "torch reads its weight without calling PEFT's layer"
        if id(layer) in read_directly
        else _reason(layer, dora)
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(layer: nn.Linear | nn.Conv2d, dora: bool) -> str:
    if isinstance(layer, nn.Linear):
        return ""
    if type(layer) is not nn.Conv2d:
        return f"a {type(layer).__name__}"
    if any(step > 1 and size > 1 for step, size in zip(layer.dilation, layer.kernel_size, strict=True)):
        return "dilated"
    if layer.padding_mode != "zeros" and any(layer._reversed_padding_repeated_twice):
        return f"padding mode {layer.padding_mode}"
    return "grouped, with DoRA" if dora and layer.groups > 1 else ""


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

#: fields of PEFT's configuration without effect on a trained adapter, or already contained in its tensors
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
#: initialisations of A and B that do not change the base
DRAWS = (True, False, "gaussian", "orthogonal", "eva")
#: attributes in which PEFT stores a module to save and the original module
WRAPPERS = ("modules_to_save", "original_module")
FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<part>A\.weight|B\.weight|magnitude_vector(\.weight)?)")


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT adapter in adaptkit's terms: options of LoRA, tensors, and the modules that are saved as a whole.

    `options` lacks `train_head`, which depends on the base. `doubled` are layers that are saved both as a whole and by
    their factors, since PEFT computes the factors differently.
    """

    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    modules_to_save: tuple[str, ...]
    doubled: tuple[str, ...] = ()

    def differs(self, base: nn.Module) -> Mapping[str, str]:
        """Return the layers of the base on which PEFT (0.21) gives other outputs for this adapter, with the reason."""
        reasons = misread(base, bool(self.options["dora"]))
        return {
            name: reason
            for name, reason in reasons.items()
            if f"{name}.lora_A.weight" in self.tensors and name not in self.doubled
        }


def adapter_of(folder: Path) -> PeftAdapter:
    """Read a folder that PEFT's `save_pretrained` wrote, without unpickling.

    Raises BadInput for damaged files, and for adapters that adaptkit's LoRA cannot represent.
    """
    config = _config(folder)
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise BadInput(
            f"{folder / 'adapter_model.bin'} is a pickle, which adaptkit does not read; save it as {WEIGHTS} with PEFT"
        )
    stored = read_weights(folder / WEIGHTS)
    if odd := [key for key in stored if not key.startswith(PREFIX) or key == PREFIX]:
        raise BadInput(f"{folder / WEIGHTS} is not a file of PEFT: it has {', '.join(sorted(odd)[:3])}")
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    others: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in stored.items():
        value = value.float() if value.is_floating_point() else value
        name = key.removeprefix(PREFIX)
        if match := FACTOR.fullmatch(name):
            layers[match["layer"]][match["part"].partition(".")[0]] = value
        else:
            module, _, leaf = name.rpartition(".")
            others[module][leaf] = value
    if foreign := [
        f"{module}.{leaf}" for module, leaves in others.items() for leaf in leaves if "lora_" in f"{module}{leaf}"
    ]:
        raise BadInput(f"{folder / WEIGHTS}: these tensors do not belong to adaptkit's LoRA: {', '.join(foreign[:3])}")
    if not layers:
        raise BadInput(f"{folder / WEIGHTS} has no LoRA update")
    factors: dict[str, Factors] = {}
    problems: list[str] = []
    for name, parts in layers.items():
        try:
            factors[name] = _read_factors(name, parts, config)
        except ValueError as error:
            problems.append(f"{folder}: {name} {error}")
    if problems:
        raise BadInput(*problems)
    rank, alpha = _common_size(folder, factors, config)
    tensors = {key: value for read in factors.values() for key, value in read.tensors.items()}
    saved = []
    for module, leaves in others.items():
        owner, _, part = module.rpartition(".")
        if part in WRAPPERS and owner in others:
            continue  # with `bias="all"` PEFT also writes the biases of a module to save under these names
        if module in layers and "weight" in leaves:
            continue  # a layer that is also saved as a whole, for PEFT
        place = f"{module}.base_layer" if module in layers else module
        tensors |= {f"{place}.{leaf}".strip("."): value for leaf, value in leaves.items()}
        saved += [module] if [*leaves] != ["bias"] else []
    options = {
        "rank": rank,
        "alpha": float(alpha),
        "dropout": float(config["lora_dropout"]),
        "targets": ",".join(exactly(name) for name in layers),
        "rslora": config["use_rslora"],
        "dora": config["use_dora"],
        "bias": config["bias"],
    }
    doubled = tuple(name for name in layers if "weight" in others[name])
    return PeftAdapter(options=options, tensors=tensors, modules_to_save=tuple(saved), doubled=doubled)


def exactly(name: str) -> str:
    """Return a pattern for `targets` that matches exactly this name, even if it is a word such as `all` or a type."""
    escaped = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in name)
    is_word = name in ("all", "auto", "conv", "linear") or (name[0].isupper() and name.isidentifier())
    return f"[{name[0]}]{name[1:]}" if is_word else escaped


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    card = read_card(path, {"peft_type": str})
    if card["peft_type"] != "LORA":
        raise BadInput(f"{path}: peft_type {card['peft_type']} cannot be imported; only LORA is supported")
    config = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False}
    config |= {"rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True}
    config |= {key: value for key, value in card.items() if value is not None or key not in config}
    problems = [f"{path}: {line}" for line in _faults(config)]
    if problems:
        raise BadInput(*problems)
    return config


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the invalid and unknown fields of a configuration."""
    checks = {
        "r": _is_number(config["r"], int) and config["r"] >= 1,
        "lora_alpha": _is_number(config["lora_alpha"], int | float) and 0 < config["lora_alpha"] < math.inf,
        "lora_dropout": _is_number(config["lora_dropout"], int | float) and 0 <= config["lora_dropout"] < 1,
        "bias": config["bias"] in ("none", "lora_only", "all"),
        "use_rslora": isinstance(config["use_rslora"], bool),
        "use_dora": isinstance(config["use_dora"], bool),
        "rank_pattern": _is_pattern(config["rank_pattern"]),
        "alpha_pattern": _is_pattern(config["alpha_pattern"]),
    }
    yield from (f"{key} cannot be {config[key]!r}" for key, valid in checks.items() if not valid)
    if config["init_lora_weights"] not in DRAWS:
        yield f"init_lora_weights={config['init_lora_weights']} changes the base; convert the adapter to LoRA with PEFT"
    unknown = sorted(key for key, value in config.items() if value and key not in SILENT | READ)
    yield from (f"{key} is not supported by adaptkit's lora" for key in unknown)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, dict) or not all(_is_number(number, int | float) for number in value.values()):
        return False
    try:
        return all(re.compile(key) is not None for key in value)
    except re.error:
        return False


@dataclass(frozen=True)
class Factors:
    """The update of one layer in a file of PEFT: tensors by adaptkit's names, groups, rank and alpha."""

    tensors: Mapping[str, Tensor]
    groups: int
    rank: int
    alpha: float

    def fit(self, rank: int, alpha: float, config: Mapping[str, Any]) -> bool:
        """Return whether adaptkit's LoRA of this rank and alpha has an update of this size and scaling."""
        same = math.isclose(_scaling(self.alpha, self.rank, config), _scaling(alpha, rank, config), rel_tol=1e-9)
        return same and self.rank == -(-rank // self.groups) * self.groups


def _common_size(folder: Path, factors: Mapping[str, Factors], config: Mapping[str, Any]) -> tuple[int, float]:
    """Return the rank and alpha of all layers: those of the configuration, or of its patterns."""
    sizes = [(config["r"], config["lora_alpha"]), *((read.rank, read.alpha) for read in factors.values())]
    fitting = [size for size in sizes if all(read.fit(*size, config) for read in factors.values())]
    if not fitting:
        raise BadInput(
            *(
                f"{folder}: {name} has another rank or alpha than other layers; "
                "adaptkit's lora uses the same for all layers"
                for name, read in factors.items()
                if not read.fit(*sizes[0], config)
            )
        )
    return fitting[0]


def _read_factors(name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> Factors:
    """Read the update of one layer.

    Raises ValueError; the caller puts the name of the layer before its message.
    """
    expected = {"A", "B"} | ({"magnitude_vector"} if config["use_dora"] else set())
    if set(parts) != expected:
        raise ValueError(f"has {', '.join(sorted(parts))} instead of {', '.join(sorted(expected))}")
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
    if groups > 1:
        narrow = narrowed(down, groups)
        if narrow is None:
            raise ValueError("is a grouped convolution whose update mixes the groups; it cannot be merged")
        down = narrow
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    if config["use_dora"]:
        tensors[f"{name}.lora_magnitude_vector.weight"] = parts["magnitude_vector"]
    return Factors(tensors, groups=groups, rank=inner, alpha=alpha)


def _of(name: str, pattern: Mapping[str, Any], otherwise: Any) -> Any:
    """Return the value of the first pattern that matches a name, as PEFT does."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)


def _scaling(alpha: float, rank: int, config: Mapping[str, Any]) -> float:
    return alpha / (math.sqrt(rank) if config["use_rslora"] else rank)


#: the version of PEFT whose format is written
PEFT_VERSION = "0.21.2"
#: target in PEFT's configuration if it wraps no layer
NO_TARGETS = "dummy-target-modules"
DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector.weight"


def peft_folder(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], targets: Sequence[str], base: nn.Module | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the configuration that PEFT's two files contain.

    `tensors` and `options` are those of a LoRA adapter, and `targets` the names of its layers. With the plain model
    `base`, layers that PEFT computes differently are also saved as a whole, in `modules_to_save`; PEFT then ignores
    their factors. Raises BadInput for an adapter that the format cannot represent.
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
    # PEFT also saves every module whose name ends like one of these.
    also = [name for name in modules if name not in whole and name.endswith(tuple(whole))] if whole else []
    adapted = [name for name in updates if name not in whole and name not in also]
    if lost := [name for name in adapted if any(re.match(rf"(^|.*\.){saved}($|\..*)", name) for saved in whole)]:
        raise BadInput(f"PEFT would leave out {', '.join(lost)}: modules_to_save would match these names too")
    written: dict[str, Tensor] = {}
    for name in [*whole, *also]:
        state = _whole(name, whole.get(name, {}), update=updates.get(name), tensors=tensors, modules=modules)
        written |= {f"{PREFIX}{name}.{leaf}": value for leaf, value in state.items()}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, update in updates.items():
        written |= _written_factors(name, update)
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
        "target_modules": _target_modules(adapted, modules),
        "modules_to_save": list(whole) or None,
        "rank_pattern": ranks,
        "alpha_pattern": {key: _number(alpha) for key, alpha in alphas.items()},
    }
    return {key: written[key].detach().cpu().clone().contiguous() for key in sorted(written)}, config


def written_whole(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], base: nn.Module | None
) -> Mapping[str, str]:
    """Return the adapted layers that are saved as a whole because PEFT computes them differently, with the reason."""
    reasons = misread(base, bool(options["dora"])) if base is not None else {}
    return {name: reason for name, reason in reasons.items() if name + DOWN in tensors}


def _updates(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Update]:
    rank = options["rank"]
    scaling = options["alpha"] / (math.sqrt(rank) if options["rslora"] else rank)
    return {
        name: Update(down=tensors[key], up=tensors[name + UP], scaling=scaling, magnitude=tensors.get(name + MAGNITUDE))
        for key in tensors
        if key.endswith(DOWN) and (name := key.removesuffix(DOWN)) + UP in tensors
    }


def _others(
    tensors: Mapping[str, Tensor], updates: Mapping[str, Update]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return the other tensors of an adapter: those of modules trained as a whole, and the keys of biases."""
    factors = {name + end for name in updates for end in (DOWN, UP, MAGNITUDE)}
    others: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key in tensors:
        if key not in factors:
            module, _, leaf = key.rpartition(".")
            others[module][leaf] = tensors[key]
    biases = [
        f"{module}.{leaf}".strip(".") for module, leaves in others.items() for leaf in leaves if [*leaves] == ["bias"]
    ]
    whole = {module: leaves for module, leaves in others.items() if [*leaves] != ["bias"]}
    if odd := [name for name in whole if not name or name.endswith(".base_layer")]:
        names = [f"{name}.{leaf}".strip(".") for name in odd for leaf in whole[name]]
        raise BadInput(f"PEFT's format for LoRA cannot store {', '.join(names)}")
    return whole, biases


def _whole(
    name: str,
    trained: Mapping[str, Tensor],
    *,
    update: Update | None,
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
) -> Mapping[str, Tensor]:
    """Return the complete state of a module: its trained tensors, and the base's for the rest."""
    if name not in modules:
        if "weight" not in trained:
            raise BadInput(f"PEFT saves {name} as a whole, but its weights belong to the base, which was not passed")
        return trained
    if any(modules[name].children()):
        raise BadInput(f"PEFT would also save {name}, since its name ends like that of a module to save")
    state = dict(modules[name].state_dict()) | dict(trained)
    if update is not None:
        state["weight"] = update.merged(state["weight"].to(update.up))
        if f"{name}.base_layer.bias" in tensors:
            state["bias"] = tensors[f"{name}.base_layer.bias"]
    return state


def _written_factors(name: str, update: Update) -> dict[str, Tensor]:
    down = widened(update.down, update.groups) if update.groups > 1 else update.down
    factors = {f"{PREFIX}{name}{DOWN}": down, f"{PREFIX}{name}{UP}": update.up}
    if update.magnitude is not None:
        factors[f"{PREFIX}{name}{MAGNITUDE}".removesuffix(".weight")] = update.magnitude
    return factors


def _check_places(base: nn.Module, names: Iterable[str]) -> None:
    places: dict[int, list[str]] = defaultdict(list)
    for name, module in base.named_modules(remove_duplicate=False):
        places[id(module)].append(name)
    for shared in places.values():
        if len(shared) > 1 and not set(shared).isdisjoint(names):
            raise BadInput(f"PEFT cannot adapt a layer that the model holds in two places: {', '.join(shared)}")


def _target_modules(names: Sequence[str], modules: Iterable[str]) -> list[str] | str:
    """Return the names of target layers, or a pattern if PEFT would also match longer names with the same end."""
    if not names:
        return NO_TARGETS
    ends = tuple(f".{name}" for name in names)
    all_names = list(modules)
    if all_names and not any(name.endswith(ends) and name not in names for name in all_names):
        return sorted(names)
    return "|".join(re.escape(name) for name in names)


def _number(value: float) -> float:
    """Return a whole number as int, as PEFT writes it."""
    return int(value) if float(value).is_integer() else float(value)
