"""Show runs as they go: a bar with live figures on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from adaptkit.comparison import NO_SOURCE
from adaptkit.contracts import Epoch, Run, RunResult
from adaptkit.hookspecs import hookimpl
from adaptkit.printing import printable

if TYPE_CHECKING:
    from torch import nn


class ProgressLines:
    """Print a line an epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @hookimpl
    def adaptkit_epoch_ended(self, run: Run, epoch: Epoch) -> None:
        """Print the epoch's figures."""
        self.console.print(
            f"[{run.name}] epoch {epoch.number}/{epochs_of(run)}  {figures(epoch)}  {times(epoch)}",
            markup=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        """Do nothing: there is no live display."""


class ProgressBars:
    """Draw a bar a run that moves with each epoch."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}", style="dim"),
            console=console,
        )
        self._task: TaskID | None = None

    @hookimpl
    def adaptkit_run_started(self, run: Run, model: nn.Module) -> None:
        """Begin the run's bar."""
        epochs = epochs_of(run)
        if not epochs:
            self._task = None
            return
        self.progress.start()
        self._task = self.progress.add_task(printable(escape(run.name)), total=epochs, figures="")

    @hookimpl
    def adaptkit_epoch_ended(self, run: Run, epoch: Epoch) -> None:
        """Move the bar and show the latest figures."""
        if self._task is not None:
            self.progress.update(self._task, completed=epoch.number, figures=figures(epoch))

    @hookimpl
    def adaptkit_run_ended(self, run: Run, result: RunResult, model: nn.Module) -> None:
        """Leave the finished bar as it is."""
        if self._task is not None:
            self.progress.stop_task(self._task)

    @hookimpl
    def adaptkit_run_failed(self, run: Run, error: BaseException) -> None:
        """Mark the bar of a run that stopped early."""
        if self._task is not None:
            self.progress.update(self._task, description=f"{printable(escape(run.name))} [red]stopped[/]")
            self.progress.stop_task(self._task)

    def close(self) -> None:
        """End the live display, leaving the bars."""
        self.progress.stop()


def epochs_of(run: Run) -> int:
    """Return how many epochs a run will take; a base without a source is not trained."""
    if run.kind == "base" and run.params.get("dataset") == NO_SOURCE:
        return 0
    return int(run.params["base.epochs" if run.kind == "base" else "epochs"])


def times(epoch: Epoch) -> str:
    """Return how long an epoch trained and evaluated."""
    return f"{epoch.seconds - epoch.evaluation_seconds:.2f} s + {epoch.evaluation_seconds:.2f} s evaluation"


def figures(epoch: Epoch) -> str:
    """Return an epoch's loss and accuracies as one line."""
    parts = [f"loss {epoch.loss:.3f}", f"train {100 * epoch.train_accuracy:.1f} %"]
    if epoch.test_accuracy is not None:
        parts.append(f"clean {100 * epoch.test_accuracy:.1f} %")
    if epoch.shifted_accuracy is not None:
        word = "target" if epoch.test_accuracy is None else "shifted"
        parts.append(f"{word} {100 * epoch.shifted_accuracy:.1f} %")
    if epoch.validation_accuracy is not None:
        parts.append(f"validation {100 * epoch.validation_accuracy:.1f} %")
    return "  ".join(parts)
