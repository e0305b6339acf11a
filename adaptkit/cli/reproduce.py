"""The command that runs a run again and says whether it comes out the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from adaptkit.cli.options import FolderType, json_option, plugin_option
from adaptkit.system.signals import interruptible


@click.command()
@click.argument("run_id")
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"
)
@plugin_option
@click.option("--data-dir", type=FolderType(), metavar="DIR", help="Where data sets are.  [default: as in the run]")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    metavar="auto|cpu|cuda|mps",
    help="Where to compute.  [default: as in the run]",
)
@click.option("--refresh-base", is_flag=True, help="Train the base anew even if the cache has the run's.")
@click.option("--no-feature-cache", is_flag=True, help="Compute what frozen layers give anew each time.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print the results only.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
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
    traceback: bool,
) -> None:
    """Run a finished run again from its record alone, and say whether it comes out the same.

    \b
    Examples:
      adaptkit reproduce RUN_ID
      adaptkit reproduce RUN_ID --refresh-base --json > reproduction.json

    \b
    Compared are every metric (but for seconds and memory), every prediction and the adapter, bit by bit:
      identical         all of it is the same
      within tolerance  close, and computed on other hardware or versions, which are listed
      different         exit code 1, and the first difference is named

    The store is only read. The base is taken from the cache if it is the run's, and else trained anew.
    """
    from adaptkit.cli.run import shown
    from adaptkit.cli.views.console import messages, output
    from adaptkit.cli.views.reproduction import print_reproduction
    from adaptkit.system.imports import uncollected

    with uncollected():
        from adaptkit.api.reproduce import reproduce_run
        from adaptkit.models.trained import given_plugins
        from adaptkit.system.hardware import keep_freed_memory

    console = messages()
    plugins = given_plugins(plugin)
    keep_freed_memory()
    with interruptible(), shown(plugins, console, quiet):
        found = reproduce_run(
            run_id,
            plugins,
            tracking_uri=tracking_uri,
            data_dir=data_dir,
            device=device,
            refresh_base=refresh_base,
            feature_cache=not no_feature_cache,
            notice=lambda line: None if quiet else console.print(line, markup=False, soft_wrap=True),
        )
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        print_reproduction(output(), found)
    if found.verdict == "different":
        sys.exit(1)
