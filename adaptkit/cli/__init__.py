"""The command line: one file a command, loaded when it is called."""

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

from adaptkit.errors import AdaptkitError, Interrupted, suggestion, without_secrets
from adaptkit.system.streams import guarded, printable

#: command -> where it is defined and what it does, so that `--help` imports no command
COMMANDS = {
    "run": ("adaptkit.cli.run:run", "Adapt a base with strategies and track each run."),
    "sweep": ("adaptkit.cli.sweep:sweep", "Run many settings of strategies, and compare them."),
    "tune": ("adaptkit.cli.tune:tune", "Choose learning rates and options with an equal budget, and compare."),
    "resume": ("adaptkit.cli.resume:resume", "Go on with runs that were killed, in their own records."),
    "ui": ("adaptkit.cli.ui:ui", "Open MLflow's page on the runs."),
    "compare": ("adaptkit.cli.compare:compare", "Say from tracked runs which strategy is better, and how sure."),
    "reproduce": (
        "adaptkit.cli.reproduce:reproduce",
        "Run a run again from its record, and say whether it is the same.",
    ),
    "predict": ("adaptkit.cli.predict:predict", "Name what is on pictures with a run's model."),
    "export": ("adaptkit.cli.export:export", "Write a run's model in a format that others read."),
    "import-peft": ("adaptkit.cli.import_peft:import_peft", "Put a PEFT adapter into the store as a run."),
    "strategies": ("adaptkit.cli.listing:strategies", "List strategies and their options."),
    "datasets": ("adaptkit.cli.listing:datasets", "List data sets."),
    "backbones": ("adaptkit.cli.listing:backbones", "List backbones."),
    "shifts": ("adaptkit.cli.listing:shifts", "List shifts."),
    "doctor": ("adaptkit.cli.doctor:doctor", "Say what is wrong here, and how to mend it."),
    "sync": ("adaptkit.cli.sync:sync", "Send to MLflow what it could not be told while it was away."),
    "cache": ("adaptkit.cli.cache:cache", "Show what the cache holds, find what is damaged, make room."),
    "plugins": ("adaptkit.cli.plugins:plugins", "List plugins and what is wrong with them."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and turns expected errors into single lines."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; suggest the nearest name when there is none."""
        if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
            raise click.UsageError(f"unknown command {arguments[0]!r}{suggestion(arguments[0], COMMANDS)}")
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command line and exit: 0 done, 1 a run failed, 2 bad input, 128 + n ended by signal n.

        141, of a pipe that is broken, says that nobody reads the results.
        """
        options["standalone_mode"] = False
        sys.excepthook = _show_traceback
        arguments = list(sys.argv[1:] if args is None else args)
        with guarded(), warnings.catch_warnings():
            warnings.filterwarnings("always", module="adaptkit")
            warnings.showwarning = _show_warning
            try:
                code = super().main(arguments, prog_name, *rest, **options)
                sys.stdout.flush()
            except (AdaptkitError, click.ClickException) as error:
                if "--traceback" in arguments:
                    raise
                _print_problems(error)
                code = error.exit_code
            except click.Abort as error:  # Click's name for an interrupt
                cause = error.__cause__
                if not isinstance(cause, KeyboardInterrupt | None):
                    raise cause from None  # Click takes any EOFError for an interrupt
                for line in ("Interrupted.", *getattr(cause, "__notes__", ())):
                    click.echo(line, err=True)
                code = 128 + (cause.signal_number if isinstance(cause, Interrupted) else signal.SIGINT)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "--version", package_name="adaptkit-vision", prog_name="adaptkit")
@click.option("--traceback", "_", is_flag=True, help="Show where an error comes from.")
@click.pass_context
def main(context: click.Context, _: bool) -> None:
    """Decide how to fine-tune a vision model on little, shifted data.

    \b
    A first session:
      adaptkit run -s lora                 adapt with LoRA, tracked in MLflow
      adaptkit run -s full -s head -s lora --seeds 0-4
      adaptkit compare                     which is better, how sure, at what cost
      adaptkit ui                          look at the runs in MLflow
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
    """Print a traceback as Python does, but for secrets: an error may quote the command line."""
    click.echo(printable(without_secrets("".join(traceback.format_exception(kind, error, place)))), err=True, nl=False)
