"""`adaptkit run`: run an experiment; and progress, hints and failures for all commands that train."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import RunCommand, calibrate_option, collect_layers, progress_options, training_options
from adaptkit.errors import BadInput, RunFailed, TrackingLost
from adaptkit.system.imports import uncollected
from adaptkit.system.signals import interruptible

if TYPE_CHECKING:
    from rich.console import Console

    from adaptkit.comparison.findings import Comparison
    from adaptkit.comparison.records import ComparedRun
    from adaptkit.experiment.outcome import RunOutcome
    from adaptkit.plugins.manager import Plugins
    from adaptkit.settings.resolve import Layer


@click.command(cls=RunCommand)
@training_options()
@click.option(
    "--from-tune",
    metavar="RUN_ID",
    help="Start from the best values of a tuning run; explicit options take precedence.",
)
@click.option(
    "--tune",
    metavar="TRIALS",
    help="Each fit tries this number of configurations on its own training images first, and trains with the best one.",
)
@click.option(
    "--space",
    multiple=True,
    metavar="KEY=RANGE",
    help="Range that --tune searches: lr=1e-4..1e-1/log or lora.rank=2,4,8. Repeatable.  [default: the strategies']",
)
@click.option("--refit", is_flag=True, help="Then train the best strategy on all labels, as the model to use.")
@calibrate_option
@click.option("--no-track", is_flag=True, help="Do not record the runs in MLflow.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the setup on one batch and print the plan and the estimated time, without training.",
)
@progress_options
def run(
    tracking_uri: str | None,
    from_tune: str | None,
    tune: str | None,
    space: tuple[str, ...],
    refit: bool,
    calibrate: bool,
    no_track: bool,
    plugin: tuple[str, ...],
    refresh_base: bool,
    no_feature_cache: bool,
    dry_run: bool,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Adapt a base model with strategies and track each run.

    \b
    Examples:
      adaptkit run -s lora
      adaptkit run -s full -s head -s lora -o lora.rank=4 --seeds 0-4
      adaptkit run -s lora --target digits --preset quick
      adaptkit run -s lora -s head --target folder:photos --tune 10
      adaptkit run -s lora -s head --dataset none --target folder:photos --backbone torchvision:resnet18

    The order of precedence of settings is: option, --set, --config, --from-tune, --preset, default.
    """
    from adaptkit.plugins.loading import load_plugins
    from adaptkit.settings.resolve import resolve, tuning_layer

    layers, problems = collect_layers(values)
    layers.insert(0, tuning_layer(tune, space))
    if from_tune is not None:
        add_tuned(from_tune, layers, tracking_uri=tracking_uri, problems=problems)
    plugins = load_plugins(plugin)
    request = resolve(layers, plugins, problems)

    from adaptkit.cli.views.console import messages, output, print_json, print_line
    from adaptkit.cli.views.progress import print_plan

    console = messages()
    with uncollected():
        from adaptkit.api.run import RunRequest, Watch, run_request
        from adaptkit.system.hardware import keep_freed_memory

    checked = RunRequest(
        experiment=request,
        plugins=plugins,
        tracking_uri=tracking_uri,
        track=not no_track,
        from_tune=from_tune,
        refit=refit,
        calibrate=calibrate,
        refresh_base=refresh_base,
        feature_cache=not no_feature_cache,
        report=report,
    )
    if dry_run:
        from adaptkit.experiment.estimate import estimate_seconds

        experiment = checked.prepared()
        plan = dataclasses.replace(experiment.plan, seconds=estimate_seconds(experiment))
        if as_json:
            print_json(plan.to_dict())
        else:
            print_plan(output(), plan)
        return

    keep_freed_memory()
    with interruptible(), show_progress(plugins, console, quiet):
        watch = Watch(
            planned=lambda plan: print_plan(console, plan),
            notice=lambda message: print_line(console, message),
        )
        outcome = run_request(checked, Watch() if quiet else watch)
    if as_json:
        print_json(outcome.to_dict())
    else:
        print_results(outcome, quiet)
    raise_failures(outcome)


def add_tuned(run_id: str, layers: list[Layer], tracking_uri: str | None, problems: list[str]) -> None:
    """Add the best values of a tuning run as the layer of lowest precedence, or a message for each problem."""
    from adaptkit.tuning.chosen import tuned_layer

    try:
        layers.append(tuned_layer(run_id, layers, tracking_uri))
    except BadInput as error:
        problems.extend(error.problems)


@contextlib.contextmanager
def show_progress(plugins: Plugins, console: Console, quiet: bool) -> Iterator[None]:
    """Show the progress of runs during the block, unless `quiet`."""
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


def print_results(outcome: RunOutcome, quiet: bool) -> None:
    """Print the comparison, the final model or why there is none, and, unless `quiet`, how to continue."""
    from adaptkit.cli.views.console import messages, output, print_line
    from adaptkit.cli.views.results import print_outcome

    print_outcome(output(), outcome)
    if outcome.refit is not None:
        from adaptkit.cli.views.refit import print_refit

        print_refit(output(), outcome.refit)
    elif outcome.refit_error is not None and outcome.is_undecided:
        print_line(output(), f"No final model: {outcome.refit_error}")
    if not quiet:
        print_next_steps(messages(), outcome)


def print_next_steps(console: Console, outcome: RunOutcome) -> None:
    """Print how to use the model of the best run, and how to open all runs in MLflow."""
    from adaptkit.cli.views.console import print_line

    if outcome.ui_url is None:
        return
    best = None if outcome.refit_error else _recommended(outcome.comparison)
    if outcome.refit is not None:
        from adaptkit.cli.views.refit import print_use

        print_use(console, outcome.refit)
    elif best is not None and best.run_id and outcome.tracking_error is None and outcome.tracking_uri is not None:
        from adaptkit.tracking.address import tracking_option

        option = tracking_option(outcome.tracking_uri)
        if outcome.plan.protocol == "folds":
            name = best.name.rpartition(" ")[0]
            print_line(console, f"Train {name} on all labels:  adaptkit refit {best.run_id}{option}")
            print_line(console, f"then use it:  adaptkit predict {best.run_id} IMAGES{option}")
        else:
            print_line(console, f"Use {best.name}:  adaptkit predict {best.run_id} IMAGES{option}")
    if outcome.ui_command is not None:
        print_line(console, f"Look at the runs:  {outcome.ui_command}")
        print_line(console, f"then open          {outcome.ui_url}")
    else:
        print_line(console, f"Look at the runs:  {outcome.ui_url}")


def _recommended(comparison: Comparison | None) -> ComparedRun | None:
    """Return a run of the best strategy, or of the one to choose now; None if none is worth using."""
    if comparison is None or comparison.arms[0].beats_constant is False:
        return None
    if any(pair.p is None for pair in comparison.pairs):  # by this metric, pairs have no verdict
        return None
    choice = comparison.choice
    return (comparison.arms[0] if choice is None else comparison.arm(choice.name)).runs[0]


def raise_failures(outcome: RunOutcome) -> None:
    """Raise one error for all failed runs, for results that could not be stored, and for a refit that failed."""
    lines = [f"{run.label} seed={run.seed}: {run.error}" for run in outcome.failed]
    if outcome.tracking_error is not None:
        raise TrackingLost(
            *lines, f"MLflow does not have all results: {outcome.tracking_error}; the results above are complete"
        )
    if lines:
        raise RunFailed(*lines)
    if outcome.refit_error is not None and not outcome.is_undecided:
        raise RunFailed(f"no final model: {outcome.refit_error}")
