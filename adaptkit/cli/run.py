"""The command that runs an experiment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import json_option, plugin_option, split_pairs
from adaptkit.cli.signals import interruptible
from adaptkit.errors import BadInput, RunFailed, TrackingLost
from adaptkit.imports import uncollected

if TYPE_CHECKING:
    from rich.console import Console

    from adaptkit.outcome import Outcome
    from adaptkit.plugins import Plugins
    from adaptkit.resolve import Layer

SETTING_OPTIONS = (
    "preset", "dataset", "target", "shift", "backbone", "epochs", "lr", "batch_size", "data_dir", "device",
    "precision", "experiment",
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


@click.command(cls=RunCommand)
@click.option(
    "-s", "--strategy", multiple=True, metavar="NAME", help="What to compare; see `adaptkit strategies`. Repeatable."
)
@click.option(
    "-o", "options", multiple=True, metavar="KEY=VALUE", help="Strategy option: rank=4, or lora.rank=4. Repeatable."
)
@click.option("--preset", metavar="NAME", help="Settings to start from: quick, default or notebook.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="YAML file of settings.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. base.epochs=3. Repeatable."
)
@click.option("--dataset", metavar="NAME", help="Source data set; see `adaptkit datasets`.  [default: mnist5k]")
@click.option("--target", metavar="NAME", help="Target data set.  [default: the source under the shift]")
@click.option(
    "--shift", metavar="NAME=X,...", help="Shift to the target, e.g. rotate=45,noise=0.3; see `adaptkit shifts`."
)
@click.option("--backbone", metavar="NAME", help="Architecture; see `adaptkit backbones`.  [default: small_cnn]")
@click.option("--seeds", "--seed", metavar="LIST", help="A run for each: 3, 0-4 or 0,2,5.  [default: 0]")
@click.option("--epochs", metavar="N", help="Epochs of adaptation.  [default: 10]")
@click.option("--lr", metavar="X", help="Learning rate.  [default: the strategy's own]")
@click.option("--batch-size", metavar="N", help="Images a step of adaptation.  [default: 32]")
@click.option("--data-dir", metavar="DIR", help="Where data sets are read from and downloaded to.  [default: data]")
@click.option("--device", metavar="auto|cpu|cuda|mps", help="Where to compute.  [default: auto]")
@click.option(
    "--precision", metavar="fp32|bf16|auto", help="Number format; auto: bf16 where it is native.  [default: fp32]"
)
@click.option("--experiment", metavar="NAME", help="MLflow experiment.  [default: adaptkit]")
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"
)
@click.option("--no-track", is_flag=True, help="Record nothing in MLflow.")
@plugin_option
@click.option("--refresh-base", is_flag=True, help="Train the base anew even if the cache has it.")
@click.option("--no-feature-cache", is_flag=True, help="Compute what frozen layers give anew each time.")
@click.option(
    "--dry-run", is_flag=True, help="Try everything on one batch, show the plan and the time it takes; no run."
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="DIR", help="Write a report of the comparison to a folder."
)
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print the results only.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def run(
    strategy: tuple[str, ...],
    options: tuple[str, ...],
    config: Path | None,
    settings: tuple[str, ...],
    seeds: str | None,
    tracking_uri: str | None,
    no_track: bool,
    plugin: tuple[str, ...],
    refresh_base: bool,
    no_feature_cache: bool,
    dry_run: bool,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    traceback: bool,
    **values: Any,
) -> None:
    """Adapt a base with one or more strategies and track each run in MLflow.

    \b
    Examples:
      adaptkit run -s lora
      adaptkit run -s full -s head -s lora -o lora.rank=4 --seeds 0-4
      adaptkit run -s lora --target digits --preset quick

    The strongest source of a setting wins: option, --set, --config, --preset, default.
    """
    from adaptkit.loading import load_plugins
    from adaptkit.resolve import resolve

    layers, problems = collect_layers(strategy, options, config, settings, seeds, values)
    plugins = load_plugins(plugin)
    request = resolve(layers, plugins, problems)

    from adaptkit.cli.plan import print_plan
    from adaptkit.cli.terminal import messages, output

    console = messages()
    if dry_run:
        from adaptkit.experiment.estimate import estimate_seconds
        from adaptkit.experiment.preparation import prepare

        experiment = prepare(request, refresh_base=refresh_base)
        plan = dataclasses.replace(experiment.plan, seconds=estimate_seconds(experiment))
        if as_json:
            click.echo(json.dumps(plan.to_dict(), indent=2, default=str))
        else:
            print_plan(output(), plan)
        return

    with uncollected():
        from adaptkit.api import run_request
        from adaptkit.experiment.hardware import keep_freed_memory

    keep_freed_memory()
    with interruptible(), shown(plugins, console, quiet):
        outcome = run_request(
            request,
            plugins,
            tracking_uri=tracking_uri,
            track=not no_track,
            refresh_base=refresh_base,
            feature_cache=not no_feature_cache,
            report=report,
            planned=lambda plan: None if quiet else print_plan(console, plan),
            notice=lambda line: None if quiet else console.print(line, markup=False, soft_wrap=True),
        )
    if as_json:
        click.echo(json.dumps(outcome.to_dict(), indent=2, default=str))
    else:
        from adaptkit.cli.results import print_outcome  # only now: it judges with the help of SciPy

        print_outcome(output(), outcome)
        if not quiet:
            print_way_to_runs(console, outcome)
    raise_failures(outcome)


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


@contextlib.contextmanager
def shown(plugins: Plugins, console: Console, quiet: bool) -> Iterator[None]:
    """Show the runs as they go unless they shall be quiet."""
    from adaptkit.cli.progress import ProgressBars, ProgressLines

    if quiet:
        yield
        return
    progress = ProgressBars(console) if console.is_terminal else ProgressLines(console)
    plugins.manager.register(progress, name="progress")
    try:
        yield
    finally:
        progress.close()
        plugins.manager.unregister(progress)


def print_way_to_runs(console: Console, outcome: Outcome) -> None:
    """Print how to look at the runs in MLflow."""
    if outcome.ui_url is None:
        return
    if outcome.ui_command is not None:
        console.print(f"Look at the runs:  {outcome.ui_command}", markup=False, soft_wrap=True)
        console.print(f"then open          {outcome.ui_url}", markup=False, soft_wrap=True)
    else:
        console.print(f"Look at the runs:  {outcome.ui_url}", markup=False, soft_wrap=True)


def raise_failures(outcome: Outcome) -> None:
    """Raise one error for everything that went wrong after training had begun."""
    lines = [f"{run.label} seed={run.seed}: {run.error}" for run in outcome.failed]
    if outcome.tracking_error is not None:
        lost = f"{outcome.tracking_error}; the results above are not, or not all, in MLflow"
        raise TrackingLost(*lines, lost)
    if lines:
        raise RunFailed(*lines)
