"""Show a tuning run: its plan, its progress (bars on a terminal, lines elsewhere), and the chosen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from adaptkit.cli.views.console import print_line
from adaptkit.cli.views.progress import print_data, print_notices
from adaptkit.cli.views.results import print_findings
from adaptkit.cli.views.trials import print_trial_warnings
from adaptkit.comparison.numbers import NOTHING, amount, counted, value_unit, with_value_unit
from adaptkit.comparison.records import Metric
from adaptkit.experiment.trial_scores import preference
from adaptkit.plugins.ranges import shown_range
from adaptkit.sweeps.engines.tasks import Event
from adaptkit.sweeps.outcome import SweepTrial
from adaptkit.tuning.outcome import Budget, TunedStrategy, TuneOutcome, TunePlan, shown_value
from adaptkit.tuning.search import TrialRequest
from adaptkit.tuning.study import StudyTrial


def print_plan(console: Console, plan: TunePlan) -> None:
    """Print the budget of a tuning run and the search space of each strategy."""
    budget = plan.budget
    seeds = "seed" if len(budget.tuning_seeds) == 1 else "seeds"
    print_line(
        console,
        f"Tune     {budget.trials} trials of each strategy by {budget.method}, {counted(budget.epochs, 'epoch')} each "
        f"on {budget.training:,} labelled images; {budget.held_back:,} for validation "
        f"({seeds} {', '.join(map(str, budget.tuning_seeds))}), scored by {budget.metric.label}",
    )
    for strategy, space in plan.spaces.items():
        print_line(console, f"Search   {strategy}: {_space(space)}")
    print_line(
        console,
        f"Then     the best values, on all labelled images, with seeds {', '.join(map(str, budget.seeds))}",
    )
    print_data(console, [plan.experiment])
    print_notices(console, plan.notices, plan.experiment, compared=len(plan.spaces))


class TuningLines:
    """Print a line for each trial."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.metric: Metric | None = None

    def __enter__(self) -> TuningLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: lines need no cleanup."""

    def planned(self, plan: TunePlan) -> None:
        """Print the plan."""
        self.metric = plan.budget.metric
        print_plan(self.console, plan)

    def notice(self, line: str) -> None:
        """Print a line."""
        print_line(self.console, line)

    def tell(self, event: Event) -> None:
        """Ignore events within a run."""

    def tried(self, request: TrialRequest, trial: StudyTrial) -> None:
        """Print the result of a trial."""
        self.notice(self._line(request, trial))

    def tuned(self, tuned: Sequence[TunedStrategy]) -> None:
        """Print the chosen values."""
        for strategy in tuned:
            self.notice(f"{strategy.strategy}: chosen {_values(strategy)}  {self._scored(strategy.score)}")

    def ended(self, record: SweepTrial) -> None:
        """Print the result of a run with the chosen values."""
        name = f"{record.label} seed={record.seed}"
        result = (
            f"{record.status}: {record.error}"
            if record.accuracy is None
            else f"target accuracy {100 * record.accuracy:.1f} %"
        )
        self.notice(f"{name}  {result}")

    def _line(self, request: TrialRequest, trial: StudyTrial) -> str:
        values = " ".join(f"{key}={shown_value(value)}" for key, value in trial.values.items())
        result = f"failed: {trial.reason}" if trial.reason else self._scored(trial.score)
        return f"{request.space.strategy} trial {trial.number + 1}: {values}  {result}"

    def _scored(self, score: float | None, word: str = "validation") -> str:
        assert self.metric is not None, "the plan comes first"
        name = "" if self.metric.label == "accuracy" else f"{self.metric.label} "
        return f"{word} {name}{with_value_unit(self.metric, score)}"


class TuningBars(TuningLines):
    """Draw a bar for the trials of each strategy, with the best result so far, and a bar for the final runs."""

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
        self._best: dict[str, StudyTrial] = {}
        self._last: TaskID | None = None
        self._runs = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live display; the bars stay visible."""
        self._progress.stop()

    def planned(self, plan: TunePlan) -> None:
        """Print the plan and start the bars."""
        super().planned(plan)
        self._runs = len(plan.spaces) * len(plan.budget.seeds)
        self._progress.start()
        self._bars = {
            name: self._progress.add_task(escape(name), total=plan.budget.trials, best="") for name in plan.spaces
        }

    def tried(self, request: TrialRequest, trial: StudyTrial) -> None:
        """Advance the bar of the strategy to the number of this trial, which also counts earlier trials."""
        name, bar = request.space.strategy, self._bars[request.space.strategy]
        metric = self.metric
        assert metric is not None, "the plan comes first"
        if trial.reason is not None:
            print_line(self.console, self._line(request, trial), style="red")
        known = [self._best[name]] if name in self._best else []
        best_trial = min([*known, trial], key=lambda one: preference(metric, one.score, one.loss))
        self._best[name] = best_trial
        total = max(self._progress.tasks[bar].total or 0, trial.number + 1)
        best = self._scored(best_trial.score, "best")
        self._progress.update(bar, completed=trial.number + 1, total=total, best=best)

    def tuned(self, tuned: Sequence[TunedStrategy]) -> None:
        """Fill the bars and start the bar of the final runs."""
        for strategy in tuned:
            count = len(strategy.trials)
            best = f"{_values(strategy)}: {self._scored(strategy.score)}"
            self._progress.update(self._bars[strategy.strategy], completed=count, total=count, best=best)
        self._last = self._progress.add_task("on all images", total=self._runs, best="")

    def ended(self, record: SweepTrial) -> None:
        """Advance the bar of the final runs."""
        if self._last is not None:
            self._progress.update(self._last, advance=1, best=escape(record.label))


def print_tuned(console: Console, outcome: TuneOutcome) -> None:
    """Print the search space and the chosen values of each strategy, the budget, and the comparison."""
    budget = outcome.budget
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=_caption(budget), caption_justify="left")
    for heading in ("strategy", "searched", "chosen"):
        table.add_column(heading, overflow="fold")
    for heading in ("trials", "validation"):
        table.add_column(heading, justify="right")
    table.add_column("at the edge", overflow="fold")
    for strategy in outcome.strategies:
        grown = "".join(
            f"\n(extended from {key} {shown_range(text)})"
            for key, text in strategy.first.items()
            if strategy.space[key] != text
        )
        edges = ", ".join(f"{key} ({reason})" for key, reason in strategy.edges.items()) or NOTHING
        table.add_row(
            escape(strategy.strategy),
            escape(_space(strategy.space) + grown),
            escape(_values(strategy)),
            str(len(strategy.trials)),
            amount(budget.metric, strategy.score),
            escape(edges),
        )
    console.print(table)
    if outcome.comparisons:
        print_findings(console, outcome.comparisons)
    print_trial_warnings(console, outcome.runs)


def print_next_steps(console: Console, outcome: TuneOutcome) -> None:
    """Print how to run the chosen values, and how to open the runs in MLflow."""
    lines = [
        f"Run the best values:  adaptkit run --from-tune {outcome.parent_run_id}, with your other options",
        f"Look at the runs:     {outcome.ui_command or outcome.ui_url}",
    ]
    if outcome.ui_command is not None:
        lines.append(f"then open             {outcome.ui_url}")
    for line in lines:
        print_line(console, line)


def _caption(budget: Budget) -> str:
    seeds = f" x {len(budget.tuning_seeds)} seeds" if len(budget.tuning_seeds) > 1 else ""
    more = f" ({budget.given - budget.trials} added because a range grew)" if budget.given > budget.trials else ""
    epochs, unit = counted(budget.epochs, "epoch"), value_unit(budget.metric)
    scores = f"{budget.metric.label} in {unit}" if unit else budget.metric.label
    return (
        f"{budget.given} trials of each strategy{more}, {epochs}{seeds} on {budget.training:,} labelled "
        f"images; validation: {scores} on {budget.held_back:,} held-out images"
    )


def _space(space: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {shown_range(text)}" for key, text in space.items())


def _values(tuned: TunedStrategy) -> str:
    return ", ".join(f"{key} {shown_value(value)}" for key, value in tuned.chosen.items())
