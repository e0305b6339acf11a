"""Collect the runs of the current experiment for its comparison, through the hooks of run events."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptkit.comparison.records import ComparedRun, Curve
from adaptkit.events import RunResult, RunStart
from adaptkit.hookspecs import hookimpl
from adaptkit.names import ARM_TAG

if TYPE_CHECKING:
    from torch import nn


class Collector:
    """Convert each adaptation run, tracked or not, to a `ComparedRun`."""

    def __init__(self) -> None:
        self._runs: list[ComparedRun] = []

    def runs(self, run_ids: Mapping[str, str | None]) -> list[ComparedRun]:
        """Return the collected runs; `run_ids` maps run names to their ids in the tracking store."""
        return [dataclasses.replace(run, run_id=run_ids.get(run.name)) for run in self._runs]

    @hookimpl
    def adaptkit_run_ended(self, run: RunStart, result: RunResult, model: nn.Module) -> None:
        """Collect a finished adaptation run."""
        if run.kind != "adaptation":
            return
        epochs = result.epochs
        clean = tuple(epoch.test_accuracy for epoch in epochs if epoch.test_accuracy is not None)
        shifted = tuple(epoch.shifted_accuracy for epoch in epochs if epoch.shifted_accuracy is not None)
        evaluated = bool(epochs) and len(epochs) in (len(clean), len(shifted))
        curve = Curve(
            epoch=tuple(epoch.number for epoch in epochs),
            seconds=tuple(epoch.cumulative_seconds for epoch in epochs),
            clean=clean if len(clean) == len(epochs) else None,
            shifted=shifted if len(shifted) == len(epochs) else None,
        )
        self._runs.append(
            dataclasses.replace(
                self._started(run, "finished"),
                metrics=dict(result.metrics),
                tags={**run.tags, **result.tags},
                classes=result.classes,
                predictions=result.predictions,
                curve=curve if evaluated else None,
            )
        )

    @hookimpl
    def adaptkit_run_failed(self, run: RunStart, error: BaseException) -> None:
        """Collect a failed adaptation run with the reason."""
        if run.kind == "adaptation":
            reason = str(error).strip() or type(error).__name__
            self._runs.append(dataclasses.replace(self._started(run, "failed"), reason=reason.splitlines()[0]))

    def _started(self, run: RunStart, status: str) -> ComparedRun:
        strategy = str(run.params["strategy"])
        params = {key: str(value) for key, value in run.params.items()}
        return ComparedRun(
            name=run.name,
            run_id=None,
            strategy=strategy,
            arm=run.tags.get(ARM_TAG, strategy),
            options={key[9:]: value for key, value in params.items() if key.startswith("strategy.")},
            settings={key: value for key, value in params.items() if not key.startswith("strategy")},
            seed=int(params["seed"]),
            status=status,
            started=len(self._runs),
            metrics={},
            tags=run.tags,
        )
