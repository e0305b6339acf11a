"""`adaptkit tune`: tune strategies with an equal budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adaptkit.cli.options import (
    RunCommand,
    collect_layers,
    engine_options,
    progress_options,
    split_pairs,
    training_options,
)
from adaptkit.errors import RunFailed
from adaptkit.system.imports import uncollected
from adaptkit.system.signals import interruptible

#: `FRESH_SEEDS` of `adaptkit.api.tune`, whose import is slow, as they are written on the command line
SEEDS = "1-5"


@click.command(cls=RunCommand, seeds=SEEDS)
@training_options(SEEDS)
@click.option("--trials", type=int, default=12, metavar="N", help="Number of trials per strategy.  [default: 12]")
@click.option(
    "--space",
    multiple=True,
    metavar="KEY=RANGE",
    help="Range to search: lr=1e-4..1e-1/log or lora.rank=2,4,8; lora.rank=8 fixes it. Repeatable.",
)
@click.option("--search", default="tpe", metavar="tpe|grid", help="Search method.  [default: tpe]")
@click.option(
    "--tuning-seeds",
    default="0",
    metavar="LIST",
    help="Seeds of each trial, different from --seeds.  [default: 0]",
)
@engine_options
@progress_options
def tune(
    tracking_uri: str | None,
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
    **values: Any,
) -> None:
    """Tune strategies with an equal budget, and compare them.

    \b
    Examples:
      adaptkit tune -s full -s head -s lora --trials 12 --seeds 1-5
      adaptkit tune -s lora -s adapter --space lr=1e-4..1e-1/log --space lora.rank=2,4,8 --jobs 2
      adaptkit run -s lora --from-tune RUN_ID --seeds 6-9

    The learning rate and the options of each strategy are tuned. One fifth of the labelled target images is held out to
    score the trials by --metric. Then the best values run on all labelled images with the seeds of --seeds (default:
    1-5). Only these runs use the test sets. If a best value is at the edge of its range, the range is extended, and
    every strategy gets the same number of additional trials. Values set with -o, --lr or a config file are not tuned.
    Run the same command again to continue.
    """
    from adaptkit.plugins.loading import load_plugins

    layers, problems = collect_layers(values)
    engine_settings = split_pairs("--engine-option", engine_options, problems)
    plugins = load_plugins(plugin)

    from adaptkit.cli.views.console import messages, output, print_json, resumable

    console = messages()
    with uncollected():
        from adaptkit.api.tune import TuneRequest, TuneWatch, check_tuning, run_tuning
        from adaptkit.cli.views.tuning import TuningBars, TuningLines, print_next_steps, print_tuned
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
        engine=EngineSettings(engine, jobs, engine_settings),
        tracking_uri=tracking_uri,
        refresh_base=refresh_base,
        feature_cache=not no_feature_cache,
        report=report,
    )
    view = TuningBars(console) if console.is_terminal else TuningLines(console)
    watch = TuneWatch(
        planned=view.planned, notice=view.notice, tell=view.tell, tried=view.tried, tuned=view.tuned, ended=view.ended
    )
    with resumable(console), interruptible(), view:
        outcome = run_tuning(request, TuneWatch() if quiet else watch)
    if as_json:
        print_json(outcome.to_dict())
    else:
        print_tuned(output(), outcome)
        if not quiet:
            print_next_steps(console, outcome)
    if outcome.failed:
        raise RunFailed(*(f"{run.label} seed={run.seed}: {run.error}" for run in outcome.failed))
