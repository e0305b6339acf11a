"""Define the records of the plan and the results of an experiment, for Python and `--json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptkit.comparison.findings import Comparison, Comparisons
from adaptkit.events import Calibration, Epoch


@dataclass(frozen=True)
class ArmPlan:
    """The plan of one strategy: its options, its learning rate and its numbers of parameters.

    `trainable` is the sum of the trainable parameters in the `head`, in the `adapter` (parameters that the base does
    not have) and in the `base`. `searched` holds the ranges from which each fit chooses its values.
    """

    strategy: str
    label: str
    options: Mapping[str, Any]
    lr: float | None
    parameters: int
    trainable: int
    head: int
    adapter: int
    base: int
    searched: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The plan of an experiment: its data (sizes are numbers of images), device and strategies.

    `notices` are messages for the user. Only a dry run estimates `seconds`.
    """

    dataset: str
    target: str
    shift: str
    backbone: str
    device: str
    precision: str
    source_images: int
    pool_images: int
    shots: int | None
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
    #: metrics of the comparison, the deciding one first
    metrics: tuple[str, ...] = ("accuracy",)
    #: how labels are used, the number of folds, the column that is held out, and the number of groups (0: none)
    protocol: str = "draws"
    folds: int | None = None
    held_out: str | None = None
    groups: int = 0
    #: configurations that each fit tries on its own training images; 0: no tuning
    tuning_trials: int = 0
    #: parameters of the base
    base_parameters: int = 0
    #: optimizer steps of one training
    steps: int = 0
    #: channels and side in pixels of the images, and the side at which the backbone computes, if it resizes them
    channels: int = 0
    size: int = 0
    computed_size: str | None = None
    #: random changes of the training images: of the base, and of the adaptation
    base_augment: str = "none"
    augment: str = "none"
    #: whether all classes count equally in the loss of the adaptation
    balanced: bool = False
    #: by what the base standardizes its images: source, image (each by itself) or None
    standardize: str | None = None
    #: images of each class, in the order of `classes`, in one training (the mean over the fits) and in the evaluation
    training_counts: tuple[int, ...] = ()
    evaluation_counts: tuple[int, ...] = ()
    #: the best constant answer: the class with the most evaluated images, and the accuracy of always answering it
    constant_answer: str = ""
    constant_accuracy: float = 0.0

    @property
    def fits(self) -> int:
        """Return the number of trainings of one strategy, without those of a tuning."""
        return len(self.seeds) * (self.folds or 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class BaseSummary:
    """Base of an experiment. Accuracies are fractions (`shifted_accuracy` is zero-shot), or None without a source.

    `warnings` are signs that its training has not learned.
    """

    fingerprint: str
    run_id: str | None
    cached: bool
    test_accuracy: float | None
    shifted_accuracy: float | None
    epochs: tuple[Epoch, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunSummary:
    """The result of one adaptation run: its final `metrics` by MLflow name, or the `error` that made it fail.

    `status` is "finished" or "failed". `warnings` are signs that the run has not learned.
    """

    strategy: str
    label: str
    options: Mapping[str, Any]
    lr: float | None
    seed: int
    status: str
    run_id: str | None
    metrics: Mapping[str, float]
    epochs: tuple[Epoch, ...]
    error: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expectation:
    """The accuracy that a comparison lets expect of a refit: fractions, not measured on the refit itself.

    `low` and `high` are the 95 % interval over `runs` or over the images, whichever is wider. `source_accuracy` is None
    without a source. `optimism` is the part of `accuracy` that comes from choosing the best of `strategies`; None
    if the refit is not of the best one. `warning` is a sentence if it is not shown to beat a constant answer.
    """

    accuracy: float
    low: float | None
    high: float | None
    source_accuracy: float | None
    runs: int
    strategies: int
    optimism: float | None
    warning: str | None = None


@dataclass(frozen=True)
class RefitSummary:
    """A model of one strategy that is trained on all labels: the result of `adaptkit.refit`.

    Attributes
    ----------
    run_id : str or None
        The MLflow run of kind final; None for a dry run.
    strategy, label, options, lr, seed
        The strategy with its settings, those of the run `refit_of`.
    images : int
        Number of labelled target images that it is trained on.
    refit_of : str
        The run whose settings are repeated.
    comparison_run_id : str or None
        The parent run of the comparison; None if the run has none.
    expected : Expectation
        The target accuracy to expect, from the comparison.
    seconds : float or None
        Training time; None for a dry run.
    tuning_trials : int
        Trials of its tuning on all labels, as many as each fit of the run had; 0 without tuning.
    tuned : mapping
        The values that this tuning has chosen, by key.
    calibration : Calibration or None
        The temperature, and the cross-fitted quality of the probabilities; None unless it is calibrated.
    warnings : tuple of str
        Signs that the model has not learned.

    Examples
    --------
    >>> summary = adaptkit.refit(run_id)
    >>> model = adaptkit.load(summary.run_id)
    """

    run_id: str | None
    strategy: str
    label: str
    options: Mapping[str, Any]
    lr: float | None
    seed: int
    images: int
    refit_of: str
    comparison_run_id: str | None
    expected: Expectation
    seconds: float | None = None
    tracking_uri: str | None = None
    tuning_trials: int = 0
    tuned: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the refit as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Base class of the outcomes of `run`, `sweep` and `tune`.

    Attributes
    ----------
    experiment, tracking_uri : str or None
        MLflow experiment and store; None for runs that were not tracked.
    ui_command, ui_url : str or None
        Command that starts MLflow's user interface (None for a server), and the page that lists the runs.
    notices : tuple of str
        Messages about the store.
    tracking_error : str or None
        Why MLflow lacks a part of the results; None if it holds all of them.
    parent_run_id : str or None
        The MLflow run that groups the other runs; None for a single run.
    comparisons : Comparisons
        One comparison for each base and data set; empty if no run has finished.
    """

    experiment: str | None = None
    tracking_uri: str | None = None
    ui_command: str | None = None
    ui_url: str | None = None
    notices: tuple[str, ...] = ()
    tracking_error: str | None = None
    parent_run_id: str | None = None
    comparisons: Comparisons = field(default_factory=Comparisons)

    @property
    def comparison(self) -> Comparison | None:
        """Return the comparison of the strategies (the first one if there are several); None if no run has finished."""
        return self.comparisons[0] if self.comparisons else None

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types."""
        plain = dataclasses.asdict(dataclasses.replace(self, comparisons=Comparisons()))
        del plain["comparisons"]
        shared = {item.name for item in dataclasses.fields(Outcome)}
        plain = {key: plain[key] for key in sorted(plain, key=shared.__contains__)}  # fields of the subclass first
        return plain | {"comparison": self.comparisons.to_dict() if self.comparisons else None}


@dataclass(frozen=True, kw_only=True)
class RunOutcome(Outcome):
    """Results of `adaptkit.run` and `adaptkit.resume`.

    Attributes
    ----------
    plan : Plan
        Data, devices and strategies, as known before training.
    base : BaseSummary
        The base that all strategies start from.
    runs : tuple of RunSummary
        One record for each strategy and seed; a failed run has an `error` and no metrics.
    data_fingerprint : str
        sha256 of the images that were used.
    refit : RefitSummary or None
        With `refit`, the best strategy trained on all labels; None if that was not possible.
    refit_error : str or None
        Why it was not possible. If no strategy is shown to be the best, it lists the choices.

    Examples
    --------
    >>> outcome = adaptkit.run(["head", "lora"], seeds="0-1", preset="quick")
    >>> [run.metrics["final/shifted_accuracy"] for run in outcome.runs]
    [...]
    >>> print(outcome.comparison.sentences[-1])
    This holds for this base, ...
    """

    plan: Plan
    base: BaseSummary
    runs: tuple[RunSummary, ...]
    data_fingerprint: str
    refit: RefitSummary | None = None
    refit_error: str | None = None

    @property
    def failed(self) -> tuple[RunSummary, ...]:
        """Return the runs that failed."""
        return tuple(run for run in self.runs if run.status == "failed")

    @property
    def is_undecided(self) -> bool:
        """Return whether no strategy is shown to be better than all others and than the best constant answer."""
        return self.comparison is not None and self.comparison.best is None
