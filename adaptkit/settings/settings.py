"""The settings of a run: names, defaults and bounds. A key here, a `--set` key and an MLflow param have one name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from adaptkit.errors import BadInput, nonempty
from adaptkit.settings.severities import Severities

DEFAULT_LR = 1e-3
DEFAULT_EXPERIMENT = "adaptkit"
DEFAULT_SHIFT = "rotate=45,noise=0.3"
#: images of each class that a part may have in any case, where nobody said how many it may have at most
EACH = 10
#: more seeds than anybody waits for
MOST_SEEDS = 10_000

Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def parse_seeds(value: object) -> object:
    """Read `3`, `0-4`, `0,2,5-7` or a list of numbers as a list of seeds."""
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
    # isdigit() alone takes signs for digits that int() does not, such as those of powers.
    return text.isascii() and text.isdigit() and len(text) <= 20


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _optional(value: object) -> object:
    return None if nonempty(value) == "none" else value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{min(repeated)} is named twice")
    return values


Limit = Annotated[Count | None, BeforeValidator(_optional)]


class SettingsGroup(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseSettings(SettingsGroup):
    """How the base is trained on the source."""

    epochs: Count = Field(6, description="epochs of the base on the source")
    lr: Rate = Field(1e-3, description="learning rate of the base (Adam)")
    batch_size: Count = Field(64, description="images a step of the base")
    mode: Literal["train", "probe"] = Field(
        "train", description="train: all of it; probe: its head, on pretrained weights that stay as they are"
    )
    seed: Seed = Field(0, description="initial weights and order of the base")


class SplitSettings(SettingsGroup):
    """Which images are source, target pool and test."""

    seed: Seed = Field(0, description="partition, test sets and the shifted test set's draws")
    source: Limit = Field(None, description="source training images, at most; none: 2500, or 10 a class")
    pool: Limit = Field(None, description="target images that a run draws from, at most; none: 1000, or 10 a class")
    test: Limit = Field(None, description="test images, at most; none: 1500, or 10 a class")
    sampling: Literal["stratified", "random"] = Field(
        "stratified", description="stratified: equal shares of the classes; random: chance"
    )
    file: Annotated[Path | None, BeforeValidator(_optional)] = Field(
        None, description="an earlier run's split.json, whose images are taken again"
    )

    def limited(self, classes: int) -> SplitSettings:
        """Return the settings with a number for each limit that is none, for so many classes."""
        limits = {
            part: getattr(self, part) or max(limit, EACH * classes)
            for part, limit in (("source", 2500), ("pool", 1000), ("test", 1500))
        }
        return self.model_copy(update=limits)


class Settings(SettingsGroup):
    """Every setting of `adaptkit run` but the options of strategies and the amounts of shifts."""

    preset: str = Field("default", description="named settings to start from: quick, default, notebook")
    strategy: Annotated[tuple[str, ...], BeforeValidator(_names), AfterValidator(_distinct)] = Field(
        (), description="strategies to compare"
    )
    dataset: Annotated[str | None, BeforeValidator(_optional)] = Field(
        "mnist5k", description="source data set; none: pretrained weights, whose new head every strategy trains"
    )
    target: Annotated[str | None, BeforeValidator(_optional)] = Field(
        None, description="target data set; none: the source under the shift"
    )
    shift: str | None = Field(
        None, description=f"source into target images; none, or {DEFAULT_SHIFT} if there is no target"
    )
    severity: Severities = Field((), description="multiples of the shift at which final models are tested: 0.5,1,2")
    backbone: str = Field("small_cnn", description="architecture")
    image_size: Annotated[int | None, BeforeValidator(_optional)] = Field(
        None, ge=1, le=4096, description="side of the images in pixels; none: the data set's own, else the backbone's"
    )
    skip_bad_images: bool = Field(False, description="leave out files that are no pictures, instead of stopping")
    seed: Annotated[tuple[Seed, ...], BeforeValidator(parse_seeds), AfterValidator(_distinct)] = Field(
        (0,), min_length=1, description="seeds, a run each"
    )
    shots: Count = Field(50, description="labelled target images a class (at most half of the pool)")
    epochs: Count = Field(10, description="epochs of adaptation")
    lr: Annotated[Rate | None, BeforeValidator(_optional)] = Field(
        None, description="learning rate; none: the strategy's own"
    )
    batch_size: Count = Field(32, description="images a step of adaptation")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="adam, adamw or sgd (momentum 0.9), for adaptation"
    )
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight decay of adaptation")
    augment: Annotated[str | None, BeforeValidator(_optional)] = Field(
        None, description="shifts of training images only, drawn anew each epoch, as in flip=0.5,crop=0.7"
    )
    bn: Literal["freeze", "adapt"] = Field(
        "freeze", description="BatchNorm's statistics in frozen layers: freeze, or adapt them to the target"
    )
    evaluate_shifted: Literal["epoch", "end"] = Field(
        "epoch", description="evaluate on the shifted test set each epoch, or at the end"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto, cpu, cuda or mps")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32", description="fp32, bf16 (autocast), or auto: bf16 where it is native"
    )
    checkpointing: bool = Field(
        False, description="compute blocks' activations twice instead of keeping them: slower training, in less memory"
    )
    data_dir: Annotated[Path, BeforeValidator(nonempty)] = Field(
        Path("data"), description="where data sets are read from and downloaded to"
    )
    experiment: str = Field(DEFAULT_EXPERIMENT, min_length=1, description="MLflow experiment")
    base: BaseSettings = Field(default_factory=BaseSettings)  # type: ignore[arg-type]
    split: SplitSettings = Field(default_factory=SplitSettings)  # type: ignore[arg-type]


def setting_keys() -> dict[str, str]:
    """Return the dotted key of each setting with its description."""
    keys: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, SettingsGroup):
            keys |= {f"{name}.{key}": sub.description or "" for key, sub in inner.model_fields.items()}
        else:
            keys[name] = field.description or ""
    return keys


def setting_defaults() -> dict[str, str]:
    """Return the default of each setting as it is written, by dotted key; settings without one are left out."""
    shown = {}
    for key, value in flatten(Settings.model_validate({}).model_dump()):
        if value not in (None, ()):
            shown[key] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return shown


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of a nested mapping under dotted keys; a mapping of shifts becomes its text."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if name in ("shift", "augment") and isinstance(value, Mapping):
            yield name, ",".join(f"{shift}={amount}" for shift, amount in value.items())
        elif isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def flat_settings(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under dotted keys; raise BadInput for a key that is written in two ways."""
    found: dict[str, Any] = {}
    for key, value in flatten(mapping):
        if key in found:
            raise BadInput(f"{key} is given twice: once with a dot, once as a line of its own below its group")
        found[key] = value
    return found


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
