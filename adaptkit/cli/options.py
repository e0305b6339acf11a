"""Options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.errors import BadInput

if TYPE_CHECKING:
    from adaptkit.settings.resolve import Layer


class NamedPath(click.Path):
    """A path; an empty one, which would mean the current folder, is refused with the reason `empty`."""

    empty = "it names no file"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail(self.empty, param, ctx)
        return super().convert(value, param, ctx)


class FolderType(NamedPath):
    """The path of a folder."""

    empty = "it names no folder; the current one is called ."


class Pictures(NamedPath):
    """The path of a picture, or of a folder of pictures."""

    empty = "'' names no picture and no folder; the current one is called ."


plugin_option = click.option(
    "--plugin", "plugin", multiple=True, type=click.Path(), metavar="PATH", help="Python file with hooks. Repeatable."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def split_pairs(option: str, pairs: Sequence[str], problems: list[str]) -> dict[str, str]:
    """Return `key=value` arguments as a dictionary; note those that are not."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            found[key.strip()] = value.strip()
        else:
            problems.append(f"{option} {pair}: write key=value")
    return found


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(option: str, text: str) -> float:
    """Return the seconds that `90`, `45s`, `30m`, `2h` or `1h30m` stand for; raise BadInput, naming the option."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text:
        raise BadInput(f"{option}: {text!r} is no length of time; write 90s, 30m, 2h or 1h30m")
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise BadInput(f"{option}: must be more than no time, and less than for ever")
    return seconds


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        whole = round(max(seconds, 1))
        return f"{whole} second{'s' * (whole > 1)}"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


SETTING_OPTIONS = (
    "preset", "dataset", "target", "shift", "backbone", "weights", "image_size", "augment", "bn",
    "skip_bad_images", "epochs", "lr", "batch_size", "data_dir", "device", "precision", "experiment", "severity",
)  # fmt: skip

#: what every command takes that trains: the settings that most people change, and where runs go
OPTIONS = (
    click.option(
        "-s",
        "--strategy",
        multiple=True,
        metavar="NAME",
        help="What to compare; see `adaptkit strategies`. Repeatable.",
    ),
    click.option(
        "-o", "options", multiple=True, metavar="KEY=VALUE", help="Strategy option: rank=4, or lora.rank=4. Repeatable."
    ),
    click.option("--preset", metavar="NAME", help="Settings to start from: quick, default or notebook."),
    click.option("--config", type=NamedPath(), metavar="FILE", help="YAML file of settings."),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. base.epochs=3. Repeatable."
    ),
    click.option(
        "--dataset",
        metavar="NAME",
        help="Source: see `adaptkit datasets`, or folder:PATH, or none for pretrained weights.  [default: mnist5k]",
    ),
    click.option("--target", metavar="NAME", help="Target, as folder:PATH.  [default: the source under the shift]"),
    click.option(
        "--shift", metavar="NAME=X,...", help="Shift to the target, e.g. rotate=45,noise=0.3; see `adaptkit shifts`."
    ),
    click.option("--severity", metavar="LIST", help="Test final models at multiples of the shift, e.g. 0.5,1,1.5,2."),
    click.option("--backbone", metavar="NAME", help="Architecture; see `adaptkit backbones`.  [default: small_cnn]"),
    click.option(
        "--weights", metavar="default|none|FILE", help="The backbone's first weights: published, fresh, or a file's."
    ),
    click.option(
        "--image-size", metavar="N", help="Side of the images, in pixels.  [default: the data's or backbone's]"
    ),
    click.option("--augment", metavar="NAME=X,...", help="Shifts of training images only, e.g. flip=0.5,crop=0.7."),
    click.option(
        "--bn", metavar="freeze|adapt", help="Statistics of frozen BatchNorm layers: keep, or move.  [default: freeze]"
    ),
    click.option("--skip-bad-images", is_flag=True, help="Leave out files that are no pictures, instead of stopping."),
    click.option("--seeds", "--seed", metavar="LIST", help="A run for each: 3, 0-4 or 0,2,5.  [default: 0]"),
    click.option("--epochs", metavar="N", help="Epochs of adaptation.  [default: 10]"),
    click.option("--lr", metavar="X", help="Learning rate.  [default: the strategy's own]"),
    click.option("--batch-size", metavar="N", help="Images a step of adaptation.  [default: 32]"),
    click.option("--data-dir", metavar="DIR", help="Where data sets are read from and downloaded to.  [default: data]"),
    click.option("--device", metavar="auto|cpu|cuda|mps", help="Where to compute.  [default: auto]"),
    click.option(
        "--precision", metavar="fp32|bf16|auto", help="Number format; auto: bf16 where it is native.  [default: fp32]"
    ),
    click.option("--experiment", metavar="NAME", help="MLflow experiment.  [default: adaptkit]"),
    click.option(
        "--tracking-uri", metavar="URI", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"
    ),
)


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of OPTIONS, in their order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


ENGINE_OPTIONS = (
    click.option(
        "--jobs", type=int, metavar="N", help="Number of trials at a time.  [default: the engine's; local: 1]"
    ),
    click.option(
        "--engine",
        default="local",
        metavar="NAME",
        help="Engine that runs the trials; see `adaptkit plugins`.  [default: local]",
    ),
    click.option(
        "--engine-option",
        "engine_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="Engine option. Repeatable.",
    ),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that runs many trials the options that say who runs them."""
    for option in reversed(ENGINE_OPTIONS):
        command = option(command)
    return command


class RunCommand(click.Command):
    """A command whose help ends with every setting that `--set` and `--config` know."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Read the arguments; say how strategies are named to whoever names one without an option."""
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

        defaults = setting_defaults()
        with formatter.section("Settings (--set KEY=VALUE, or lines of a --config file)"):
            rows = [
                (key, f"{text}  [default: {defaults[key]}]" if key in defaults else text)
                for key, text in setting_keys().items()
            ]
            rows += [
                ("NAME.OPTION", "option of a strategy, as in lora.rank=4"),
                ("NAME.lr", "learning rate of one strategy; goes before lr"),
                ("shift.NAME", "amount of one shift"),
            ]
            formatter.write_dl(rows)


def collect_layers(
    strategy: tuple[str, ...],
    options: tuple[str, ...],
    config: Path | None,
    settings: tuple[str, ...],
    seeds: str | None,
    values: dict[str, Any],
) -> tuple[list[Layer], list[str]]:
    """Return the sources of settings, the strongest first, and what is wrong with those that cannot be read."""
    from adaptkit.settings.files import read_config
    from adaptkit.settings.resolve import Layer, option_keys

    problems: list[str] = []
    given = {key: values[key] for key in SETTING_OPTIONS if values[key] is not None}
    if strategy:
        given["strategy"] = [name.strip() for names in strategy for name in names.split(",")]
    if seeds is not None:
        given["seed"] = seeds
    given |= option_keys(split_pairs("-o", options, problems))
    layers = [Layer(given), Layer(split_pairs("--set", settings, problems))]
    if config is not None:
        try:
            layers.append(Layer(read_config(config), config.name))
        except BadInput as error:
            problems.extend(error.problems)
    return layers, problems
