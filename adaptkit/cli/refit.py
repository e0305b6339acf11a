"""`adaptkit refit`: train the chosen strategy on all labels."""

from __future__ import annotations

from pathlib import Path

import click

from adaptkit.cli.options import (
    calibrate_option,
    feature_cache_option,
    plugin_option,
    progress_options,
    recorded_options,
    store_option,
)
from adaptkit.system.signals import interruptible


@click.command()
@click.argument("run_id", metavar="RUN|COMPARISON")
@click.option(
    "--strategy",
    "-s",
    metavar="NAME",
    help="Strategy to train.  [default: that of the run, or the best one of the comparison]",
)
@store_option
@plugin_option
@recorded_options
@feature_cache_option
@calibrate_option
@click.option("--dry-run", is_flag=True, help="Check data and base and print what would be trained, without training.")
@progress_options
def refit(
    run_id: str,
    strategy: str | None,
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    data_dir: Path | None,
    device: str | None,
    no_feature_cache: bool,
    calibrate: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a strategy on all labels, as the model to use.

    \b
    Examples:
      adaptkit refit COMPARISON
      adaptkit refit COMPARISON --strategy lora
      adaptkit refit COMPARISON --calibrate
      adaptkit refit RUN_ID --json

    The model trains on all labelled target images, those of the test set included, from the recorded base and with the
    recorded settings. It is recorded as a run of kind final, which `predict`, `export` and `load` take. Nothing is left
    to measure its accuracy with: the accuracy to expect is that of the comparison.
    Without --strategy, the comparison must show one strategy to be better than all others.
    """
    from adaptkit.cli.run import show_progress
    from adaptkit.cli.views.console import messages, output, print_json, print_line
    from adaptkit.cli.views.refit import print_refit, print_use
    from adaptkit.system.imports import uncollected

    with uncollected():
        from adaptkit.api.refit import RefitRequest, refit_run
        from adaptkit.models.trained import given_plugins
        from adaptkit.system.hardware import keep_freed_memory

    console = messages()
    plugins = given_plugins(plugin)
    keep_freed_memory()
    with interruptible(), show_progress(plugins, console, quiet):
        summary = refit_run(
            RefitRequest(
                run=run_id,
                plugins=plugins,
                strategy=strategy,
                tracking_uri=tracking_uri,
                data_dir=data_dir,
                device=device,
                feature_cache=not no_feature_cache,
                calibrate=calibrate,
                dry_run=dry_run,
            ),
            notice=lambda line: None if quiet else print_line(console, line),
        )
    if as_json:
        print_json(summary.to_dict())
        return
    print_refit(output(), summary)
    if not quiet:
        print_use(console, summary)
