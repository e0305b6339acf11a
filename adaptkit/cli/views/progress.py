"""Show the plan and the progress of runs: live bars on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from adaptkit.cli.options import duration
from adaptkit.comparison.records import NO_SOURCE
from adaptkit.events import Epoch, RunResult, RunStart
from adaptkit.experiment.outcome import Plan
from adaptkit.hookspecs import hookimpl
from adaptkit.plugins.ranges import shown_range
from adaptkit.system.streams import printable, printable_line

if TYPE_CHECKING:
    from torch import nn


#: with more classes, the plan shows the range of their images
LISTED_CLASSES = 6


class ProgressLines:
    """Print one line for each epoch; of a run with folds, one line for each fold and one for their means."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @hookimpl
    def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
        """Print the epoch's loss, accuracies and times."""
        place = f"epoch {epoch.number}/{epochs_of(run)}"
        if run.folds > 1:
            if epoch.number < epochs_of(run):
                return
            place = f"mean of {run.folds} folds" if epoch.fold is None else fold_of(run, epoch)
        self.console.print(
            f"[{run.name}] {place}  {figures(epoch)}  {times(epoch)}",
            markup=False,
            soft_wrap=True,
        )

    @hookimpl
    def adaptkit_run_ended(self, run: RunStart, result: RunResult, model: nn.Module) -> None:
        """Print the warnings of the run."""
        print_warnings(self.console, run, result)

    def close(self) -> None:
        """Do nothing: plain lines need no clean-up."""


class ProgressBars:
    """Draw a progress bar for each run, which advances with each epoch."""

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
    def adaptkit_run_started(self, run: RunStart, model: nn.Module) -> None:
        """Add a bar for the run."""
        epochs = epochs_of(run)
        if not epochs:
            self._task = None
            return
        self.progress.start()
        self._task = self.progress.add_task(printable(escape(run.name)), total=epochs * run.folds, figures="")

    @hookimpl
    def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
        """Advance the bar and show the latest loss and accuracies."""
        if self._task is None:
            return
        name, completed = run.name, epoch.number
        if epoch.fold is not None:
            name = f"{run.name} {fold_of(run, epoch)}"
            completed += epoch.fold * epochs_of(run)
        elif run.folds > 1:
            completed = run.folds * epochs_of(run)
        self.progress.update(
            self._task, description=printable(escape(name)), completed=completed, figures=figures(epoch)
        )

    @hookimpl
    def adaptkit_run_ended(self, run: RunStart, result: RunResult, model: nn.Module) -> None:
        """Stop the clock of the finished bar, and print the warnings of the run above the bars."""
        if self._task is not None:
            self.progress.stop_task(self._task)
        print_warnings(self.progress.console, run, result)

    @hookimpl
    def adaptkit_run_failed(self, run: RunStart, error: BaseException) -> None:
        """Mark the bar of a failed run as stopped."""
        if self._task is not None:
            self.progress.update(self._task, description=f"{printable(escape(run.name))} [red]stopped[/]")
            self.progress.stop_task(self._task)

    def close(self) -> None:
        """End the live display; the bars stay visible."""
        self.progress.stop()


def print_warnings(console: Console, run: RunStart, result: RunResult) -> None:
    """Print the signs that a run has not learned."""
    for warning in result.warnings:
        console.print(f"[{run.name}] Warning: {warning}", markup=False, soft_wrap=True)


def epochs_of(run: RunStart) -> int:
    """Return the number of epochs of a run; 0 for a base without a source, which is not trained."""
    if run.kind == "base" and run.params.get("dataset") == NO_SOURCE:
        return 0
    if run.kind == "base":
        return int(run.params["base.epochs"])
    return int(run.params.get("epochs", 1))  # a head is fitted once


def fold_of(run: RunStart, epoch: Epoch) -> str:
    """Return the fold of an epoch as text, counted from 1."""
    return f"fold {(epoch.fold or 0) + 1}/{run.folds}"


def times(epoch: Epoch) -> str:
    """Return the training and evaluation time of an epoch as text."""
    return f"{epoch.seconds - epoch.evaluation_seconds:.2f} s + {epoch.evaluation_seconds:.2f} s evaluation"


def figures(epoch: Epoch) -> str:
    """Return the loss and accuracies of an epoch as text."""
    parts = [f"loss {epoch.loss:.3f}", f"train {100 * epoch.train_accuracy:.1f} %"]
    if epoch.test_accuracy is not None:
        parts.append(f"source {100 * epoch.test_accuracy:.1f} %")
    if epoch.shifted_accuracy is not None:
        parts.append(f"target {100 * epoch.shifted_accuracy:.1f} %")
    if epoch.validation_accuracy is not None:
        parts.append(f"validation {100 * epoch.validation_accuracy:.1f} %")
    return "  ".join(parts)


#: measured error rates that the number of seeds and looks changes; docs/calibration.md has all of them
LOOKING = (
    "Note: decide on labels and seeds before you look. Stopping at the first verdict in five looks, one after each "
    "seed, calls 7 to 11 % of equal strategies different instead of 4 %."
)
ONE_REPEAT = (
    "Note: three seeds (--seeds 0-2) find about twice as many differences as one: with 200 labels, 24 % instead of "
    "12 % of those of 4 points. Decide before you look: five looks, one after each seed, call 7 to 11 % of equal "
    "strategies different instead of 4 %."
)


#: what the plan says about standardized images
STANDARDIZED = {
    None: "",
    "source": ", inputs standardized by the source images",
    "image": ", each image standardized by itself",
}


def _pixels(plan: Plan) -> str:
    """Return the shape of the images, and the size at which the backbone computes if it resizes them."""
    computed = f", computed at {plan.computed_size}" if plan.computed_size else ""
    return f"{plan.channels} x {plan.size} x {plan.size} pixels{computed}, " if plan.size else ""


def print_plan(console: Console, plan: Plan) -> None:
    """Print the plan of an experiment: data, base, runs, strategies, notices and estimated time."""
    has_source = plan.dataset != NO_SOURCE
    if has_source:
        console.print(
            f"Source   {escape(plan.dataset)}: {plan.source_images:,} training, {plan.clean_test_images:,} test",
            soft_wrap=True,
        )
    target = plan.target if plan.shift == "none" else f"{plan.target} under {plan.shift}"
    console.print(f"Target   {escape(target)}: {_use_of_labels(plan)}", soft_wrap=True)
    console.print(classes_line(plan), markup=False, soft_wrap=True)
    if has_source:
        base = "from the cache" if plan.base_cached else "to be trained first"
    else:
        base = "used without training; every strategy trains a new head"
    about = f"{_pixels(plan)}{len(plan.classes):,} classes, on {plan.device} in {plan.precision}"
    about += STANDARDIZED[plan.standardize]
    console.print(f"Base     {escape(plan.backbone)}, {about}; {base}", soft_wrap=True)
    if (plan.base_augment, plan.augment) != ("none", "none"):
        of_base = f"base: {plan.base_augment}; " if has_source else ""
        console.print(f"Augment  {of_base}target: {plan.augment}", markup=False, soft_wrap=True)
    seeds = "seed" if len(plan.seeds) == 1 else "seeds"
    epochs = "1 epoch" if plan.epochs == 1 else f"{plan.epochs} epochs"
    steps = "1 step" if plan.steps == 1 else f"{plan.steps:,} steps"
    length = "a head is fitted once" if all(arm.lr is None for arm in plan.arms) else f"{epochs} ({steps}) each"
    length += "; all classes count equally in the loss" if plan.balanced else ""
    about = f"{', '.join(map(str, plan.seeds))}; {length}; compared by {metrics_text(plan)}"
    console.print(f"Runs     {seeds} {about}", soft_wrap=True)
    if plan.tuning_trials:
        console.print(_tuning(plan), markup=False, soft_wrap=True)
    console.print(_strategies(plan))
    print_notices(console, plan.notices, plan, compared=len(plan.arms))
    if plan.seconds is not None:
        console.print(f"Estimated time: {duration(plan.seconds)} of training and evaluation on this machine.")


def print_data(console: Console, plans: Sequence[Plan]) -> None:
    """Print the images of each class and the metrics of the experiments of a sweep or a tuning."""
    lines = {classes_line(plan): plan.target for plan in plans}
    for line, target in lines.items():
        of_target = f" (target {printable_line(target)})" if len(lines) > 1 else ""
        console.print(f"{line}{of_target}", markup=False, soft_wrap=True)
    metrics = ", or ".join(dict.fromkeys(map(metrics_text, plans)))
    console.print(f"Metric   compared by {metrics}", markup=False, soft_wrap=True)


def print_notices(console: Console, notices: Sequence[str], plan: Plan, *, compared: int) -> None:
    """Print the notices of a plan, and what the numbers of seeds and looks do to verdicts on `compared` settings."""
    for notice in notices:
        console.print(f"Note: {notice}", markup=False, soft_wrap=True)
    # The rates were measured with five folds of independent images.
    if plan.folds == 5 and not (plan.groups or plan.held_out) and compared > 1:
        console.print(ONE_REPEAT if len(plan.seeds) == 1 else LOOKING, markup=False, soft_wrap=True)


def metrics_text(plan: Plan) -> str:
    """Return the metrics of the comparison, the deciding one first."""
    first, *others = plan.metrics
    return f"{first} (also shown: {', '.join(others)})" if others else first


def classes_line(plan: Plan) -> str:
    """Return the images of each class, or their range if there are many classes, and the best constant answer."""
    names = [printable_line(name) for name in plan.classes]
    if len(names) <= LISTED_CLASSES:
        parts = zip(names, plan.training_counts, plan.evaluation_counts, strict=True)
        images = ", ".join(f"{name} {trained:,} / {evaluated:,}" for name, trained, evaluated in parts)
        images += " (images in a training / evaluated)"
    else:
        ranges = (_range(plan.training_counts), _range(plan.evaluation_counts))
        images = "{:,} with {} images each in a training, {} evaluated".format(len(names), *ranges)
    answer = printable_line(plan.constant_answer)
    return f"Classes  {images}; always answering {answer} is right for {100 * plan.constant_accuracy:.1f} %"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _tuning(plan: Plan) -> str:
    """Return the cost of the tuning inside the fits in numbers, and the ranges that it searches."""
    # A fitted head without options has nothing to search.
    arms, fits, trials = sum(bool(arm.searched) for arm in plan.arms), plan.fits, plan.tuning_trials
    ranges = {
        arm.label: ", ".join(f"{key} {shown_range(text)}" for key, text in arm.searched.items())
        for arm in plan.arms
        if arm.searched
    }
    searched = "\n".join(f"         {label}: searches {text}" for label, text in ranges.items())
    return (
        f"Tuning   Each fit tries {trials} configurations of each strategy on a part of its own training images:\n"
        f"         {arms} x {fits} x {trials} = {arms * fits * trials:,} short trainings (strategies x fits x "
        f"configurations)\n{searched}"
    )


def _use_of_labels(plan: Plan) -> str:
    """Return how the labelled target images are used, in numbers."""
    if plan.protocol == "folds":
        groups = f" in {plan.groups:,} groups" if plan.groups else ""
        rest = f"all but one {plan.held_out} at a time" if plan.held_out else f"{plan.folds} folds"
        times = "once" if len(plan.seeds) == 1 else "twice" if len(plan.seeds) == 2 else f"{len(plan.seeds)} times"
        return (
            f"{plan.pool_images:,} labels{groups}, {rest}. Each fit trains on {plan.drawn_images:,} of them; each "
            f"label is predicted {times} by models that have not seen it"
        )
    if plan.protocol == "given":
        return (
            f"each fit trains on {plan.drawn_images:,} of {plan.pool_images:,} labels, and is evaluated on the "
            f"target's own {plan.shifted_test_images:,} test images"
        )
    requested = (plan.shots or 0) * len(plan.classes)
    fewer = "" if plan.drawn_images >= requested else f": at most half of it, {requested:,} were requested"
    return f"{plan.drawn_images:,} training (drawn from {plan.pool_images:,}{fewer}), {plan.shifted_test_images:,} test"


def _strategies(plan: Plan) -> Table:
    """Return a table of the trained parameters of each strategy."""
    caption = f"trainable = head + adapter (added) + base; size of the base: {plan.base_parameters:,}"
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True, caption=caption, caption_justify="left")
    table.add_column("strategy", overflow="fold")
    for heading in ("trainable", "head", "adapter", "base", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("learning rate", justify="right")
    for arm in plan.arms:
        counts = (f"{count:,}" for count in (arm.trainable, arm.head, arm.adapter, arm.base))
        lr = "tuned" if "lr" in arm.searched else "none" if arm.lr is None else f"{arm.lr:g}"
        table.add_row(escape(arm.label), *counts, f"{100 * arm.trainable / arm.parameters:.2f} %", lr)
    return table
