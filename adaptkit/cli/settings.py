"""Turn what is typed after `adaptkit run` into layers of settings, and list the settings in its help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import split_pairs
from adaptkit.errors import BadInput

if TYPE_CHECKING:
    from adaptkit.resolve import Layer

SETTING_OPTIONS = (
    "preset", "dataset", "target", "shift", "backbone", "weights", "image_size", "augment", "bn",
    "skip_bad_images", "epochs", "lr", "batch_size", "data_dir", "device", "precision", "experiment", "severity",
)  # fmt: skip


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
        from adaptkit.config import setting_defaults, setting_keys

        defaults = setting_defaults()
        with formatter.section("Settings (--set KEY=VALUE, or lines of a --config file)"):
            rows = [
                (key, f"{text}  [default: {defaults[key]}]" if key in defaults else text)
                for key, text in setting_keys().items()
            ]
            rows += [("NAME.OPTION", "option of a strategy, as in lora.rank=4"), ("shift.NAME", "amount of one shift")]
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
    from adaptkit.config import read_config
    from adaptkit.resolve import Layer, option_keys

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
