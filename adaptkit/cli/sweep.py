"""`adaptkit sweep`: run strategies over a grid of settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import (
    RunCommand,
    collect_layers,
    engine_options,
    parse_duration,
    progress_options,
    split_pairs,
    training_options,
)
from adaptkit.errors import BadInput, RunFailed
from adaptkit.system.imports import uncollected
from adaptkit.system.signals import interruptible

if TYPE_CHECKING:
    from adaptkit.cli.views.trials import TrialLines, TrialTable
    from adaptkit.sweeps.outcome import SweepOutcome


@click.command(cls=RunCommand)
@training_options()
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=VALUES",
    help="Values to vary: lora.rank=2,4,8 or lr=1e-4..1e-2/5log. Repeatable; all combinations run.",
)
@engine_options
@click.option("--print-trials", is_flag=True, help="Print every trial and the estimated time, without training.")
@click.option("--max-trials", type=int, metavar="N", help="Maximum number of trials to run now.")
@click.option("--time-budget", metavar="TIME", help="Start no trial after this time: 90s, 30m or 2h.")
@click.option("--retry-failed", is_flag=True, help="Run trials again that failed earlier.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any trial failed, not only if all failed.")
@progress_options
def sweep(
    tracking_uri: str | None,
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
    **values: Any,
) -> None:
    """Run strategies over a grid of settings, and compare them.

    \b
    Examples:
      adaptkit sweep -s lora --grid lora.rank=1,2,4,8,16 --seeds 0-4
      adaptkit sweep -s lora -s head --grid lora.rank=2,4,8 --grid lr=1e-4..1e-2/5log --jobs 2
      adaptkit sweep --config sweep.yaml --print-trials

    Every combination of the values runs with every strategy and seed. `lr` applies to every strategy, `lora.rank` only
    to LoRA. In a config file, write the grid under `grid:`. Run the same command again to continue a sweep: trials that
    the experiment already has are not repeated. At the end, the trials are compared, as with `adaptkit compare`.
    """
    from adaptkit.plugins.loading import load_plugins

    layers, problems = collect_layers(values)
    if max_trials is not None and max_trials < 1:
        problems.append(f"--max-trials: must be at least 1, not {max_trials}")
    engine_settings = split_pairs("--engine-option", engine_options, problems)
    seconds = None
    try:
        seconds = parse_duration("--time-budget", time_budget) if time_budget is not None else None
    except BadInput as error:
        problems.extend(error.problems)
    plugins = load_plugins(plugin)

    from adaptkit.cli.views.console import messages, output, print_json, print_line, resumable
    from adaptkit.sweeps.grid import collect_grid, expand

    varied, layers = collect_grid(grid, layers, problems)
    cells = expand(layers, varied, plugins=plugins, found_before=problems)
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
        engine=EngineSettings(engine, jobs, engine_settings),
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
            print_json(plan.to_dict())
        else:
            print_sweep_plan(output(), plan, every=True)
        return
    keep_freed_memory()
    view: TrialLines | TrialTable = TrialTable(console) if console.is_terminal else TrialLines(console)
    watch = Watch(
        planned=view.planned,
        notice=lambda line: print_line(console, line),
        tell=view.tell,
        ended=view.ended,
    )
    with resumable(console), interruptible(), view:
        outcome = run_sweep(request, Watch() if quiet else watch)
    print_sweep(outcome, as_json, quiet)
    if outcome.failed and (strict or not outcome.done):
        raise RunFailed(*(f"{trial.label} seed={trial.seed}: {trial.error}" for trial in outcome.failed))


def print_sweep(outcome: SweepOutcome, as_json: bool, quiet: bool) -> None:
    """Print the comparison, the states of the trials, and how to open the runs."""
    from adaptkit.cli.views.console import messages, output, print_json, print_line
    from adaptkit.cli.views.results import print_findings
    from adaptkit.cli.views.trials import print_trials

    if as_json:
        print_json(outcome.to_dict())
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
        print_line(console, line)
