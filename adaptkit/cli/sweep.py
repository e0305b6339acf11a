"""The command that runs a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import (
    FolderType,
    RunCommand,
    collect_layers,
    engine_options,
    json_option,
    plugin_option,
    setting_options,
    split_pairs,
)
from adaptkit.errors import BadInput, RunFailed
from adaptkit.system.imports import uncollected
from adaptkit.system.signals import interruptible

if TYPE_CHECKING:
    from adaptkit.cli.views.trials import TrialLines, TrialTable
    from adaptkit.sweeps.outcome import SweepOutcome


@click.command(cls=RunCommand)
@setting_options
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=VALUES",
    help="What to vary: lora.rank=2,4,8 or lr=1e-4..1e-2/5log. Repeatable; all combinations are run.",
)
@engine_options
@click.option("--print-trials", is_flag=True, help="Show every trial and the time that they take; run none.")
@click.option("--max-trials", type=int, metavar="N", help="Run at most so many trials now.")
@click.option("--time-budget", metavar="TIME", help="Begin no trial after so long: 90s, 30m, 2h.")
@click.option("--retry-failed", is_flag=True, help="Run again what failed at an earlier start.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any trial failed, not only if all did.")
@plugin_option
@click.option("--refresh-base", is_flag=True, help="Train the base anew even if the cache has it.")
@click.option("--no-feature-cache", is_flag=True, help="Compute what frozen layers give anew each time.")
@click.option("--report", type=FolderType(), metavar="DIR", help="Write a report of the comparison to a folder.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print the results only.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def sweep(
    strategy: tuple[str, ...],
    options: tuple[str, ...],
    config: Path | None,
    settings: tuple[str, ...],
    seeds: str | None,
    tracking_uri: str | None,
    skip_bad_images: bool,
    grid: tuple[str, ...],
    jobs: int | None,
    engine: str,
    engine_options: tuple[str, ...],
    print_trials: bool,
    max_trials: int | None,
    time_budget: str | None,
    retry_failed: bool,
    strict: bool,
    plugin: tuple[str, ...],
    refresh_base: bool,
    no_feature_cache: bool,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    traceback: bool,
    **values: Any,
) -> None:
    """Run each strategy with every combination of a grid's values, and compare them.

    \b
    Examples:
      adaptkit sweep -s lora --grid lora.rank=1,2,4,8,16 --seeds 0-4
      adaptkit sweep -s lora -s head --grid lora.rank=2,4,8 --grid lr=1e-4..1e-2/5log --jobs 2
      adaptkit sweep --config sweep.yaml --print-trials

    A value of a setting, such as lr, concerns every strategy, lora.rank only LoRA. In a config file, the grid stands
    under `grid:`. Started again, a sweep goes on: trials that the experiment holds already are not run a second time.
    It ends as `adaptkit compare` does.
    """
    from adaptkit.cli.options import parse_duration
    from adaptkit.plugins.loading import load_plugins

    values["skip_bad_images"] = True if skip_bad_images else None
    layers, problems = collect_layers(strategy, options, config, settings, seeds, values)
    if max_trials is not None and max_trials < 1:
        problems.append(f"--max-trials: must be at least 1, not {max_trials}")
    own = split_pairs("--engine-option", engine_options, problems)
    seconds = None
    try:
        seconds = parse_duration("--time-budget", time_budget) if time_budget is not None else None
    except BadInput as error:
        problems.extend(error.problems)
    plugins = load_plugins(plugin)

    from adaptkit.cli.views.console import going_on, messages, output
    from adaptkit.sweeps.grid import collect_grid, expand

    varied, layers = collect_grid(grid, layers, problems)
    cells = expand(layers, varied, plugins, problems)
    console = messages()
    with uncollected():
        from adaptkit.api.sweep import Limits, SweepRequest, Watch, plan_sweep, run_sweep
        from adaptkit.cli.views.trials import TrialLines, TrialTable, print_sweep_plan
        from adaptkit.sweeps.engines.tasks import EngineSettings
        from adaptkit.system.hardware import keep_freed_memory

    request = SweepRequest(
        cells=cells,
        grid=varied,
        plugins=plugins,
        engine=EngineSettings(engine, jobs, own),
        limits=Limits(max_trials, seconds, retry_failed),
        tracking_uri=tracking_uri,
        refresh_base=refresh_base,
        feature_cache=not no_feature_cache,
        report=report,
    )
    request.engine.make(plugins, cells[0].request.settings.device)
    if print_trials:
        plan = plan_sweep(request)
        if as_json:
            click.echo(json.dumps(plan.to_dict(), indent=2, default=str))
        else:
            print_sweep_plan(output(), plan, every=True)
        return
    keep_freed_memory()
    view: TrialLines | TrialTable = TrialTable(console) if console.is_terminal else TrialLines(console)
    watch = Watch(
        planned=view.planned,
        notice=lambda line: console.print(line, markup=False, soft_wrap=True),
        tell=view.tell,
        ended=view.ended,
    )
    with going_on(console), interruptible(), view:
        outcome = run_sweep(request, Watch() if quiet else watch)
    print_sweep(outcome, as_json, quiet)
    if outcome.failed and (strict or not outcome.done):
        raise RunFailed(*(f"{trial.label} seed={trial.seed}: {trial.error}" for trial in outcome.failed))


def print_sweep(outcome: SweepOutcome, as_json: bool, quiet: bool) -> None:
    """Print what became of the trials, what they say, and how to look at them."""
    from adaptkit.cli.views.console import messages, output
    from adaptkit.cli.views.results import print_findings
    from adaptkit.cli.views.trials import print_trials

    if as_json:
        click.echo(json.dumps(outcome.to_dict(), indent=2, default=str))
        return
    if outcome.comparisons:
        print_findings(output(), outcome.comparisons)
    print_trials(output(), outcome)
    if quiet:
        return
    console = messages()
    lines = [f"Look at the runs:  {outcome.ui_command or outcome.ui_url}"]
    if outcome.ui_command is not None:
        lines.append(f"then open          {outcome.ui_url}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
