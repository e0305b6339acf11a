"""Show a tuning: what is searched, then bars on a terminal or a line a trial elsewhere, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from adaptkit.cli.views.results import print_findings
from adaptkit.comparison.numbers import NOTHING
from adaptkit.sweeps.engines.tasks import Event
from adaptkit.sweeps.outcome import SweepTrial
from adaptkit.tuning.outcome import Budget, TunedStrategy, TuneOutcome, TunePlan, shown_space, shown_value
from adaptkit.tuning.search import TrialRequest
from adaptkit.tuning.study import StudyTrial


def print_plan(console: Console, plan: TunePlan) -> None:
    """Print what a tuning will do: the budget, and what is searched of each strategy."""
    budget = plan.budget
    seeds = "seed" if len(budget.tuning_seeds) == 1 else "seeds"
    console.print(
        f"Tune     {budget.trials} trials of each strategy by {budget.method}, {budget.epochs} epochs each on "
        f"{budget.training:,} labelled images; {budget.held_back:,} judge "
        f"({seeds} {', '.join(map(str, budget.tuning_seeds))})",
        markup=False,
        soft_wrap=True,
    )
    for strategy, space in plan.spaces.items():
        console.print(f"Search   {strategy}: {_space(space)}", markup=False, soft_wrap=True)
    console.print(
        f"Then     what was chosen, on all labelled images, with seeds {', '.join(map(str, budget.seeds))}",
        markup=False,
        soft_wrap=True,
    )
    for notice in plan.notices:
        console.print(f"Note: {notice}", markup=False, soft_wrap=True)


class TuningLines:
    """Print a line a trial."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> TuningLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is no live display."""

    def planned(self, plan: TunePlan) -> None:
        """Print the plan."""
        print_plan(self.console, plan)

    def notice(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, markup=False, soft_wrap=True)

    def tell(self, event: Event) -> None:
        """Leave out what goes on within a run."""

    def tried(self, asked: TrialRequest, trial: StudyTrial) -> None:
        """Print what came of a trial."""
        self.notice(_line(asked, trial))

    def tuned(self, found: Sequence[TunedStrategy]) -> None:
        """Print what was chosen."""
        for one in found:
            self.notice(f"{one.strategy}: chosen {_values(one)}  validation {100 * one.accuracy:.1f} %")

    def ended(self, record: SweepTrial) -> None:
        """Print what became of a run with what was chosen."""
        name = f"{record.label} seed={record.seed}"
        what = (
            f"{record.status}: {record.error}" if record.accuracy is None else f"shifted {100 * record.accuracy:.1f} %"
        )
        self.notice(f"{name}  {what}")


class TuningBars(TuningLines):
    """Draw a bar a strategy that moves with each trial and shows the best so far, then one for the last runs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[best]}", style="dim"),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._best: dict[str, float] = {}
        self._last: TaskID | None = None
        self._runs = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the live display, leaving the bars."""
        self._progress.stop()

    def planned(self, plan: TunePlan) -> None:
        """Print the plan and begin the bars."""
        super().planned(plan)
        self._runs = len(plan.spaces) * len(plan.budget.seeds)
        self._progress.start()
        self._bars = {
            name: self._progress.add_task(escape(name), total=plan.budget.trials, best="") for name in plan.spaces
        }

    def tried(self, asked: TrialRequest, trial: StudyTrial) -> None:
        """Move the strategy's bar to this trial's number, which counts those of an earlier start."""
        name, bar = asked.space.strategy, self._bars[asked.space.strategy]
        if trial.reason is not None:
            self.console.print(_line(asked, trial), markup=False, soft_wrap=True, style="red")
        self._best[name] = max(self._best.get(name, 0.0), trial.value or 0.0)
        total = max(self._progress.tasks[bar].total or 0, trial.number + 1)
        best = f"best {100 * self._best[name]:.1f} %"
        self._progress.update(bar, completed=trial.number + 1, total=total, best=best)

    def tuned(self, found: Sequence[TunedStrategy]) -> None:
        """Fill the bars and begin that of the last runs."""
        for one in found:
            count = len(one.trials)
            best = f"{_values(one)}: {100 * one.accuracy:.1f} %"
            self._progress.update(self._bars[one.strategy], completed=count, total=count, best=best)
        self._last = self._progress.add_task("on all images", total=self._runs, best="")

    def ended(self, record: SweepTrial) -> None:
        """Move the last bar."""
        if self._last is not None:
            self._progress.update(self._last, advance=1, best=escape(record.label))


def print_tuned(console: Console, outcome: TuneOutcome) -> None:
    """Print the budget, what was searched and chosen of each strategy, and the comparison."""
    budget = outcome.budget
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=_caption(budget), caption_justify="left")
    for heading in ("strategy", "searched", "chosen"):
        table.add_column(heading, overflow="fold")
    for heading in ("trials", "validation"):
        table.add_column(heading, justify="right")
    table.add_column("on the edge", overflow="fold")
    for one in outcome.strategies:
        grown = "".join(
            f"\n(grown from {key} {shown_space(text)})" for key, text in one.first.items() if one.space[key] != text
        )
        edges = ", ".join(f"{key} ({reason})" for key, reason in one.edges.items()) or NOTHING
        table.add_row(
            escape(one.strategy),
            escape(_space(one.space) + grown),
            escape(_values(one)),
            str(len(one.trials)),
            f"{100 * one.accuracy:.1f}",
            escape(edges),
        )
    console.print(table)
    if outcome.comparisons:
        print_findings(console, outcome.comparisons)


def print_way_on(console: Console, outcome: TuneOutcome) -> None:
    """Print how to use what was chosen, and how to look at the runs."""
    lines = [
        f"Run what was chosen:  adaptkit run --from-tune {outcome.parent_run_id}, with the other settings given here",
        f"Look at the runs:     {outcome.ui_command or outcome.ui_url}",
    ]
    if outcome.ui_command is not None:
        lines.append(f"then open             {outcome.ui_url}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _caption(budget: Budget) -> str:
    seeds = f" x {len(budget.tuning_seeds)} seeds" if len(budget.tuning_seeds) > 1 else ""
    more = f" ({budget.given - budget.trials} of them since a range grew)" if budget.given > budget.trials else ""
    return (
        f"{budget.given} trials of each strategy{more}, {budget.epochs} epochs{seeds} on {budget.training:,} labelled "
        f"images; validation: accuracy in % on {budget.held_back:,} others"
    )


def _space(space: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {shown_space(text)}" for key, text in space.items())


def _values(one: TunedStrategy) -> str:
    return ", ".join(f"{key} {shown_value(value)}" for key, value in one.chosen.items())


def _line(asked: TrialRequest, trial: StudyTrial) -> str:
    values = " ".join(f"{key}={shown_value(value)}" for key, value in trial.values.items())
    what = f"failed: {trial.reason}" if trial.reason else f"validation {100 * (trial.value or 0.0):.1f} %"
    return f"{asked.space.strategy} trial {trial.number + 1}: {values}  {what}"
