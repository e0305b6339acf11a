"""`adaptkit reproduce`: re-run a recorded run and compare the results."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adaptkit.cli.options import cache_options, plugin_option, progress_options, recorded_options, store_option
from adaptkit.system.signals import interruptible


@click.command()
@click.argument("run_id")
@store_option
@plugin_option
@recorded_options
@cache_options
@progress_options
def reproduce(
    run_id: str,
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    data_dir: Path | None,
    device: str | None,
    refresh_base: bool,
    no_feature_cache: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Re-run a recorded run and check that the results match.

    \b
    Examples:
      adaptkit reproduce RUN_ID
      adaptkit reproduce RUN_ID --refresh-base --json > reproduction.json

    \b
    Every metric (except times and memory), every prediction and the adapter are compared bit by bit:
      identical         everything is equal
      within tolerance  close; hardware or versions differ, and are listed
      different         exit code 1; the first difference is printed

    The run must be finished. Nothing is written to the store. The base of the run is loaded from the cache; if it is
    not in the cache, it is trained again.
    """
    from adaptkit.cli.run import show_progress
    from adaptkit.cli.views.console import messages, output, print_json, print_line
    from adaptkit.cli.views.reproduction import print_reproduction
    from adaptkit.system.imports import uncollected

    with uncollected():
        from adaptkit.api.reproduce import ReproduceRequest, reproduce_run
        from adaptkit.models.trained import given_plugins
        from adaptkit.system.hardware import keep_freed_memory

    console = messages()
    plugins = given_plugins(plugin)
    keep_freed_memory()
    with interruptible(), show_progress(plugins, console, quiet):
        reproduction = reproduce_run(
            ReproduceRequest(
                run=run_id,
                plugins=plugins,
                tracking_uri=tracking_uri,
                data_dir=data_dir,
                device=device,
                refresh_base=refresh_base,
                feature_cache=not no_feature_cache,
            ),
            notice=lambda line: None if quiet else print_line(console, line),
        )
    if as_json:
        print_json(reproduction.to_dict())
    else:
        print_reproduction(output(), reproduction)
    if reproduction.verdict == "different":
        sys.exit(1)
