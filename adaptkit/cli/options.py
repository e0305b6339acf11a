"""Bundles of options that several commands share: store, output, training settings and engine."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.errors import BadInput

if TYPE_CHECKING:
    from adaptkit.settings.resolve import Layer

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class NamedPath(click.Path):
    """A path that must not be empty, because an empty path would mean the current folder.

    `empty` is the error message.
    """

    empty = "the path is empty"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail(self.empty, param, ctx)
        return super().convert(value, param, ctx)


class FolderType(NamedPath):
    """The path of a folder."""

    empty = "the path is empty; write . for the current folder"


class ImagePath(NamedPath):
    """The path of an image or of a folder of images."""

    empty = "the path of an image or folder is empty; write . for the current folder"


def bundle(*options: Decorator) -> Decorator:
    """Combine options into one decorator. The help lists them in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


store_option = click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db in this folder]",
)
plugin_option = click.option(
    "--plugin", "plugin", multiple=True, type=click.Path(), metavar="PATH", help="Python file with hooks. Repeatable."
)
report_option = click.option(
    *("--report", "--output", "report"),
    type=FolderType(),
    metavar="DIR",
    help="Write a report of the comparison to this folder.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only the results.")
# The group reads this option from the arguments: no command receives it.
traceback_option = click.option(
    "--traceback", is_flag=True, expose_value=False, help="Print the traceback of an error."
)

#: for commands that print a document
output_options = bundle(json_option, traceback_option)
#: for commands that also report progress
progress_options = bundle(json_option, quiet_option, traceback_option)

feature_cache_option = click.option(
    "--no-feature-cache", is_flag=True, help="Do not reuse cached features of frozen layers."
)
calibrate_option = click.option(
    "--calibrate",
    is_flag=True,
    help="Calibrate the probabilities of the refit with one temperature, fitted on predictions for unseen images.",
)
cache_options = bundle(
    click.option("--refresh-base", is_flag=True, help="Train the base again, even if the cache has it."),
    feature_cache_option,
)

#: for commands that repeat a recorded run
recorded_options = bundle(
    click.option("--data-dir", type=FolderType(), metavar="DIR", help="Folder of data sets.  [default: as in the run]"),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        metavar="auto|cpu|cuda|mps",
        help="Device to compute on.  [default: as in the run]",
    ),
)

strategy_options = bundle(
    click.option(
        "-s",
        "--strategy",
        multiple=True,
        metavar="NAME",
        help="Strategy to run; see `adaptkit strategies`. Repeatable.",
    ),
    click.option(
        "-o",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of a strategy: rank=4 or lora.rank=4. Repeatable.",
    ),
    click.option("--preset", metavar="NAME", help="Settings to start from: quick, default or notebook."),
    click.option("--config", type=NamedPath(), metavar="FILE", help="YAML file of settings."),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. base.epochs=3. Repeatable."
    ),
    click.option(
        "--dataset",
        metavar="NAME",
        help="Source: see `adaptkit datasets`; none for pretrained weights.  [default: mnist5k]",
    ),
    click.option(
        "--target",
        metavar="NAME",
        help="Target, e.g. folder:PATH or table:FILE.  [default: the source under the shift]",
    ),
    click.option(
        "--classes",
        metavar="NAME,...",
        help="Use only these classes of source and target, in this order.  [default: all]",
    ),
    click.option(
        "--shift",
        metavar="NAME=X,...",
        help="Shift from source to target, e.g. rotate=45,noise=0.3; see `adaptkit shifts`.",
    ),
    click.option(
        "--severity", metavar="LIST", help="Multiples of the shift to test final models at, e.g. 0.5,1,1.5,2."
    ),
    click.option("--backbone", metavar="NAME", help="Architecture; see `adaptkit backbones`.  [default: small_cnn]"),
    click.option(
        "--weights",
        metavar="default|none|FILE",
        help="Initial weights of the backbone: published, random, or from a file.",
    ),
    click.option(
        "--image-size",
        metavar="N",
        help="Width and height of images, in pixels.  [default: that of the data or the backbone]",
    ),
    click.option(
        "--augment",
        metavar="NAME=X,...",
        help="Augmentation of training images, e.g. flip=0.5,crop=0.7; see `adaptkit shifts`.",
    ),
    click.option(
        "--bn",
        metavar="freeze|adapt",
        help="Statistics of frozen BatchNorm layers: keep or update them.  [default: freeze]",
    ),
    click.option("--skip-bad-images", is_flag=True, help="Skip files that are not images, instead of stopping."),
)


def metric_option(default: str) -> Decorator:
    """Return the option for metrics; given several times, it means the same as one list."""
    return click.option(
        "--metric",
        metavar="NAME,...",
        multiple=True,
        callback=lambda context, option, names: ",".join(names) if names else None,
        help=f"Metrics to compare by; the first decides. See `adaptkit metrics`.  [default: {default}]",
    )


recipe_options = bundle(
    click.option(
        "--protocol",
        metavar="NAME",
        help="How labels are used: folds, given (the target's own test part) or draws.  [default: chosen by the data]",
    ),
    click.option(
        "--folds",
        metavar="K|by:COLUMN",
        help="Cross-validation with K folds, or with one value of a column held out at a time.  [default: 5]",
    ),
    metric_option("chosen by the data"),
    click.option("--keep-folds", is_flag=True, help="Keep the adapters of all folds, also above 50 MB."),
    click.option("--epochs", metavar="N", help="Epochs of adaptation.  [default: 10, or 100 steps if they take more]"),
    click.option("--lr", metavar="X", help="Learning rate; auto: chosen in each fit.  [default: the strategy's]"),
    click.option("--batch-size", metavar="N", help="Batch size for adaptation.  [default: 32]"),
    click.option(
        "--class-weights",
        metavar="none|balanced",
        help="Weights of the classes in the loss; balanced: all classes count equally.  [default: none]",
    ),
    click.option("--data-dir", metavar="DIR", help="Folder of the data sets.  [default: data]"),
    click.option("--device", metavar="auto|cpu|cuda|mps", help="Device to compute on.  [default: auto]"),
    click.option(
        "--precision",
        metavar="fp32|bf16|auto",
        help="Number format; auto: bf16 if the hardware supports it natively.  [default: fp32]",
    ),
    click.option(
        "--experiment", metavar="NAME", help="MLflow experiment.  [default: $MLFLOW_EXPERIMENT_NAME or adaptkit]"
    ),
)


def training_options(seeds: str = "0") -> Decorator:
    """Return the options of a command that trains strategies; `seeds` is the default that the help shows."""
    return bundle(
        strategy_options,
        click.option("--seeds", "--seed", metavar="LIST", help=f"Seeds to run: 3, 0-4 or 0,2,5.  [default: {seeds}]"),
        recipe_options,
        store_option,
        plugin_option,
        cache_options,
        report_option,
    )


#: for commands that run many trials
engine_options = bundle(
    click.option(
        "--jobs", type=int, metavar="N", help="Number of trials at a time.  [default: the engine's; local: 1]"
    ),
    click.option(
        "--engine",
        default="local",
        metavar="NAME",
        help="Engine that runs the trials; see `adaptkit engines`.  [default: local]",
    ),
    click.option(
        "--engine-option",
        "engine_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the engine. Repeatable.",
    ),
)

#: settings that have an option of the same name
SETTING_OPTIONS = (
    "preset", "dataset", "target", "classes", "shift", "backbone", "weights", "image_size", "augment", "bn",
    "skip_bad_images", "protocol", "folds", "keep_folds", "metric",
    "epochs", "lr", "batch_size", "class_weights", "data_dir", "device", "precision", "experiment", "severity",
)  # fmt: skip


def split_pairs(option: str, pairs: Sequence[str], problems: list[str]) -> dict[str, str]:
    """Return `key=value` arguments as a dictionary, and add a message to `problems` for every other argument."""
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            values[key.strip()] = value.strip()
        else:
            problems.append(f"{option} {pair}: write key=value")
    return values


def collect_layers(values: Mapping[str, Any]) -> tuple[list[Layer], list[str]]:
    """Return the layers of settings in order of precedence, and a message for each problem.

    `values` are the values of `training_options` by parameter name.
    """
    from adaptkit.settings.files import read_config
    from adaptkit.settings.resolve import Layer, option_keys

    problems: list[str] = []
    # Without the option, a config file may still set skip_bad_images.
    values = {**values, "skip_bad_images": values["skip_bad_images"] or None}
    options = {key: values[key] for key in SETTING_OPTIONS if values[key] is not None}
    if values["strategy"]:
        options["strategy"] = [name.strip() for names in values["strategy"] for name in names.split(",")]
    if values["seeds"] is not None:
        options["seed"] = values["seeds"]
    options |= option_keys(split_pairs("-o", values["options"], problems))
    layers = [Layer(options), Layer(split_pairs("--set", values["settings"], problems))]
    config = values["config"]
    if config is not None:
        try:
            layers.append(Layer(read_config(config), config.name))
        except BadInput as error:
            problems.extend(error.problems)
    return layers, problems


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(option: str, text: str) -> float:
    """Return a duration such as `90`, `45s`, `30m`, `2h` or `1h30m` in seconds.

    Raises BadInput, with the name of the option, for other texts.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text:
        raise BadInput(f"{option}: {text!r} is not a duration; write 90s, 30m, 2h or 1h30m")
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise BadInput(f"{option}: must be longer than zero and finite")
    return seconds


def duration(seconds: float) -> str:
    """Return seconds as text: `40 seconds`, `12 minutes`, `1.5 hours`."""
    if seconds < 90:
        whole = round(max(seconds, 1))
        return f"{whole} second{'s' * (whole > 1)}"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


class RunCommand(click.Command):
    """A command whose help ends with every setting of `--set` and `--config`; `seeds` is its default, if not 0."""

    def __init__(self, *arguments: Any, seeds: str = "0", **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.seeds = seeds

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Read the arguments. Suggest `-s` to users who name a strategy without it."""
        try:
            return super().parse_args(context, arguments)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            hint = "name strategies with -s, as in -s lora"
            raise click.UsageError(f"{error.message.rstrip('.')}; {hint}", context) from None

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings with their defaults."""
        from adaptkit.settings.settings import setting_defaults, setting_keys

        defaults = setting_defaults() | {"seed": self.seeds}
        with formatter.section("Settings (--set KEY=VALUE, or lines of a --config file)"):
            rows = [
                (key, f"{text}  [default: {defaults[key]}]" if key in defaults else text)
                for key, text in setting_keys().items()
            ]
            rows += [
                ("NAME.OPTION", "option of a strategy, e.g. lora.rank=4"),
                ("NAME.lr", "learning rate of one strategy; takes precedence over lr"),
                ("shift.NAME", "amount of one shift"),
            ]
            formatter.write_dl(rows)
