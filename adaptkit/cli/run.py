"""The command that runs an experiment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import FolderType, RunCommand, collect_layers, json_option, plugin_option, setting_options
from adaptkit.errors import BadInput, RunFailed, TrackingLost
from adaptkit.system.imports import uncollected
from adaptkit.system.signals import interruptible

if TYPE_CHECKING:
    from rich.console import Console

    from adaptkit.experiment.outcome import RunOutcome
    from adaptkit.plugins.manager import Plugins
    from adaptkit.settings.resolve import Layer


@click.command(cls=RunCommand)
@setting_options
@click.option("--from-tune", metavar="RUN_ID", help="Use what a tuning chose, where -o, --lr and the like say nothing.")
@click.option("--no-track", is_flag=True, help="Record nothing in MLflow.")
@plugin_option
@click.option("--refresh-base", is_flag=True, help="Train the base anew even if the cache has it.")
@click.option("--no-feature-cache", is_flag=True, help="Compute what frozen layers give anew each time.")
@click.option(
    "--dry-run", is_flag=True, help="Try everything on one batch, show the plan and the time it takes; no run."
)
@click.option("--report", type=FolderType(), metavar="DIR", help="Write a report of the comparison to a folder.")
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
    from_tune: str | None,
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

    The strongest source of a setting wins: option, --set, --config, --from-tune, --preset, default.
    """
    from adaptkit.plugins.loading import load_plugins
    from adaptkit.settings.resolve import resolve

    values["skip_bad_images"] = True if skip_bad_images else None  # a config may say so, too
    layers, problems = collect_layers(strategy, options, config, settings, seeds, values)
    if from_tune is not None:
        add_tuned(from_tune, layers, tracking_uri, problems)
    plugins = load_plugins(plugin)
    request = resolve(layers, plugins, problems)

    from adaptkit.cli.views.console import messages, output
    from adaptkit.cli.views.progress import print_plan

    console = messages()
    if dry_run:
        from adaptkit.experiment.estimate import estimate_seconds
        from adaptkit.experiment.prepare import prepare

        experiment = prepare(request, refresh_base=refresh_base)
        plan = dataclasses.replace(experiment.plan, seconds=estimate_seconds(experiment))
        if as_json:
            click.echo(json.dumps(plan.to_dict(), indent=2, default=str))
        else:
            print_plan(output(), plan)
        return

    with uncollected():
        from adaptkit.api.run import RunRequest, Watch, run_request
        from adaptkit.system.hardware import keep_freed_memory

    keep_freed_memory()
    with interruptible(), shown(plugins, console, quiet):
        watch = Watch(
            planned=lambda plan: print_plan(console, plan),
            notice=lambda message: console.print(message, markup=False, soft_wrap=True),
        )
        outcome = run_request(
            RunRequest(
                experiment=request,
                plugins=plugins,
                tracking_uri=tracking_uri,
                track=not no_track,
                refresh_base=refresh_base,
                feature_cache=not no_feature_cache,
                report=report,
            ),
            Watch() if quiet else watch,
        )
    if as_json:
        click.echo(json.dumps(outcome.to_dict(), indent=2, default=str))
    else:
        from adaptkit.cli.views.results import print_outcome

        print_outcome(output(), outcome)
        if not quiet:
            print_way_to_runs(console, outcome)
    raise_failures(outcome)


def add_tuned(run_id: str, layers: list[Layer], tracking_uri: str | None, problems: list[str]) -> None:
    """Put what a tuning has chosen below the layers of settings; note what is wrong with it."""
    from adaptkit.api.run import tuned_layer

    try:
        layers.append(tuned_layer(run_id, layers, tracking_uri))
    except BadInput as error:
        problems.extend(error.problems)


@contextlib.contextmanager
def shown(plugins: Plugins, console: Console, quiet: bool) -> Iterator[None]:
    """Show the runs as they go unless they shall be quiet."""
    from adaptkit.cli.views.progress import ProgressBars, ProgressLines

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


def print_way_to_runs(console: Console, outcome: RunOutcome) -> None:
    """Print how to use the best run's model, and how to look at all runs in MLflow."""
    if outcome.ui_url is None:
        return
    best = None if outcome.comparison is None else outcome.comparison.arms[0].runs[0]
    if best is not None and best.run_id and outcome.tracking_error is None and outcome.tracking_uri is not None:
        from adaptkit.tracking.address import tracking_option

        command = f"adaptkit predict {best.run_id} PICTURES{tracking_option(outcome.tracking_uri)}"
        console.print(f"Use {best.name}:  {command}", markup=False, soft_wrap=True)
    if outcome.ui_command is not None:
        console.print(f"Look at the runs:  {outcome.ui_command}", markup=False, soft_wrap=True)
        console.print(f"then open          {outcome.ui_url}", markup=False, soft_wrap=True)
    else:
        console.print(f"Look at the runs:  {outcome.ui_url}", markup=False, soft_wrap=True)


def raise_failures(outcome: RunOutcome) -> None:
    """Raise one error for everything that went wrong after training had begun."""
    lines = [f"{run.label} seed={run.seed}: {run.error}" for run in outcome.failed]
    if outcome.tracking_error is not None:
        raise TrackingLost(*lines, f"not all is in MLflow: {outcome.tracking_error}; the results above are complete")
    if lines:
        raise RunFailed(*lines)
