"""Convert fields of PEFT's configuration classes to options, if they apply to image models."""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from typing import Any

from adaptkit_peft.catalogue import Option
from adaptkit_peft.methods import FITTED

KINDS = {bool: "bool", int: "int", float: "float", str: "str", type(None): "none"}

#: fields that adaptkit sets, or that concern language models, quantised weights, or PEFT's own files
LEFT_OUT = re.compile(
    r"""
    task_type | peft_type | peft_version | auto_mapping | base_model_name_or_path | revision | inference_mode
    | .*_modules | modules_to_save | target_parameters | layers_.* | layer_.* | .*_pattern | megatron_.* | .*_config
    | fan_in_fan_out | save_.* | progressbar | runtime_.* | trainable_token_indices | alora_.* | .*qalora.*
    | ensure_weight_tying | use_bdlora | init_ia3_weights
    """,
    re.VERBOSE,
)
#: type -> fields that are left out: schedules that need the number of steps, and fields that PEFT ignores
LEFT_OUT_OF = {
    "ADALORA": re.compile(
        r"r|target_r|t_?init|t_?final|deltaT|beta1|beta2|orth_reg_weight|total_step|use_dora|.*rslora|init_.*weights|lora_bias"
    ),
    "ADAMSS": re.compile(r"use_asa|asa_.*|init_warmup|final_warmup|mask_interval"),
}
#: initialisations that need data or objects
LEFT_OUT_CHOICES = {"eva", "corda", "loftq", "lora_ga"}

#: maximum length of a help text, in characters
LONGEST = 160


def options_of(peft_type: str, config: type[Any]) -> tuple[Option, ...]:
    """Return the options of a PEFT type with this configuration class."""
    hints = typing.get_type_hints(config)
    options = [
        option
        for field in dataclasses.fields(config)
        if field.init and not _is_left_out(peft_type, field.name)
        for option in [_option(peft_type, field, hints[field.name])]
        if option is not None
    ]
    return tuple(options)


def _is_left_out(peft_type: str, name: str) -> bool:
    pattern = LEFT_OUT_OF.get(peft_type)
    return bool(LEFT_OUT.fullmatch(name) or (pattern and pattern.fullmatch(name)))


def _option(peft_type: str, field: dataclasses.Field[Any], hint: Any) -> Option | None:
    """Return the option for a field, or None if its type is not simple or if it only disables the initialisation."""
    members = _members(hint)
    choices = tuple(member for member in members if isinstance(member, str) and _is_choice(member))
    simple = [member for member in members if not isinstance(member, str)]
    if any(member not in KINDS for member in simple):
        return None
    kinds = tuple(KINDS[member] for member in simple if not (choices and member is str))
    if field.name.startswith("init_") and "bool" in kinds and not choices:
        return None
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(default, enum.Enum):
        default = default.value
    text = _first_sentence(field.metadata.get("help") or field.name.replace("_", " "))
    if field.name == "bias" and not choices:
        kinds, choices, text = (), ("none", "all"), "biases to train as well: none or all"
    fitted = FITTED.get(peft_type)
    if fitted and field.name == fitted.option:
        text = f"{text}; default: the largest value up to {default} that fits all layers"
        kinds, default = (*kinds, "none"), None
    return Option(name=field.name, kinds=kinds, choices=choices, default=default, help=text)


def _members(hint: Any) -> list[Any]:
    """Return the types of a union, or the words of a literal or string enumeration."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _members(part)]
    if origin is typing.Literal:
        return list(typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum) and issubclass(hint, str):
        return [member.value for member in hint]
    return [hint]


def _is_choice(word: str) -> bool:
    return word not in LEFT_OUT_CHOICES and "[" not in word


def _first_sentence(text: Any) -> str:
    """Return the first sentence of a help text, which can be a string or a list of strings."""
    pieces = [text] if isinstance(text, str) else list(text)
    line = " ".join(" ".join(pieces).split())
    line = re.split(r"(?<=[a-z0-9)'`])[.!] (?=[A-Z])", line)[0].rstrip(". ")
    return line if len(line) <= LONGEST else line[: line.rindex(" ", 0, LONGEST)] + " ..."
