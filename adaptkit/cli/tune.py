"""The command that tunes strategies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
from adaptkit.errors import RunFailed
from adaptkit.system.imports import uncollected
from adaptkit.system.signals import interruptible


@click.command(cls=RunCommand)
@setting_options
@click.option("--trials", type=int, default=12, metavar="N", help="Trials of each strategy.  [default: 12]")
@click.option(
    "--space",
    multiple=True,
    metavar="KEY=RANGE",
    help="What to search: lr=1e-4..1e-1/log, lora.rank=2,4,8; lora.rank=8 keeps it. Repeatable.",
)
@click.option("--search", default="tpe", metavar="tpe|grid", help="How to search.  [default: tpe]")
@click.option(
    "--tuning-seeds",
    default="0",
    metavar="LIST",
    help="A run of each trial for each; --seeds must be others.  [default: 0]",
)
@engine_options
@plugin_option
@click.option("--refresh-base", is_flag=True, help="Train the base anew even if the cache has it.")
@click.option("--no-feature-cache", is_flag=True, help="Compute what frozen layers give anew each time.")
@click.option("--report", type=FolderType(), metavar="DIR", help="Write a report of the comparison to a folder.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print the results only.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def tune(
    strategy: tuple[str, ...],
    options: tuple[str, ...],
    config: Path | None,
    settings: tuple[str, ...],
    seeds: str | None,
    tracking_uri: str | None,
    skip_bad_images: bool,
    trials: int,
    space: tuple[str, ...],
    search: str,
    tuning_seeds: str,
    jobs: int | None,
    engine: str,
    engine_options: tuple[str, ...],
    plugin: tuple[str, ...],
    refresh_base: bool,
    no_feature_cache: bool,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    traceback: bool,
    **values: Any,
) -> None:
    """Choose each strategy's learning rate and options with an equal budget, then compare them.

    \b
    Examples:
      adaptkit tune -s full -s head -s lora --trials 12 --seeds 1-5
      adaptkit tune -s lora -s adapter --space lr=1e-4..1e-1/log --space lora.rank=2,4,8 --jobs 2
      adaptkit run -s lora --from-tune RUN_ID --seeds 6-9

    A fifth of the labelled target images is held back and judges every trial; the test sets are looked at once, when
    what was chosen is run on all labelled images with the seeds of --seeds (default: 1-5). Where a best value lies on
    the edge of its range, that grows, and every strategy is given as many further trials. What -o, --lr or a config
    give is not searched. Started again, it goes on.
    """
    from adaptkit.plugins.loading import load_plugins

    values["skip_bad_images"] = True if skip_bad_images else None
    layers, problems = collect_layers(strategy, options, config, settings, seeds, values)
    own = split_pairs("--engine-option", engine_options, problems)
    plugins = load_plugins(plugin)

    from adaptkit.cli.views.console import going_on, messages, output

    console = messages()
    with uncollected():
        from adaptkit.api.tune import TuneRequest, TuneWatch, check_tuning, run_tuning
        from adaptkit.cli.views.tuning import TuningBars, TuningLines, print_tuned, print_way_on
        from adaptkit.sweeps.engines.tasks import EngineSettings
        from adaptkit.system.hardware import keep_freed_memory

    tuning = check_tuning(
        layers,
        plugins,
        spaces=space,
        trials=trials,
        tuning_seeds=tuning_seeds,
        method=search,
        problems=problems,
    )
    keep_freed_memory()
    request = TuneRequest(
        tuning=tuning,
        plugins=plugins,
        engine=EngineSettings(engine, jobs, own),
        tracking_uri=tracking_uri,
        refresh_base=refresh_base,
        feature_cache=not no_feature_cache,
        report=report,
    )
    view = TuningBars(console) if console.is_terminal else TuningLines(console)
    watch = TuneWatch(view.planned, view.notice, view.tell, view.tried, view.tuned, view.ended)
    with going_on(console), interruptible(), view:
        outcome = run_tuning(request, TuneWatch() if quiet else watch)
    if as_json:
        click.echo(json.dumps(outcome.to_dict(), indent=2, default=str))
    else:
        print_tuned(output(), outcome)
        if not quiet:
            print_way_on(console, outcome)
    if outcome.failed:
        raise RunFailed(*(f"{run.label} seed={run.seed}: {run.error}" for run in outcome.failed))
