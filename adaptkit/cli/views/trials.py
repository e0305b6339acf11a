"""Show the trials of a sweep: its plan, then a live table on a terminal or a line a trial elsewhere, and its end."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from adaptkit.cli.options import duration
from adaptkit.sweeps.engines.tasks import EpochEnded, Event, Task
from adaptkit.sweeps.outcome import SweepOutcome, SweepPlan, SweepTrial

#: rows of the live table for the best so far, and trials of a printed plan
BEST, PLANNED = 5, 60
WORDS = {"finished": "finished", "found": "finished before", "failed": "failed", "left": "left"}


def print_sweep_plan(console: Console, plan: SweepPlan, every: bool = False) -> None:
    """Print what a sweep will do: its grid and how many trials are in which state, or every trial."""
    seeds = f"seeds {', '.join(map(str, plan.seeds))}" if len(plan.seeds) > 1 else f"seed {plan.seeds[0]}"
    cells = len(plan.trials) // len(plan.seeds)
    console.print(f"Sweep    {', '.join(plan.strategies)}; {seeds}", markup=False, soft_wrap=True)
    for key, values in plan.grid.items():
        console.print(f"Grid     {key} = {', '.join(map(_shown, values))}", markup=False, soft_wrap=True)
    counts = plan.counts
    states = ", ".join(f"{counts[state]} {WORDS[state]}" for state in ("found", "failed", "left") if counts[state])
    about = f" ({states})" if set(counts) != {"left"} else ""
    console.print(f"Trials   {cells} settings x {len(plan.seeds)} = {len(plan.trials)}{about}", soft_wrap=True)
    if every:
        table = _table("#", "strategy", "seed", "state")
        for trial in plan.trials:
            table.add_row(str(trial.number), escape(trial.label), str(trial.seed), WORDS[trial.status])
        console.print(table)
    for notice in plan.notices:
        console.print(f"Note: {notice}", markup=False, soft_wrap=True)
    if plan.seconds is not None:
        bases = f", {plan.bases} base{'s' * (plan.bases > 1)} included" if plan.bases else ""
        console.print(
            f"Estimated time: {duration(plan.seconds)} of training and evaluation on this machine, one trial after "
            f"the other{bases}; recording a trial takes about a second more.",
            soft_wrap=True,
        )


class TrialLines:
    """Print a line a trial."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._count = 0
        self._total = 0

    def __enter__(self) -> TrialLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is no live display."""

    def planned(self, plan: SweepPlan) -> None:
        """Print the plan."""
        self._total = plan.counts["left"]
        print_sweep_plan(self.console, plan)

    def tell(self, event: Event) -> None:
        """Leave out what goes on within a trial."""

    def ended(self, record: SweepTrial) -> None:
        """Print what became of a trial."""
        self._count += 1
        self.console.print(f"[{self._count}/{self._total}] {_line(record)}", markup=False, soft_wrap=True)


class TrialTable:
    """Draw a table that moves: states, running trials, the best so far, the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._plan: SweepPlan | None = None
        self._counts: Counter[str] = Counter()
        self._running: dict[int, tuple[Task, float, int]] = {}
        self._done: list[SweepTrial] = []
        self._start = 0.0
        # Last: it draws itself at once.
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> TrialTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the live display; failed trials have left a line each."""
        self._live.stop()

    def planned(self, plan: SweepPlan) -> None:
        """Print the plan and begin the table."""
        print_sweep_plan(self.console, plan)
        self._plan, self._counts, self._start = plan, Counter(plan.counts), time.monotonic()
        if self._counts["left"]:
            self._live.start()

    def tell(self, event: Event) -> None:
        """Note what goes on within a trial."""
        task = event.task
        _, start, _ = self._running.get(task.number, (task, time.monotonic(), 0))
        self._running[task.number] = (task, start, event.epoch.number if isinstance(event, EpochEnded) else 0)

    def ended(self, record: SweepTrial) -> None:
        """Move a trial from the running ones to those that are done."""
        self._running.pop(record.number, None)
        self._counts["left"] -= 1
        self._counts[record.status] += 1
        self._done.append(record)
        if record.status == "failed":
            self.console.print(_line(record), markup=False, soft_wrap=True, style="red")

    def _draw(self) -> Group:
        plan = self._plan
        table = _table("trial", "state", "shifted")
        for task, start, epoch in list(self._running.values()):
            epochs = task.params["epochs"]
            state = f"epoch {epoch}/{epochs}, {time.monotonic() - start:.0f} s"
            table.add_row(escape(f"{task.label} seed={task.params['seed']}"), state, "", style="bold")
        scored = [record for record in self._done if record.accuracy is not None]
        for record in sorted(scored, key=lambda record: -(record.accuracy or 0))[:BEST]:
            table.add_row(escape(f"{record.label} seed={record.seed}"), "", f"{100 * (record.accuracy or 0):.1f}")
        total = len(plan.trials) if plan is not None else 0
        states = ", ".join(f"{self._counts[state]} {word}" for state, word in WORDS.items() if self._counts[state])
        return Group(
            Text(f"{total} trials: {states}{self._time_left()}; the running ones, and the best so far:"), table
        )

    def _time_left(self) -> str:
        if not self._done or not self._counts["left"]:
            return ""
        passed = time.monotonic() - self._start
        return f"; about {duration(passed / len(self._done) * self._counts['left'])} left"


def print_trials(console: Console, outcome: SweepOutcome) -> None:
    """Print how many trials are in which state, and why those that failed did."""
    counts = outcome.counts
    states = ", ".join(f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state])
    console.print(f"{len(outcome.trials)} trials: {states}", markup=False, soft_wrap=True)
    if counts["failed"]:
        table = _table("failed trial", "reason")
        for trial in outcome.failed[:PLANNED]:
            table.add_row(escape(f"{trial.label} seed={trial.seed}"), escape(trial.error or ""))
        console.print(table)
        if (more := counts["failed"] - PLANNED) > 0:
            console.print(f"and {more} more: see --json")
    if counts["left"]:
        console.print("The same command goes on with those that are left.")


def _line(record: SweepTrial) -> str:
    name = f"{record.label} seed={record.seed}"
    if record.accuracy is None:
        return f"{name}  {record.status}: {record.error}"
    return f"{name}  shifted {100 * record.accuracy:.1f} %"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
