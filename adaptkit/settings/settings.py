"""Settings of a run: names, defaults and bounds. The keys are those of `--set` and of MLflow params."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WrapValidator

from adaptkit.errors import BadInput, nonempty
from adaptkit.settings.severities import Severities

DEFAULT_LR = 1e-3
DEFAULT_EXPERIMENT = "adaptkit"
DEFAULT_SHIFT = "rotate=45,noise=0.3"
#: default minimum number of images per class in each part
EACH = 10
#: settings of a plain training: a constant learning rate, and images as they are
PLAIN_RECIPE = {
    "schedule": "constant",
    "clip": None,
    "min_steps": None,
    "base.schedule": "constant",
    "base.clip": None,
    "base.min_steps": None,
    "base.standardize": False,
}
AUTO = "auto"
#: largest number of seeds
MOST_SEEDS = 10_000

Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def parse_seeds(value: object) -> object:
    """Parse `3`, `0-4`, `0,2,5-7` or a list of numbers as a list of seeds."""
    if isinstance(value, int):
        return [value]
    if not isinstance(value, str):
        return value
    seeds: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_whole(first) or (dash and not _is_whole(last)):
            raise ValueError(f"must be a seed, a range or a list such as 3, 0-4 or 0,2,5, not {value!r}")
        low, high = int(first), int(last or first)
        if low > high:
            raise ValueError(f"the range {part.strip()} runs backwards; write {high}-{low}")
        if high - low >= MOST_SEEDS:
            raise ValueError(f"the range {part.strip()} holds more than {MOST_SEEDS} seeds")
        seeds.extend(range(low, high + 1))
        if len(seeds) > MOST_SEEDS:
            raise ValueError(f"must be at most {MOST_SEEDS} seeds")
    return seeds


def _is_whole(text: str) -> bool:
    # isdigit() also accepts digits that int() does not, such as superscripts.
    return text.isascii() and text.isdigit() and len(text) <= 20


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _metrics(value: object) -> object:
    if isinstance(value, str) and "" in [name.strip() for name in value.split(",")]:
        raise ValueError(f"{value!r} has an empty name between its commas")
    return () if value in ("none", None) else _names(value)


def _optional(value: object) -> object:
    return None if nonempty(value) == "none" else value


def _auto(value: object, check: Callable[[object], object]) -> object:
    return value if value == AUTO else check(value)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{min(repeated)} appears twice")
    return values


def _distinct_or_none(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    return None if values is None else _distinct(values)


def parse_classes(value: object) -> object:
    """Parse `cat,dog` as a list of names; a name with a comma is written in double quotes. Numbers become text."""
    value = _optional(value)
    if isinstance(value, str):
        try:
            (value,) = csv.reader([value], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError) as error:
            raise ValueError(f"must be names of classes such as cat,dog ({error})") from None
        value = [name.strip() for name in value]
    if isinstance(value, list | tuple):
        value = [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in value]
        if len(value) < 2:
            raise ValueError("name at least two classes, as in cat,dog")
        return [nonempty(name) for name in value]
    return value


def written_classes(names: Sequence[str]) -> str:
    """Return names of classes as text that `parse_classes` reads."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()


def parse_folds(value: object) -> object:
    """Parse a number of folds, at least 2, or `by:COLUMN`."""
    value = _optional(value)
    if isinstance(value, str) and not value.startswith("by:"):
        if not _is_whole(value):
            raise ValueError(f"must be a number of folds such as 5, or by:COLUMN, not {value!r}")
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value < 2:
        raise ValueError(f"must be at least 2, not {value}")
    if value == "by:":
        raise ValueError("write the name of a column after by:")
    return value


#: how the learning rate changes over the steps of a training
Schedule = Literal["cosine", "constant"]
Clip = Annotated[Rate | None, BeforeValidator(_optional)]
Limit = Annotated[Count | None, BeforeValidator(_optional)]


class SettingsGroup(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseSettings(SettingsGroup):
    """Training of the base on the source."""

    epochs: Count = Field(
        6, description="training epochs of the base; more if `base.min_steps` needs them, unless it is set"
    )
    min_steps: Limit = Field(
        200, description="smallest number of optimizer steps of the base, for which few images train longer; none: any"
    )
    lr: Annotated[Rate | None, BeforeValidator(_optional)] = Field(
        None,
        description="learning rate of the base (Adam); none: 1e-3, 1e-4 for all layers of pretrained weights, or 1e-2 "
        "for a head on frozen ones",
    )
    batch_size: Count = Field(64, description="batch size of the base")
    schedule: Schedule = Field("cosine", description="learning rate of the base over its steps: cosine or constant")
    clip: Clip = Field(1.0, description="largest norm of the gradient in the training of the base; none: no limit")
    standardize: bool = Field(
        True,
        description="subtract the mean of the source images and divide by their standard deviation, for each channel; "
        "not for pretrained weights, which have their own",
    )
    augment: Annotated[str | None, BeforeValidator(_optional)] = Field(
        None, description="random shifts of the source images in the training of the base, as in d4"
    )
    mode: Literal["train", "probe"] = Field(
        "train", description="train: all layers; probe: the head only, on frozen pretrained weights"
    )
    seed: Seed = Field(0, description="seed of the base: its initial weights and the order of training")


class SplitSettings(SettingsGroup):
    """Division of the images into source, target pool and test sets."""

    seed: Seed = Field(0, description="seed of the division, and of the shift of test images")
    source: Limit = Field(None, description="largest number of source images; none: 2500, or 10 for each class")
    pool: Limit = Field(
        None, description="largest number of target images to draw from; none: 1000, or 10 for each class"
    )
    test: Limit = Field(None, description="largest number of test images; none: 1500, or 10 for each class")
    sampling: Literal["stratified", "proportional", "random"] = Field(
        "stratified",
        description="how draws take shots x classes images: stratified (shots of each class), proportional (each class "
        "as often as in the target) or random (parts of the data set are random too)",
    )
    file: Annotated[Path | None, BeforeValidator(_optional)] = Field(
        None, description="split.json of an earlier run, to use the same images"
    )
    group: Annotated[str | None, BeforeValidator(_optional)] = Field(
        None, description="column of the data set whose values are groups, which stay together; none: its group column"
    )

    def unlimited(self, explicit: Iterable[str]) -> SplitSettings:
        """Return the settings without the limits of pool and test set that the user has not set."""
        return self.model_copy(update={part: None for part in ("pool", "test") if f"split.{part}" not in explicit})

    def limited(self, classes: int, parts: Collection[str] = ("source", "pool", "test")) -> SplitSettings:
        """Return the settings with the default number for each limit of these parts that is none."""
        limits = {
            part: getattr(self, part) or max(limit, EACH * classes)
            for part, limit in (("source", 2500), ("pool", 1000), ("test", 1500))
            if part in parts
        }
        return self.model_copy(update=limits)


def _several(trials: int) -> int:
    if trials == 1:
        raise ValueError("must be 0 (no tuning) or at least 2, not 1")
    return trials


def _ranges(value: object) -> object:
    return [part.strip() for part in value.split(";") if part.strip()] if isinstance(value, str) else value


def _expression(value: object) -> object:
    if isinstance(value := _optional(value), str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
    return value


class TuningSettings(SettingsGroup):
    """Tuning inside each fit, or the labels on which an earlier tuning chose the values."""

    trials: Annotated[int, AfterValidator(_several)] = Field(
        0, ge=0, le=1000, description="configurations that each fit tries on its own training images; 0: no tuning"
    )
    space: Annotated[tuple[str, ...], BeforeValidator(_ranges)] = Field(
        (), description="ranges to search, separated by semicolons, as in lr=1e-4..1e-1/log; lora.rank=2,4,8"
    )
    on: Annotated[Literal["evaluated", "other"] | None, BeforeValidator(_optional)] = Field(
        None, description="written by --from-tune: whether that tuning saw the labels that are evaluated"
    )


Column = Annotated[str, Field(min_length=1)]


class TableSettings(SettingsGroup):
    """Names of the columns of `table:FILE`."""

    image: Column = Field(AUTO, description="column of the image files in table:FILE; auto: by its name")
    label: Column = Field(AUTO, description="column of the labels; auto: by its name")
    split: Column = Field(AUTO, description="column with train, val and test; auto: by its name; none: no such column")
    group: Column = Field(AUTO, description="column of groups that stay together; auto: by its name; none")
    domain: Column = Field(AUTO, description="column of domains, such as sites; auto: by its name; none")
    id: Column = Field(AUTO, description="column of ids; auto: by its name; none: the paths")

    @property
    def chosen(self) -> dict[str, str]:
        """Return the columns that the user chose, by their meaning."""
        return {meaning: column for meaning, column in self.model_dump().items() if column != AUTO}


class FolderSettings(SettingsGroup):
    """How to read `folder:PATH`."""

    group: Annotated[str | None, BeforeValidator(_expression)] = Field(
        None, description="regular expression: the group of an image in its file name, as in ^[^_]+"
    )

    @property
    def chosen(self) -> dict[str, str]:
        """Return the settings that the user chose."""
        return {} if self.group is None else {"group": self.group}


class Settings(SettingsGroup):
    """All settings of `adaptkit run`, except options of strategies and amounts of shifts."""

    preset: str = Field("default", description="settings to start from: quick, default or notebook")
    strategy: Annotated[tuple[str, ...], BeforeValidator(_names), AfterValidator(_distinct)] = Field(
        (), description="strategies to compare"
    )
    dataset: Annotated[str | None, BeforeValidator(_optional)] = Field(
        "mnist5k", description="source data set; none: pretrained weights with a new head"
    )
    target: Annotated[str | None, BeforeValidator(_optional)] = Field(
        None, description="target data set; none: the source images under the shift"
    )
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(parse_classes), AfterValidator(_distinct_or_none)] = (
        Field(None, description="classes of source and target to use, in this order; none: all")
    )
    shift: str | None = Field(
        None, description=f"shift from source to target images; none, or {DEFAULT_SHIFT} without a target"
    )
    metric: Annotated[tuple[str, ...], BeforeValidator(_metrics), AfterValidator(_distinct)] = Field(
        (),
        description="metrics of the comparison; the first decides. None: accuracy, or balanced_accuracy for classes "
        "of very unequal size",
    )
    severity: Severities = Field((), description="multiples of the shift for tests of final models, as in 0.5,1,2")
    backbone: str = Field("small_cnn", description="architecture")
    image_size: Annotated[int | None, BeforeValidator(_optional)] = Field(
        None, ge=1, le=4096, description="side of the images in pixels; none: that of the data set or the backbone"
    )
    skip_bad_images: bool = Field(False, description="leave out files that are not pictures, instead of stopping")
    seed: Annotated[tuple[Seed, ...], BeforeValidator(parse_seeds), AfterValidator(_distinct)] = Field(
        (0,), min_length=1, description="seeds: every strategy runs once with each seed"
    )
    protocol: Annotated[Literal["folds", "given", "draws", "overlapping"] | None, BeforeValidator(_optional)] = Field(
        None,
        description="how labels are used: folds (cross-validation), given (the target's own test part) or draws "
        "(few-shot draws from a pool); none: chosen by the data",
    )
    folds: Annotated[int | str | None, BeforeValidator(parse_folds)] = Field(
        None, description="number of folds, or by:COLUMN to hold out one value of a column at a time; none: 5"
    )
    keep_folds: bool = Field(False, description="keep the adapters of all folds also if they take more than 50 MB")
    shots: Limit = Field(
        20, description="labelled target images for each class and training; limits folds and given only if it is set"
    )
    epochs: Count = Field(10, description="epochs of adaptation; more if `min_steps` needs them, unless it is set")
    min_steps: Limit = Field(
        100, description="smallest number of optimizer steps, for which few images train for more epochs; none: any"
    )
    lr: Annotated[Rate | None, BeforeValidator(_optional), WrapValidator(_auto)] = Field(
        None,
        description="learning rate of adaptation; none: the strategy's own; auto: each fit chooses one of five on its "
        "own training images",
    )
    batch_size: Count = Field(32, description="batch size of adaptation")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="optimizer of adaptation: adam, adamw or sgd (momentum 0.9)"
    )
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight decay of adaptation")
    schedule: Schedule = Field(
        "cosine",
        description="learning rate over the steps: cosine (warm-up in the first tenth, then a cosine to 0) or constant",
    )
    clip: Clip = Field(1.0, description="largest norm of the gradient; larger ones are scaled down to it; none: any")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weights of the classes in the loss of adaptation: none, or balanced (all count equally)"
    )
    augment: Annotated[str | None, BeforeValidator(_optional)] = Field(
        None, description="random shifts of training images only, as in flip=0.5,crop=0.7 or d4"
    )
    bn: Literal["freeze", "adapt"] = Field(
        "freeze", description="statistics of frozen BatchNorm layers: freeze, or adapt to the target"
    )
    evaluate_shifted: Literal["epoch", "end"] = Field(
        "epoch", description="when the target accuracy is measured: each epoch, or at the end"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="device: auto, cpu, cuda or mps")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32", description="number format: fp32, bf16 (autocast) or auto (bf16 if the device supports it)"
    )
    checkpointing: bool = Field(
        False, description="recompute activations of blocks instead of storing them: slower training, less memory"
    )
    data_dir: Annotated[Path, BeforeValidator(nonempty)] = Field(
        Path("data"), description="folder of data sets and downloads"
    )
    experiment: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="MLflow experiment; without one, that of MLflow's environment variables, or adaptkit"
    )
    base: BaseSettings = Field(default_factory=BaseSettings)  # type: ignore[arg-type]
    split: SplitSettings = Field(default_factory=SplitSettings)  # type: ignore[arg-type]
    table: TableSettings = Field(default_factory=TableSettings)  # type: ignore[arg-type]
    tuning: TuningSettings = Field(default_factory=TuningSettings)  # type: ignore[arg-type]
    folder: FolderSettings = Field(default_factory=FolderSettings)  # type: ignore[arg-type]

    @property
    def searches_lr(self) -> bool:
        """Return whether each fit chooses its learning rate, in which case `lr` is "auto"."""
        return str(self.lr) == AUTO


def setting_keys() -> dict[str, str]:
    """Return the description of each setting by dotted key."""
    keys: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, SettingsGroup):
            keys |= {f"{name}.{key}": sub.description or "" for key, sub in inner.model_fields.items()}
        else:
            keys[name] = field.description or ""
    return keys


def setting_defaults() -> dict[str, str]:
    """Return the default of each setting as text, by dotted key; settings without a default are left out."""
    shown = {}
    for key, value in flatten(Settings.model_validate({}).model_dump()):
        if value not in (None, ()):
            shown[key] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return shown


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of a nested mapping by dotted key; a mapping of shifts becomes text."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if name in ("shift", "augment", "base.augment") and isinstance(value, Mapping):
            yield name, ",".join(f"{shift}={amount}" for shift, amount in value.items())
        elif isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def flat_settings(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted key; raise BadInput for a key that appears in two forms."""
    flat: dict[str, Any] = {}
    for key, value in flatten(mapping):
        if key in flat:
            raise BadInput(f"{key} appears twice: with a dot, and nested below its group")
        flat[key] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested dictionaries."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return nested
