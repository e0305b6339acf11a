"""What a tuning plans and finds, as typed records: the same for Python, `--json` and tuning.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptkit.findings import Findings
from adaptkit.sweep_outcome import TrialRecord

#: the file of a tuning's parent run
TUNING_FILE = "tuning.json"
#: the tag of the run that groups a tuning, and, with a line, of the runs that were made with what it chose
TUNING_TAG = "adaptkit.tuning"


@dataclass(frozen=True)
class Budget:
    """What every strategy is given alike: `trials` before any range grows, `given` with what followed, by `method`.

    A trial is a run of so many epochs for each of the `tuning_seeds`, on `training` images; `held_back` ones judge it.
    """

    trials: int
    epochs: int
    method: str
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    training: int
    held_back: int
    given: int = 0


@dataclass(frozen=True)
class TunePlan:
    """What a tuning will do: `spaces` are what is searched, by strategy and key, as it is written."""

    budget: Budget
    spaces: Mapping[str, Mapping[str, str]]
    jobs: int
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TuningTrial:
    """One trial: its values, and the accuracy on the images held back; 0 for one that failed, with the reason.

    Of trials of equal accuracy, that with the smallest loss is chosen.
    """

    number: int
    values: Mapping[str, Any]
    accuracy: float
    loss: float | None = None
    error: str | None = None
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """What was found of one strategy.

    `first` and `space` are what was searched before and after ranges grew, by key. `chosen` are the values of the best
    trial, `options` and `lr` all that the strategy is then run with. `edges` are the keys whose value lies on the edge
    of what was searched all the same, with the reason why it did not grow further.
    """

    strategy: str
    label: str
    first: Mapping[str, str]
    space: Mapping[str, str]
    trials: tuple[TuningTrial, ...]
    chosen: Mapping[str, Any]
    options: Mapping[str, Any]
    lr: float
    accuracy: float
    best_trial: int
    edges: Mapping[str, str]


@dataclass(frozen=True)
class TuneOutcome:
    """A finished tuning: the budget, what was chosen, and the runs on all labelled images with fresh seeds.

    `comparison` judges these; it is None when none has finished.
    """

    budget: Budget
    strategies: tuple[Tuned, ...]
    runs: tuple[TrialRecord, ...]
    parent_run_id: str
    experiment: str
    tracking_uri: str
    ui_command: str | None
    ui_url: str
    notices: tuple[str, ...] = ()
    comparison: Findings | None = None

    @property
    def failed(self) -> tuple[TrialRecord, ...]:
        """Return the runs that failed."""
        return tuple(run for run in self.runs if run.status == "failed")

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types."""
        plain = dataclasses.asdict(dataclasses.replace(self, comparison=None))
        return plain | {"comparison": None if self.comparison is None else self.comparison.to_dict()}
