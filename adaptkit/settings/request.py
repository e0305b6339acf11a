"""A checked experiment: its settings, and the plugins that they name."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adaptkit.contracts import Backbone, Dataset, Reader, Shift, Strategy
from adaptkit.plugins.components import PLAIN, is_fitted, options_of
from adaptkit.plugins.ranges import Dimension, around, five_around
from adaptkit.settings.settings import DEFAULT_LR, PLAIN_RECIPE, Settings, written_classes
from adaptkit.settings.severities import written

#: option of strategies that also train the head
TRAIN_HEAD = "train_head"
#: option of backbones: source of the pretrained weights
WEIGHTS = "weights"
#: groups of settings
GROUPS = ("base", "split", "table", "folder", "image", "tuning")
#: NAME.lr sets the learning rate of one strategy and overrides the setting `lr`, unless the strategy has an option `lr`
LR = "lr"
#: the draws of adaptkit 0.1, whose runs have no param `protocol`
OVERLAPPING = "overlapping"
PROTOCOL = "protocol"
SCHEDULE = "base.schedule"
OF_PROTOCOLS = (PROTOCOL, "folds", "keep_folds")


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded settings of a run, with what they meant to the version of adaptkit that made it.

    Without a protocol, it has the draws of adaptkit 0.1. Without a schedule, its training was plain. An untrained base
    did not have to be asked for.
    """
    values = {PROTOCOL: OVERLAPPING, **config} if config else {}
    if config and SCHEDULE not in config:  # made before there were schedules
        values |= PLAIN_RECIPE
    if config.get("dataset") == "none" and not is_pretrained(str(config.get("backbone")), {}):
        values.setdefault(f"backbone.{WEIGHTS}", "none")
    return values


#: settings that may differ between runs that share base, images and augmented views
OF_A_RUN = {
    "metric",
    "lr",
    "epochs",
    "batch_size",
    "optimizer",
    "weight_decay",
    "schedule",
    "clip",
    "min_steps",
    "class_weights",
    "evaluate_shifted",
    "preset",
    "device",
    "data_dir",
    "tuning.trials",
    "tuning.space",
    "tuning.on",
}


WITHOUT_GRADIENTS = "fits a head without gradient descent, so it has no learning rate"
#: settings of gradient descent, which strategies that fit a head do not use
OF_GRADIENTS = (
    *("epochs", LR, "batch_size", "optimizer", "weight_decay", "schedule", "clip", "min_steps"),
    *("bn", "augment", "checkpointing"),
)


def default_lr(cls: type[Any], kind: str = PLAIN) -> float:
    """Return the default learning rate of a strategy for a kind of backbone."""
    rate = getattr(cls, LR, DEFAULT_LR)
    return float(rate[kind] if isinstance(rate, Mapping) else rate)


@dataclass(frozen=True)
class Arm:
    """A strategy with its options and its learning rate; one run is made for each seed.

    A strategy that fits a head without gradient descent has no learning rate. With `new_head`, the base has no weights
    for the head, so that the head is always trained. With `has_default_lr`,
    the learning rate is the default one, which can depend on the backbone. `searched` holds the
    ranges of the learning rate and of the options that every fit chooses on its own training images.
    """

    strategy: str
    checked: Strategy
    options: Mapping[str, Any]
    lr: float | None
    new_head: bool = False
    has_default_lr: bool = False
    searched: Mapping[str, Dimension] = field(default_factory=dict)

    def create(self) -> Strategy:
        """Return a new instance of the strategy."""
        return copy.deepcopy(self.checked)

    def settled(self, kind: str) -> Arm:
        """Return the arm with its default learning rate for this kind of backbone."""
        assert self.lr is not None
        lr = default_lr(type(self.checked), kind)
        searched = dict(self.searched)
        for default_range in (around, five_around):
            if searched.get(LR) == default_range(self.lr):
                searched[LR] = default_range(lr)
        return dataclasses.replace(self, lr=lr, searched=searched)

    @property
    def rated(self) -> str:
        """Return the label with the learning rate, if there is one."""
        return self.label if self.lr is None else f"{self.label} lr={self.lr:g}"

    @property
    def label(self) -> str:
        """Return the name of the strategy and its options that differ from the defaults."""
        defaults = {name: field.default for name, field in options_of(type(self.checked)).items()}
        if self.new_head and TRAIN_HEAD in defaults:
            defaults[TRAIN_HEAD] = True
        changed = [f"{key}={_plain(value)}" for key, value in self.options.items() if value != defaults[key]]
        return " ".join([self.strategy, *changed])


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of optimizer steps in an epoch; a last batch of one image joins the one before."""
    whole, rest = divmod(images, batch_size)
    return max(1, whole + (rest > 1))


def is_pretrained(backbone: str, options: Mapping[str, Any]) -> bool:
    """Return whether a backbone with these options is pretrained; a Python object is assumed to be."""
    return options.get(WEIGHTS, "none") != "none" or backbone.startswith("python:")


@dataclass(frozen=True)
class Request:
    """A checked experiment: its settings, and the plugins that they name."""

    settings: Settings
    arms: tuple[Arm, ...]
    dataset: Dataset | None
    target: Dataset | None
    backbone: Backbone
    shifts: tuple[Shift, ...]
    amounts: Mapping[str, float]
    augmentations: tuple[Shift, ...] = ()
    augment_amounts: Mapping[str, float] = field(default_factory=dict)
    base_augmentations: tuple[Shift, ...] = ()
    base_augment_amounts: Mapping[str, float] = field(default_factory=dict)
    plugin_files: tuple[str, ...] = ()
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    readers: tuple[Reader, ...] = ()
    #: the options of readers that the user has set, by the name of the reader
    reader_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: the shifts at each severity, a multiple of their amounts
    severities: Mapping[float, tuple[Shift, ...]] = field(default_factory=dict)
    #: keys of the settings that the user has set, in any way but a preset
    explicit: frozenset[str] = frozenset()

    @property
    def shift_text(self) -> str:
        """Return the shift as text, in the form of the command line."""
        return _written(self.amounts)

    @property
    def augment_text(self) -> str:
        """Return the augmentation of the target images as text."""
        return _written(self.augment_amounts)

    @property
    def base_augment_text(self) -> str:
        """Return the augmentation of the source images as text."""
        return _written(self.base_augment_amounts)

    @property
    def architecture(self) -> Backbone:
        """Return the backbone without pretrained weights, for callers that load their own."""
        if WEIGHTS not in self.backbone_options:
            return self.backbone
        return dataclasses.replace(self.backbone, **{WEIGHTS: "none"})  # type: ignore[type-var]

    @property
    def is_pretrained(self) -> bool:
        """Return whether the backbone starts from pretrained weights."""
        return is_pretrained(self.settings.backbone, self.backbone_options)

    @property
    def has_untrained_base(self) -> bool:
        """Return whether nothing has trained the base: there is no source, and there are no pretrained weights."""
        return self.dataset is None and not self.is_pretrained

    def with_settings(self, **values: Any) -> Request:
        """Return the request with other values of these settings, which are not validated again."""
        return dataclasses.replace(self, settings=self.settings.model_copy(update=values))

    def settled(self, *, kind: str, images: int, source_images: int) -> Request:
        """Return the request with the defaults that depend on the kind of backbone and on the numbers of images.

        `images` is the smallest number of training images of a fit. Few images train for more epochs, so that there are
        `min_steps` steps, unless the user has set the epochs.
        """
        settings = self.settings
        base = settings.base
        if base.lr is None:
            base = base.model_copy(update={"lr": self._base_lr})
        if base.min_steps is not None and "base.epochs" not in self.explicit and source_images:
            needed = -(-base.min_steps // steps_per_epoch(source_images, base.batch_size))
            base = base.model_copy(update={"epochs": max(base.epochs, needed)})
        arms = tuple(arm.settled(kind) if arm.has_default_lr else arm for arm in self.arms)
        epochs = settings.epochs
        if settings.min_steps is not None and "epochs" not in self.explicit:
            epochs = max(epochs, -(-settings.min_steps // steps_per_epoch(images, settings.batch_size)))
        return dataclasses.replace(self.with_settings(epochs=epochs, base=base), arms=arms)

    @property
    def _base_lr(self) -> float:
        """Return the default learning rate of the base: a new head learns faster than pretrained layers."""
        if not self.is_pretrained:
            return 1e-3
        return 1e-2 if self.settings.base.mode == "probe" else 1e-4

    def with_arms(self, arms: Iterable[Arm]) -> Request:
        """Return the request with these arms, without duplicates."""
        distinct = {(arm.label, arm.lr): arm for arm in arms}
        return dataclasses.replace(self, arms=tuple(distinct.values()))

    def base_params(self) -> dict[str, Any]:
        """Return the settings of a base run: those of data, model and base."""
        keys = (
            "preset", "dataset", "classes", "backbone", "image_size", "skip_bad_images", "device", "precision",
            "data_dir",
        )  # fmt: skip
        flat = {key: value for key, value in self._flat().items() if not key.startswith("tuning.")}
        return {key: value for key, value in flat.items() if key in keys or "." in key}

    def run_params(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Return all resolved settings of one adaptation run."""
        params = self._flat() | {"strategy": arm.strategy, "seed": seed, "lr": arm.lr, "shift": self.shift_text}
        if is_fitted(arm.checked):
            params = {key: value for key, value in params.items() if key not in OF_GRADIENTS}
            if not arm.searched:
                params["tuning.trials"] = 0
        params |= {f"strategy.{key}": value for key, value in arm.options.items()} | _searched_params([arm])
        return params | {f"shift.{name}": amount for name, amount in self.amounts.items()}

    @property
    def group_name(self) -> str:
        """Return the name of the parent run."""
        seeds = self.settings.seed
        shown = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
        if seeds != tuple(range(seeds[0], seeds[-1] + 1)):
            shown = ",".join(map(str, seeds))
        word = "seed" if len(seeds) == 1 else "seeds"
        return f"{', '.join(arm.label for arm in self.arms)} {word}={shown}"

    def stage_params(self) -> dict[str, Any]:
        """Return the settings that determine data, base and augmented views, which runs can share."""
        flat = self._flat() | {"shift": self.shift_text}
        return {key: value for key, value in flat.items() if key not in OF_A_RUN}

    def shared_params(self) -> dict[str, Any]:
        """Return the settings that all adaptation runs have in common."""
        every = [self.run_params(arm, seed) for arm in self.arms for seed in self.settings.seed]
        return {key: value for key, value in every[0].items() if all(run.get(key) == value for run in every)}

    def config(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return params as settings that repeat the run, in plain types."""
        # `shift` already holds the amounts, in their order.
        plain = {key: _plain(value) for key, value in params.items() if not key.startswith("shift.")}
        if self.has_untrained_base:
            plain.setdefault(f"backbone.{WEIGHTS}", "none")
        return plain | ({"experiment": self.settings.experiment} if self.settings.experiment else {})

    def config_text(self, params: Mapping[str, Any]) -> str:
        """Return params as a config file that repeats the run, with the command as a comment."""
        command = ["adaptkit run --config config.yaml", *(f"--plugin {path}" for path in self.plugin_files)]
        if "strategy" not in params:
            command.append("--refresh-base -s NAME")
        text: str = yaml.safe_dump(self.config(params), sort_keys=True, allow_unicode=True)
        return f"# {' '.join(command)}\n{text}"

    def command_text(self) -> str:
        """Return a config file that repeats all runs: all strategies with options and learning rates, and all seeds."""
        settings = self._flat() | {"shift": self.shift_text, "strategy": [arm.strategy for arm in self.arms]}
        settings["seed"] = list(self.settings.seed)
        for arm in self.arms:
            options = dict(arm.options) if "lr" in arm.options or arm.lr is None else {"lr": arm.lr, **arm.options}
            settings |= {f"{arm.strategy}.{key}": value for key, value in options.items()}
        settings |= _searched_params(self.arms)
        text: str = yaml.safe_dump(self.config(settings), sort_keys=True, allow_unicode=True)
        return text

    def backbone_facts(self, channels: int, size: int) -> dict[str, Any]:
        """Return the params with which the backbone describes itself for images of this size."""
        described = getattr(self.backbone, "described", None)
        facts = described(channels, size) if described is not None else {}
        return {f"backbone.{key}": value for key, value in facts.items()}

    def _flat(self) -> dict[str, Any]:
        params = self.settings.model_dump(exclude={"strategy", "seed", "experiment", "severity", *GROUPS})
        params["augment"] = self.augment_text
        params["metric"] = ",".join(self.settings.metric) or "none"  # chosen when the data are known
        if self.settings.classes is None:  # params of runs without it stay unchanged
            del params["classes"]
        else:
            params["classes"] = written_classes(self.settings.classes)
        if self.severities:  # params of runs without severities stay unchanged
            params["severity"] = ",".join(map(written, self.severities))
        for group in ("base", "split"):
            params |= {f"{group}.{key}": value for key, value in getattr(self.settings, group).model_dump().items()}
        params["base.augment"] = self.base_augment_text
        params["tuning.trials"] = self.settings.tuning.trials
        if self.settings.tuning.on is not None:  # params of runs without it stay unchanged
            params["tuning.on"] = self.settings.tuning.on
        if self.settings.split.group is None:  # params of runs without it stay unchanged
            del params["split.group"]
        if self.settings.protocol == OVERLAPPING:  # a run of adaptkit 0.1, which had no protocols
            params = {key: value for key, value in params.items() if key not in (*OF_PROTOCOLS, "metric")}
        params = {key: "none" if value is None else value for key, value in params.items()}
        params |= {key: str(value) for key, value in params.items() if isinstance(value, Path)}
        for group in ("table", "folder", "image"):  # params of runs without such settings stay unchanged
            params |= {f"{group}.{key}": value for key, value in getattr(self.settings, group).chosen.items()}
        for name, options in self.reader_options.items():
            params |= {f"{name}.{key}": value for key, value in options.items()}
        return params | {f"backbone.{key}": value for key, value in self.backbone_options.items()}


def _searched_params(arms: Iterable[Arm]) -> dict[str, str]:
    """Return the ranges that the fits of these arms search, as a setting."""
    ranges = [f"{arm.strategy}.{key}={one.text}" for arm in arms for key, one in arm.searched.items()]
    return {"tuning.space": "; ".join(ranges)} if ranges else {}


def _written(amounts: Mapping[str, float]) -> str:
    return ",".join(f"{name}={_plain(amount)}" for name, amount in amounts.items()) or "none"


def _plain(value: Any) -> Any:
    """Return the value as YAML and users write it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
