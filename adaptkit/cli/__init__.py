"""The command line: one file per command, imported when the command is called."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click

from adaptkit.cli.options import traceback_option
from adaptkit.errors import AdaptkitError, Interrupted, suggestion, without_secrets
from adaptkit.system.streams import guarded, printable

#: command -> its module and function, and the first line of its help, so that `--help` imports no command
COMMANDS = {
    "run": ("adaptkit.cli.run:run", "Adapt a base model with strategies and track each run."),
    "sweep": ("adaptkit.cli.sweep:sweep", "Run strategies over a grid of settings, and compare them."),
    "tune": ("adaptkit.cli.tune:tune", "Tune strategies with an equal budget, and compare them."),
    "resume": ("adaptkit.cli.resume:resume", "Resume interrupted runs."),
    "ui": ("adaptkit.cli.ui:ui", "Open the runs in MLflow."),
    "compare": (
        "adaptkit.cli.compare:compare",
        "Compare tracked runs: which strategy is better, and how certain that is.",
    ),
    "refit": ("adaptkit.cli.refit:refit", "Train a strategy on all labels, as the model to use."),
    "reproduce": ("adaptkit.cli.reproduce:reproduce", "Re-run a recorded run and check that the results match."),
    "predict": ("adaptkit.cli.predict:predict", "Classify images with the model of a run."),
    "export": ("adaptkit.cli.export:export", "Export the model of a run to another format."),
    "import-peft": ("adaptkit.cli.import_peft:import_peft", "Import a LoRA adapter of Hugging Face PEFT as a run."),
    "strategies": ("adaptkit.cli.listing:strategies", "List strategies, or show the options of one."),
    "datasets": ("adaptkit.cli.listing:datasets", "List data sets."),
    "backbones": ("adaptkit.cli.listing:backbones", "List backbones, or show the options of one."),
    "shifts": ("adaptkit.cli.listing:shifts", "List shifts with their amounts."),
    "metrics": ("adaptkit.cli.listing:metrics", "List metrics, which score the predictions of runs."),
    "engines": ("adaptkit.cli.listing:engines", "List engines, which run the trials of sweeps."),
    "doctor": ("adaptkit.cli.doctor:doctor", "Diagnose problems with this installation and suggest fixes."),
    "sync": (
        "adaptkit.cli.sync:sync",
        "Upload results that were queued while the tracking server was unreachable.",
    ),
    "cache": ("adaptkit.cli.cache:cache", "List, verify or clear the cache."),
    "plugins": ("adaptkit.cli.plugins:plugins", "List, check or create plugins."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and prints each expected problem on one line."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order in which a new user needs them."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import a command. Return None for an unknown name."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Suggest the nearest name for an unknown one."""
        if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
            raise click.UsageError(f"unknown command {arguments[0]!r}{suggestion(arguments[0], COMMANDS)}")
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command line and exit with its code.

        The exit code is 0 for success, 1 if a run failed, 2 for invalid input, and 128 + n if signal n ended the
        command. For example, 141 (SIGPIPE) means that the reader of standard output closed the pipe.
        """
        options["standalone_mode"] = False
        sys.excepthook = _show_traceback
        arguments = list(sys.argv[1:] if args is None else args)
        with guarded(), warnings.catch_warnings():
            # Only warnings of adaptkit: Python hides those of others that are for developers.
            warnings.filterwarnings("always", category=UserWarning, module=r"adaptkit(\.|$)")
            warnings.showwarning = _show_warning
            try:
                code = super().main(arguments, prog_name, *rest, **options)
                sys.stdout.flush()
            except (AdaptkitError, click.ClickException) as error:
                if "--traceback" in arguments:
                    raise
                _print_problems(error)
                code = error.exit_code
            except click.Abort as error:  # Click raises this for an interrupt
                cause = error.__cause__
                if not isinstance(cause, KeyboardInterrupt | None):
                    raise cause from None  # Click raises Abort for any EOFError, too
                for line in ("Interrupted.", *getattr(cause, "__notes__", ())):
                    click.echo(line, err=True)
                code = 128 + (cause.signal_number if isinstance(cause, Interrupted) else signal.SIGINT)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "--version", package_name="adaptkit-vision", prog_name="adaptkit")
@traceback_option
@click.pass_context
def main(context: click.Context) -> None:
    """Decide how to fine-tune a vision model on a few labelled images of a new domain.

    \b
    Examples:
      adaptkit run -s lora                 adapt with LoRA, tracked in MLflow
      adaptkit run -s full -s head -s lora --seeds 0-4
      adaptkit compare                     which strategy is better, and at what cost
      adaptkit ui                          open the runs in MLflow
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _print_problems(error: AdaptkitError | click.ClickException) -> None:
    problems = error.problems if isinstance(error, AdaptkitError) else (error.format_message(),)
    for problem in problems:
        click.echo(f"Error: {printable(without_secrets(' '.join(problem.split())))}", err=True)


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
    click.echo(f"Warning: {printable(without_secrets(str(message)))}", err=True)


def _show_traceback(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    """Print a traceback without secrets, because an error may quote the command line."""
    click.echo(printable(without_secrets("".join(traceback.format_exception(kind, error, place)))), err=True, nl=False)
