"""The command that runs an experiment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import json_option, plugin_option
from adaptkit.cli.settings import RunCommand, collect_layers
from adaptkit.cli.signals import interruptible
from adaptkit.errors import RunFailed, TrackingLost
from adaptkit.imports import uncollected

if TYPE_CHECKING:
    from rich.console import Console

    from adaptkit.outcome import Outcome
    from adaptkit.plugins import Plugins


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
@click.option(
    "--dataset",
    metavar="NAME",
    help="Source: see `adaptkit datasets`, or folder:PATH, or none for pretrained weights.  [default: mnist5k]",
)
@click.option("--target", metavar="NAME", help="Target, as folder:PATH.  [default: the source under the shift]")
@click.option(
    "--shift", metavar="NAME=X,...", help="Shift to the target, e.g. rotate=45,noise=0.3; see `adaptkit shifts`."
)
@click.option("--backbone", metavar="NAME", help="Architecture; see `adaptkit backbones`.  [default: small_cnn]")
@click.option(
    "--weights", metavar="default|none|FILE", help="The backbone's first weights: published, fresh, or a file's."
)
@click.option("--image-size", metavar="N", help="Side of the images, in pixels.  [default: the data's or backbone's]")
@click.option("--augment", metavar="NAME=X,...", help="Shifts of training images only, e.g. flip=0.5,crop=0.7.")
@click.option(
    "--bn", metavar="freeze|adapt", help="Statistics of frozen BatchNorm layers: keep, or move.  [default: freeze]"
)
@click.option("--skip-bad-images", is_flag=True, help="Leave out files that are no pictures, instead of stopping.")
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
    skip_bad_images: bool,
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
      adaptkit run -s lora -s head --dataset none --target folder:photos --backbone torchvision:resnet18

    The strongest source of a setting wins: option, --set, --config, --preset, default.
    """
    from adaptkit.loading import load_plugins
    from adaptkit.resolve import resolve

    values["skip_bad_images"] = True if skip_bad_images else None  # a config may say so, too
    layers, problems = collect_layers(strategy, options, config, settings, seeds, values)
    plugins = load_plugins(plugin)
    request = resolve(layers, plugins, problems)

    from adaptkit.cli.plan import print_plan
    from adaptkit.cli.terminal import messages, output
    from adaptkit.training.torchrun import place

    console, leads = messages(), place().rank == 0
    quiet = quiet or not leads
    if dry_run:
        from adaptkit.experiment.estimate import estimate_seconds
        from adaptkit.experiment.preparation import prepare

        experiment = prepare(request, refresh_base=refresh_base)
        if not leads:
            return
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
    with interruptible(), shown(plugins, console, quiet), silent(leads):
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
    if as_json and leads:
        click.echo(json.dumps(outcome.to_dict(), indent=2, default=str))
    elif leads:
        from adaptkit.cli.results import print_outcome  # only now: it judges with the help of SciPy

        print_outcome(output(), outcome)
        if not quiet:
            print_way_to_runs(console, outcome)
    raise_failures(outcome)


@contextlib.contextmanager
def silent(leads: bool) -> Iterator[None]:
    """Show nothing that plugins print, unless this process is the one that speaks for all."""
    if leads:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stdout(nothing):
        yield


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
    """Print how to use the best run's model, and how to look at all runs in MLflow."""
    if outcome.ui_url is None:
        return
    if outcome.comparison is not None and (best := outcome.comparison.comparisons[0].arms[0].runs[0]).run_id:
        console.print(f"Use {best.name}:  adaptkit predict {best.run_id} PICTURES", markup=False, soft_wrap=True)
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
