"""Read runs for a comparison from an existing MLflow store, without changes to the store."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.adapters.files import read_card
from adaptkit.comparison.metrics import required
from adaptkit.comparison.records import ComparedRun, Curve
from adaptkit.errors import BadInput
from adaptkit.names import (
    ADAPTER_CARD_PATH,
    ARM_TAG,
    KIND_TAG,
    PARENT_TAG,
    PREDICTIONS_FILE,
    SHIFTED_ACCURACY,
    TEST_ACCURACY,
    TIME_CUMULATIVE_SECONDS,
)
from adaptkit.system.imports import uncollected
from adaptkit.tracking.address import Address
from adaptkit.tracking.fetching import fetch, local_artifacts
from adaptkit.tracking.liveness import lives
from adaptkit.tracking.predictions import classes_of, read_predictions, read_table
from adaptkit.tracking.search import search_runs
from adaptkit.tracking.store import errors_as_lines, existing_experiment, open_existing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

#: prefixes of names in MLflow's filter language; a name without a prefix is treated as the name of a param
ENTITIES = {"params", "param", "parameter", "parameters", "metrics", "metric", "tags", "tag", "attribute", "attributes"}
ENTITIES |= {"attr", "run", "dataset", "datasets"}
ATTRIBUTES = {
    "status", "start_time", "end_time", "artifact_uri", "run_name", "run_id", "user_id", "experiment_id",
    "created", "Created", "run name", "Run name",
}  # fmt: skip
CONDITION = re.compile(
    r"(?<![\w.`])([A-Za-z_][\w.-]*)(?=\s*(?:!=|<=|>=|=|<|>|(?:NOT\s+)?(?:I?LIKE|IN)\b|IS\b))", re.IGNORECASE
)
QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`)""")


def with_params(where: str) -> str:
    """Return a filter in which unknown names are params.

    Example: `shift.rotate = '45.0'` becomes ``params.`shift.rotate` = '45.0'``.
    """

    def qualify(match: re.Match[str]) -> str:
        name = match[1]
        is_known = name in ATTRIBUTES or name.split(".")[0].lower() in ENTITIES or name.upper() in ("AND", "NOT")
        return name if is_known else f"params.`{name}`"

    parts = QUOTED.split(where)
    # Parts with an odd index are quoted: values, or complete names.
    return "".join(part if index % 2 else CONDITION.sub(qualify, part) for index, part in enumerate(parts))


#: maximum number of runs in one query for histories, and of points in its result
RUNS_PER_QUERY, MAX_POINTS = 200, 1_000_000

#: values by step
History = dict[int, float]


def read_histories(client: MlflowClient, run_ids: Sequence[str], key: str) -> dict[str, History]:
    """Return the history of one metric for each run. If a step has several values, the last one counts."""
    read_many = _bulk_method(client)
    values: dict[str, History] = {run_id: {} for run_id in run_ids}
    if read_many is None:
        with ThreadPoolExecutor(4) as pool:
            histories = pool.map(lambda run_id: client.get_metric_history(run_id, key), run_ids)
            for run_id, points in zip(run_ids, histories, strict=True):
                values[run_id] = {point.step: point.value for point in points}
        return values
    for start in range(0, len(run_ids), RUNS_PER_QUERY):
        for point in read_many(run_ids[start : start + RUNS_PER_QUERY], key, MAX_POINTS):
            values[point.run_id][point.step] = point.value
    return values


def _bulk_method(client: MlflowClient) -> Any:
    """Return the method of a database store that reads the histories of many runs at once; None for other stores.

    MLflow's client does not offer this method, but MLflow's pages use it. One request per run takes seconds for a
    thousand runs.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    return getattr(store, "get_metric_history_bulk", None) if isinstance(store, SqlAlchemyStore) else None


PARENTS = ("comparison", "sweep")
ADAPTATIONS = {KIND_TAG: "adaptation"}
#: metrics of a learning curve
CURVES = (TIME_CUMULATIVE_SECONDS, TEST_ACCURACY, SHIFTED_ACCURACY)
#: number of runs to read one by one before the remaining ones are read with a search
FEW = 20


@dataclasses.dataclass(frozen=True)
class Reader:
    """Read runs from an open store."""

    address: Address
    client: MlflowClient

    def find(self, run_ids: Sequence[str], experiment: str | None, where: str | None) -> list[MlflowRun]:
        """Return adaptation runs: those with these ids and the children of parent runs, or a whole experiment.

        Raises BadInput if an id or the experiment does not exist, and if MLflow cannot read the filter `where`.
        """
        with errors_as_lines(self.address), uncollected():
            if not run_ids:
                experiments = [existing_experiment(self.address, self.client, experiment)]
                return self._search(experiments, ADAPTATIONS, where)
            named = self._by_id(run_ids)
            single = {run.info.run_id: run for run in named if run.data.tags[KIND_TAG] not in PARENTS}
            parents = [run for run in named if run.data.tags[KIND_TAG] in PARENTS]
            runs = dict(single) if not where else {}
            if where and single:
                matching = self._search(_experiments(single.values()), ADAPTATIONS, where)
                runs |= {run.info.run_id: run for run in matching if run.info.run_id in single}
            for parent in parents:
                children = ADAPTATIONS | {PARENT_TAG: parent.info.run_id}
                runs |= {run.info.run_id: run for run in self._search(_experiments([parent]), children, where)}
        # in the same order as a search
        return sorted(runs.values(), key=lambda run: (run.info.start_time or 0, run.info.run_id))

    def read(self, stored: Iterable[MlflowRun]) -> list[ComparedRun]:
        """Return the runs with the predictions from their artifacts.

        Raises BadInput with all problems if a run is still running or an artifact is missing.
        """
        records = list(stored)
        compared = [_compared(run) for run in records]
        problems = [
            f"{run.name} ({run.run_id}) is still running: wait for it, or leave it out with "
            """--where "status != 'RUNNING'\""""
            for run in compared
            if run.status == "running"
        ]
        if problems:
            raise BadInput(*problems)
        with ThreadPoolExecutor(4) as pool, uncollected():
            read = list(pool.map(self._with_predictions, compared, [run.info.artifact_uri or "" for run in records]))
        if missing := [problem for _, problem in read if problem is not None]:
            raise BadInput(*missing)
        return [run for run, _ in read]

    def with_curves(self, runs: Iterable[ComparedRun]) -> list[ComparedRun]:
        """Return the runs with their learning curves."""
        without = list(runs)
        series: dict[str, dict[str, History]] = {}
        with errors_as_lines(self.address), uncollected():
            for key in CURVES:
                finished = [run.run_id for run in without if run.status == "finished" and key in run.metrics]
                series[key] = read_histories(self.client, [run_id for run_id in finished if run_id], key)
        return [_with_curve(run, *(series[key].get(run.run_id or "", {}) for key in CURVES)) for run in without]

    def unknown(self, run_id: str) -> str:
        """Return the message for an id that no run of the store has."""
        return f"no run {run_id!r} in {self.address.shown}; `adaptkit ui` shows the ids of its runs"

    def _by_id(self, run_ids: Sequence[str]) -> list[MlflowRun]:
        from mlflow.exceptions import MlflowException

        runs, problems = [], []
        prefetched: dict[str, MlflowRun] = {}
        for number, run_id in enumerate(dict.fromkeys(run_ids)):
            try:
                run = prefetched.get(run_id) or self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                problems.append(self.unknown(run_id))
                continue
            kind = run.data.tags.get(KIND_TAG)
            if kind not in ("adaptation", *PARENTS):
                what = "was not made by adaptkit" if kind is None else f"is of kind {kind}"
                problems.append(f"run {run_id} {what}; only adaptation runs can be compared")
            elif run.info.lifecycle_stage == "deleted":
                problems.append(f"run {run_id} was deleted; `mlflow runs restore --run-id {run_id}` brings it back")
            runs.append(run)
            if number == FEW and len(run_ids) > 2 * FEW:
                # One search is faster than many single requests; usually all runs are in one experiment.
                prefetched = {run.info.run_id: run for run in self._search(_experiments(runs), ADAPTATIONS, None)}
        if problems:
            raise BadInput(*problems)
        return runs

    def _search(self, experiments: list[str], tags: Mapping[str, str], where: str | None) -> list[MlflowRun]:
        from mlflow.exceptions import MlflowException

        try:
            return search_runs(self.client, experiments, tags=tags, where=with_params(where) if where else None)
        except MlflowException as error:
            if where and error.error_code == "INVALID_PARAMETER_VALUE":
                problem = str(error).strip().splitlines()[0]
                hint = "; quote the value, as in lr = '0.001'" if "quoted" in problem else ""
                raise BadInput(f"--where: {problem}{hint}") from None
            raise

    def _with_predictions(self, run: ComparedRun, artifacts: str) -> tuple[ComparedRun, str | None]:
        """Return the run with its predictions; or the run without them and the reason why they cannot be read."""
        if run.status != "finished":
            return run, None
        try:
            with ExitStack() as files:
                path = files.enter_context(self.artifact(artifacts, PREDICTIONS_FILE))
                return _with_table(run, path, lambda: files.enter_context(self.artifact(artifacts, ADAPTER_CARD_PATH)))
        except FileNotFoundError as error:
            return run, f"{run.name} ({run.run_id}) has no artifact {error.filename}"

    @contextmanager
    def artifact(self, artifacts: str, name: str) -> Iterator[Path]:
        """Provide an artifact as a local file for the duration of a block.

        Raises FileNotFoundError with the name of the artifact if it does not exist, and BadInput if the store fails.
        """
        local = local_artifacts(artifacts, self.address.path)
        if local is not None:  # without MLflow, which needs more time to find a file than to read it
            if not (local / name).exists():
                raise FileNotFoundError(2, "no such artifact", name)
            yield local / name
            return
        with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
            with errors_as_lines(self.address):
                copy = fetch(artifacts=artifacts, name=name, folder=folder, tracking_uri=self.address.uri)
            yield copy


def open_reader(uri: str | None) -> Reader:
    """Open a store for reading; raise BadInput if it does not exist or cannot be reached."""
    address, client = open_existing(uri)
    return Reader(address, client)


def _with_table(run: ComparedRun, path: Path, card: Callable[[], Path]) -> tuple[ComparedRun, str | None]:
    """Return a run with the predictions in a file; `card()` is the adapter's card, for tables of earlier versions."""
    start = f"{run.name} ({run.run_id}): "
    damage = (KeyError, ValueError, OverflowError, OSError)
    try:
        table = read_table(path)
        classes = classes_of(table)
    except damage as error:
        return run, f"{start}its predictions cannot be read: {type(error).__name__}: {error}"
    # An error of the store is not caught: it is not a property of this run.
    path = path if classes is not None else card()
    try:
        if classes is None:
            classes = tuple(map(str, read_card(path, {"classes": list})["classes"]))
        tests = ("clean", "shifted") if run.has_source else ("shifted",)
        return dataclasses.replace(run, classes=classes, predictions=read_predictions(table, classes, tests)), None
    except BadInput as error:
        return run, f"{start}{error}"
    except damage as error:
        return run, f"{start}its predictions cannot be read: {type(error).__name__}: {error}"


def _compared(run: MlflowRun) -> ComparedRun:
    tags, params = run.data.tags, run.data.params
    strategy, seed = params.get("strategy", "unknown"), params.get("seed", "")
    status, reason = _status(run)
    compared = ComparedRun(
        name=run.info.run_name or run.info.run_id,
        run_id=run.info.run_id,
        strategy=strategy,
        arm=tags.get(ARM_TAG, strategy),
        options={key[9:]: value for key, value in params.items() if key.startswith("strategy.")},
        settings={key: value for key, value in params.items() if not key.startswith("strategy")},
        seed=int(seed) if seed.isdigit() else 0,
        status=status,
        started=run.info.start_time or 0,
        metrics=run.data.metrics,
        tags=tags,
        reason=reason,
    )
    if status != "finished":
        return compared
    missing = [key for key in required(compared.has_source) if key not in compared.metrics]
    lacking = missing[0] if missing else None if seed.isdigit() else "a seed"
    if lacking is None:
        return compared
    return dataclasses.replace(compared, status="incomplete", reason=f"its record lacks {lacking}")


def _with_curve(run: ComparedRun, seconds: History, clean: History, shifted: History) -> ComparedRun:
    # A run without a source may have been evaluated only at its end.
    steps = sorted(set(seconds) & set(clean if run.has_source else shifted))
    if not steps:
        return run
    curve = Curve(
        epoch=tuple(steps),
        seconds=tuple(seconds[step] for step in steps),
        clean=tuple(clean[step] for step in steps) if run.has_source else None,
        shifted=tuple(shifted[step] for step in steps) if all(step in shifted for step in steps) else None,
    )
    return dataclasses.replace(run, curve=curve)


def _experiments(runs: Iterable[MlflowRun]) -> list[str]:
    return list(dict.fromkeys(run.info.experiment_id for run in runs))


def _status(run: MlflowRun) -> tuple[str, str | None]:
    """Return the status of a run and the reason; a run counts as killed if its process has ended."""
    status = run.info.status.lower()
    if status not in ("running", "scheduled"):
        return status, None
    if lives(run.data.tags) is False:
        return "killed", "its process has ended"
    return "running", None
