"""Show a sweep: plan, progress (a live table on a terminal, lines elsewhere) and states of the trials."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from adaptkit.cli.options import duration
from adaptkit.cli.views.console import print_line
from adaptkit.cli.views.progress import print_data, print_notices
from adaptkit.comparison.numbers import counted
from adaptkit.events import Epoch
from adaptkit.sweeps.engines.tasks import EpochEnded, Event, Task
from adaptkit.sweeps.outcome import SweepOutcome, SweepPlan, SweepTrial

#: number of best trials in the live table, and of failed trials and of warnings at the end
BEST, PLANNED = 5, 60
WORDS = {"finished": "finished", "found": "finished before", "failed": "failed", "left": "left"}


def print_sweep_plan(console: Console, plan: SweepPlan, every: bool = False) -> None:
    """Print the grid of a sweep and the number of trials in each state; with `every`, print every trial."""
    seeds = f"seeds {', '.join(map(str, plan.seeds))}" if len(plan.seeds) > 1 else f"seed {plan.seeds[0]}"
    cells = len(plan.trials) // len(plan.seeds)
    print_line(console, f"Sweep    {', '.join(plan.strategies)}; {seeds}")
    for key, values in plan.grid.items():
        print_line(console, f"Grid     {key} = {', '.join(map(_shown, values))}")
    print_data(console, plan.experiments)
    counts = plan.counts
    states = ", ".join(f"{counts[state]} {WORDS[state]}" for state in ("found", "failed", "left") if counts[state])
    done = f" ({states})" if set(counts) != {"left"} else ""
    console.print(
        f"Trials   {counted(cells, 'setting')} x {len(plan.seeds)} = {len(plan.trials)}{done}", soft_wrap=True
    )
    if every:
        table = _table("#", "strategy", "seed", "state")
        for trial in plan.trials:
            table.add_row(str(trial.number), escape(trial.label), str(trial.seed), WORDS[trial.status])
        console.print(table)
    print_notices(console, plan.notices, plan.experiments[0], compared=cells)
    if plan.seconds is not None:
        bases = f", {plan.bases} base{'s' * (plan.bases > 1)} included" if plan.bases else ""
        console.print(
            f"Estimated time: {duration(plan.seconds)} of training and evaluation on this machine, one trial at a "
            f"time{bases}; recording takes about one second more per trial.",
            soft_wrap=True,
        )


class TrialLines:
    """Print a line for each trial."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._count = 0
        self._total = 0

    def __enter__(self) -> TrialLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: lines need no cleanup."""

    def planned(self, plan: SweepPlan) -> None:
        """Print the plan."""
        self._total = plan.counts["left"]
        print_sweep_plan(self.console, plan)

    def tell(self, event: Event) -> None:
        """Ignore events within a trial."""

    def ended(self, record: SweepTrial) -> None:
        """Print the result of a trial."""
        self._count += 1
        print_line(self.console, f"[{self._count}/{self._total}] {_line(record)}")


class TrialTable:
    """Draw a live table of the running and the best trials, with counts of states and the remaining time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._plan: SweepPlan | None = None
        self._counts: Counter[str] = Counter()
        self._running: dict[int, tuple[Task, float, Epoch | None]] = {}
        self._done: list[SweepTrial] = []
        self._start = 0.0
        # Created last, because it draws immediately.
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> TrialTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live table. The lines of failed trials stay."""
        self._live.stop()

    def planned(self, plan: SweepPlan) -> None:
        """Print the plan and start the live table."""
        print_sweep_plan(self.console, plan)
        self._plan, self._counts, self._start = plan, Counter(plan.counts), time.monotonic()
        if self._counts["left"]:
            self._live.start()

    def tell(self, event: Event) -> None:
        """Record the epoch of a running trial."""
        task = event.task
        _, start, _ = self._running.get(task.number, (task, time.monotonic(), None))
        self._running[task.number] = (task, start, event.epoch if isinstance(event, EpochEnded) else None)

    def ended(self, record: SweepTrial) -> None:
        """Move a trial from the running to the ended trials."""
        self._running.pop(record.number, None)
        self._counts["left"] -= 1
        self._counts[record.status] += 1
        self._done.append(record)
        if record.status == "failed":
            print_line(self.console, _line(record), style="red")

    def _draw(self) -> Group:
        plan = self._plan
        table = _table("trial", "state", "target")
        for task, start, epoch in list(self._running.values()):
            number = epoch.number if epoch is not None else 0
            fold = f"fold {epoch.fold + 1}, " if epoch is not None and epoch.fold is not None else ""
            state = f"{fold}epoch {number}/{task.params['epochs']}, {time.monotonic() - start:.0f} s"
            table.add_row(escape(f"{task.label} seed={task.params['seed']}"), state, "", style="bold")
        scored = [record for record in self._done if record.accuracy is not None]
        for record in sorted(scored, key=lambda record: -(record.accuracy or 0))[:BEST]:
            table.add_row(escape(f"{record.label} seed={record.seed}"), "", f"{100 * (record.accuracy or 0):.1f}")
        total = len(plan.trials) if plan is not None else 0
        states = ", ".join(f"{self._counts[state]} {word}" for state, word in WORDS.items() if self._counts[state])
        return Group(
            Text(f"{counted(total, 'trial')}: {states}{self._time_left()}; running trials and the best so far:"), table
        )

    def _time_left(self) -> str:
        if not self._done or not self._counts["left"]:
            return ""
        passed = time.monotonic() - self._start
        return f"; about {duration(passed / len(self._done) * self._counts['left'])} left"


def print_trials(console: Console, outcome: SweepOutcome) -> None:
    """Print the number of trials in each state, the reasons for failures, and the warnings."""
    counts = outcome.counts
    states = ", ".join(f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state])
    print_line(console, f"{counted(len(outcome.trials), 'trial')}: {states}")
    if counts["failed"]:
        table = _table("failed trial", "reason")
        for trial in outcome.failed[:PLANNED]:
            table.add_row(escape(f"{trial.label} seed={trial.seed}"), escape(trial.error or ""))
        console.print(table)
        if (more := counts["failed"] - PLANNED) > 0:
            console.print(f"and {more} more: see --json")
    print_trial_warnings(console, outcome.trials)
    if counts["left"]:
        console.print("Run the same command again to continue with the remaining trials.")


def print_trial_warnings(console: Console, trials: Sequence[SweepTrial]) -> None:
    """Print the signs that trials have not learned."""
    lines = [f"Warning: {trial.label} seed={trial.seed}: {warning}" for trial in trials for warning in trial.warnings]
    for line in lines[:PLANNED]:
        print_line(console, line)
    if (more := len(lines) - PLANNED) > 0:
        console.print(f"and {more} more warnings: see --json")


def _line(record: SweepTrial) -> str:
    name = f"{record.label} seed={record.seed}"
    if record.accuracy is None:
        return f"{name}  {record.status}: {record.error}"
    return f"{name}  target accuracy {100 * record.accuracy:.1f} %"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
