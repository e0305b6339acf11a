"""Store the search of one strategy as an Optuna study in a database: the values of each trial and its result."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.errors import BadInput
from adaptkit.names import OPTUNA_ACCURACY, OPTUNA_LOSS, OPTUNA_REASON, OPTUNA_RUNS
from adaptkit.plugins.ranges import Choice, Dimension
from adaptkit.seeds import derive_seed
from adaptkit.settings.spaces import Space
from adaptkit.tracking.address import resolve
from adaptkit.tracking.store import Store

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class StudyTrial:
    """One trial of a search.

    `score` is that of the deciding metric on the held-out images: None before the trial has run, and if it failed.
    `reason` is the reason for the failure. If scores are equal, a smaller `loss` is better. `runs` are the ids of its
    tuning runs.
    """

    number: int
    values: Mapping[str, Any]
    score: float | None = None
    reason: str | None = None
    runs: tuple[str, ...] = ()
    loss: float = math.inf
    accuracy: float = 0.0

    @property
    def has_run(self) -> bool:
        """Return whether the trial has a result."""
        return self.score is not None or self.reason is not None


def require_optuna() -> None:
    """Raise BadInput if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise BadInput("adaptkit tune needs optuna: pip install 'adaptkit-vision[tune]'")


class Study:
    """The trials of one strategy, which are proposed one by one.

    A process that continues a search proposes the same trials as an uninterrupted one.
    """

    def __init__(self, study: optuna.Study, seed: int) -> None:
        self._study = study
        self._seed = seed
        #: value of failed trials, because Optuna needs one
        self._worst = -math.inf if study.direction.name == "MAXIMIZE" else math.inf

    @property
    def trials(self) -> list[StudyTrial]:
        """Return all trials in order."""
        return [_trial(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def ask(self, space: Space, values: Mapping[str, Any] | None = None) -> StudyTrial:
        """Add a trial with these values, or with values that TPE proposes."""
        import optuna

        number = len(self._study.get_trials(deepcopy=False))
        if values is None:
            values = self._proposed(space, number)
        added = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=dict(values), distributions=_distributions(space.dimensions)
        )
        # Add the trial in one step, so that a process that dies here never leaves an incomplete trial.
        self._study.add_trial(added)
        return StudyTrial(number, values)

    def tell(self, trial: StudyTrial) -> None:
        """Store the result of a trial."""
        assert trial.has_run
        storage, frozen = self._study._storage, self._study.get_trials(deepcopy=False)[trial.number]
        storage.set_trial_user_attr(frozen._trial_id, OPTUNA_REASON, trial.reason)
        storage.set_trial_user_attr(frozen._trial_id, OPTUNA_RUNS, list(trial.runs))
        storage.set_trial_user_attr(frozen._trial_id, OPTUNA_LOSS, trial.loss if math.isfinite(trial.loss) else None)
        storage.set_trial_user_attr(frozen._trial_id, OPTUNA_ACCURACY, trial.accuracy)
        with _quiet():
            self._study.tell(trial.number, self._worst if trial.score is None else trial.score)

    def _proposed(self, space: Space, number: int) -> dict[str, Any]:
        """Return the proposal of TPE after all trials so far; unfinished trials count as bad."""
        import optuna

        # A new sampler for each trial, so that random draws do not depend on the state of an earlier process.
        seed = derive_seed(self._seed, f"{space.strategy} trial {number}") % 2**32
        distributions = _distributions(space.dimensions)
        with _quiet():
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True, constant_liar=True)
            history = optuna.create_study(direction=self._study.direction, sampler=sampler)
            for trial in self.trials:
                history.add_trial(
                    optuna.trial.create_trial(
                        state=optuna.trial.TrialState.COMPLETE if trial.has_run else optuna.trial.TrialState.RUNNING,
                        value=self._worst if trial.reason is not None else trial.score,
                        params=dict(trial.values),
                        distributions=distributions,
                    )
                )
            proposal = history.ask(distributions)
        return {
            key: proposal.params[key] if isinstance(dimension, Choice) else dimension.rounded(proposal.params[key])
            for key, dimension in space.dimensions.items()
        }


@contextmanager
def open_studies(
    path: Path, key: str, strategies: Sequence[str], seed: int, *, higher_is_better: bool = True
) -> Iterator[dict[str, Study]]:
    """Open or create the studies of a search in a database; raise BadInput if the file cannot be used."""
    import optuna
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError

    with _quiet():
        try:
            # Escape the path, because the name of a folder may contain a question mark.
            address = URL.create("sqlite", database=str(path)).render_as_string()
            storage = optuna.storages.RDBStorage(address, engine_kwargs={"connect_args": {"timeout": 60}})
        except (SQLAlchemyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInput(f"trials cannot be stored in {path}: {reason}") from None
        try:
            yield {
                name: Study(
                    optuna.create_study(
                        storage=storage,
                        study_name=f"{key} {name}",
                        direction="maximize" if higher_is_better else "minimize",
                        load_if_exists=True,
                    ),
                    seed,
                )
                for name in strategies
            }
        finally:
            storage.remove_session()
            storage.engine.dispose()


def study_file(store: Store) -> Path:
    """Return the path of the database: next to the store, or in the current folder if the store is a server."""
    path = resolve(store.uri).path
    folder = Path.cwd() if path is None else Path(os.path.realpath(path)).parent
    return folder / "optuna.db"


def _distributions(dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
    import optuna.distributions as kinds

    distributions: dict[str, Any] = {}
    for key, dimension in dimensions.items():
        if isinstance(dimension, Choice):
            distributions[key] = kinds.CategoricalDistribution(dimension.values)
        elif dimension.integer:
            distributions[key] = kinds.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            distributions[key] = kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return distributions


def _trial(frozen: optuna.trial.FrozenTrial) -> StudyTrial:
    attributes = frozen.user_attrs
    loss = attributes.get(OPTUNA_LOSS)
    # The attributes are stored before the value, which ends the trial.
    reason = attributes.get(OPTUNA_REASON) if frozen.values else None
    score = frozen.values[0] if frozen.values and reason is None else None
    return StudyTrial(
        number=frozen.number,
        values=frozen.params,
        score=score,
        # Earlier versions tuned by accuracy only.
        accuracy=attributes.get(OPTUNA_ACCURACY, score or 0.0),
        reason=reason,
        runs=tuple(attributes.get(OPTUNA_RUNS, ())),
        loss=math.inf if loss is None else loss,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log of Optuna and its warnings about experimental features."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
