"""What an experiment plans and finds, as typed records: the same for Python and for `--json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptkit.comparison.records import Comparisons
from adaptkit.events import Epoch


@dataclass(frozen=True)
class ArmPlan:
    """What a strategy will train: numbers of parameters, learning rate and options.

    Of the `trainable` ones, so many are in the `head`, in the `adapter` (the base does not have them), in the `base`.
    """

    strategy: str
    label: str
    options: Mapping[str, Any]
    lr: float
    parameters: int
    trainable: int
    head: int
    adapter: int
    base: int


@dataclass(frozen=True)
class Plan:
    """What an experiment will do: sizes in images; `notices` are things to tell the user before training.

    `seconds` is an estimate that only a dry run makes.
    """

    dataset: str
    target: str
    shift: str
    backbone: str
    device: str
    precision: str
    source_images: int
    pool_images: int
    shots: int
    drawn_images: int
    clean_test_images: int
    shifted_test_images: int
    classes: tuple[str, ...]
    base_cached: bool
    arms: tuple[ArmPlan, ...]
    seeds: tuple[int, ...]
    epochs: int
    notices: tuple[str, ...] = ()
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class BaseSummary:
    """The base of an experiment; accuracies are fractions, the shifted one is zero-shot; None without a source."""

    fingerprint: str
    run_id: str | None
    cached: bool
    test_accuracy: float | None
    shifted_accuracy: float | None
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True)
class RunSummary:
    """One adaptation run: final `metrics` by their MLflow names; `error` says why a failed one has none."""

    strategy: str
    label: str
    options: Mapping[str, Any]
    lr: float
    seed: int
    status: str
    run_id: str | None
    metrics: Mapping[str, float]
    epochs: tuple[Epoch, ...]
    error: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished experiment; `notices` are things to tell the user, `tracking_error` why not all is in MLflow.

    `parent_run_id` is the MLflow run that groups several runs; `comparison` is None when no run has finished.
    """

    plan: Plan
    base: BaseSummary
    runs: tuple[RunSummary, ...]
    data_fingerprint: str
    experiment: str | None = None
    tracking_uri: str | None = None
    ui_command: str | None = None
    ui_url: str | None = None
    notices: tuple[str, ...] = ()
    tracking_error: str | None = None
    parent_run_id: str | None = None
    comparison: Comparisons | None = None

    @property
    def failed(self) -> tuple[RunSummary, ...]:
        """Return the runs that failed."""
        return tuple(run for run in self.runs if run.status != "finished")

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types."""
        plain = dataclasses.asdict(dataclasses.replace(self, comparison=None))
        return plain | {"comparison": None if self.comparison is None else self.comparison.to_dict()}
