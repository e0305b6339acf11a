"""Read runs for a comparison from an MLflow store that exists: nothing is made or changed."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.adapters.files import read_card
from adaptkit.comparison.metrics import required
from adaptkit.comparison.records import ComparedRun, Curve
from adaptkit.errors import BadInput
from adaptkit.names import ADAPTER_CARD_PATH, ARM_TAG, KIND_TAG, PREDICTIONS_FILE, SHIFTED_ACCURACY, TEST_ACCURACY, TIME_CUMULATIVE_SECONDS
from adaptkit.settings.settings import DEFAULT_EXPERIMENT
from adaptkit.system.imports import uncollected
from adaptkit.tracking.address import Address
from adaptkit.tracking.artifacts import read_predictions
from adaptkit.tracking.fetching import fetch, local_artifacts
from adaptkit.tracking.liveness import lives
from adaptkit.tracking.store import errors_as_lines, existing_experiment, open_existing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

#: what MLflow's filter language knows by itself; any other bare name is a param's
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
    """Return a filter in which bare names that MLflow does not know are params, as in `shift.rotate = '45.0'`."""

    def qualified(found: re.Match[str]) -> str:
        name = found[1]
        known = name in ATTRIBUTES or name.split(".")[0].lower() in ENTITIES or name.upper() in ("AND", "NOT")
        return name if known else f"params.`{name}`"

    parts = QUOTED.split(where)
    # Every second part is quoted: a value, or a name that says itself what it is.
    return "".join(part if index % 2 else CONDITION.sub(qualified, part) for index, part in enumerate(parts))


#: runs whose histories are read by one query, and the most points that it may give
AT_ONCE, MOST = 200, 1_000_000

#: values by step
History = dict[int, float]


def read_histories(client: MlflowClient, run_ids: Sequence[str], key: str) -> dict[str, History]:
    """Return the history of one metric of each run, the last value of a step that has several."""
    together = _together(client)
    found: dict[str, History] = {run_id: {} for run_id in run_ids}
    if together is None:
        with ThreadPoolExecutor(4) as pool:
            histories = pool.map(lambda run_id: client.get_metric_history(run_id, key), run_ids)
            for run_id, points in zip(run_ids, histories, strict=True):
                found[run_id] = {point.step: point.value for point in points}
        return found
    for start in range(0, len(run_ids), AT_ONCE):
        for point in together(run_ids[start : start + AT_ONCE], key, MOST):
            found[point.run_id][point.step] = point.value
    return found


def _together(client: MlflowClient) -> Any:
    """Return the method of a database's store that reads the histories of many runs; None of any other store.

    MLflow's client does not have it, though MLflow's own pages use it: a thousand runs, one by one, take seconds.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    return getattr(store, "get_metric_history_bulk", None) if isinstance(store, SqlAlchemyStore) else None


PAGE = 1000
PARENTS = ("comparison", "sweep")
ADAPTATIONS = "tags.`adaptkit.kind` = 'adaptation'"
#: what a curve is made of
CURVES = (TIME_CUMULATIVE_SECONDS, TEST_ACCURACY, SHIFTED_ACCURACY)
#: runs that are asked for one by one
FEW = 20


@dataclasses.dataclass(frozen=True)
class Reader:
    """An open store that is only read."""

    address: Address
    client: MlflowClient

    def find(self, run_ids: Sequence[str], experiment: str | None, where: str | None) -> list[MlflowRun]:
        """Return the adaptation runs asked for: by id (a parent stands for its children), else a whole experiment's.

        Raises BadInput for ids and names that are not there, and for a filter that MLflow cannot read.
        """
        with errors_as_lines(self.address), uncollected():
            if not run_ids:
                experiments = [existing_experiment(self.address, self.client, experiment or DEFAULT_EXPERIMENT)]
                return self._search(experiments, ADAPTATIONS, where)
            asked = self._by_id(run_ids)
            alone = [run for run in asked if run.data.tags[KIND_TAG] == "adaptation"]
            parents = [run for run in asked if run.data.tags[KIND_TAG] in PARENTS]
            found = {run.info.run_id: run for run in alone} if not where else {}
            if where and alone:
                wanted, experiments = {run.info.run_id for run in alone}, _experiments(alone)
                matching = self._search(experiments, ADAPTATIONS, where)
                found |= {run.info.run_id: run for run in matching if run.info.run_id in wanted}
            for parent in parents:
                inner = f"{ADAPTATIONS} and tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
                found |= {run.info.run_id: run for run in self._search(_experiments([parent]), inner, where)}
        # As a search orders them.
        return sorted(found.values(), key=lambda run: (run.info.start_time or 0, run.info.run_id))

    def read(self, found: Iterable[MlflowRun]) -> list[ComparedRun]:
        """Return the runs with their predictions, read from their artifacts.

        Raises BadInput, all problems at once, for a run that is still running and for a missing artifact.
        """
        records = list(found)
        runs = [_compared(run) for run in records]
        problems = [
            f"{run.name} ({run.run_id}) is still running: wait for it, or leave it out with "
            """--where "status != 'RUNNING'\""""
            for run in runs
            if run.status == "running"
        ]
        if problems:
            raise BadInput(*problems)
        with ThreadPoolExecutor(4) as pool, uncollected():
            read = list(pool.map(self._with_predictions, runs, [run.info.artifact_uri or "" for run in records]))
        if missing := [problem for _, problem in read if problem is not None]:
            raise BadInput(*missing)
        return [run for run, _ in read]

    def with_curves(self, runs: Iterable[ComparedRun]) -> list[ComparedRun]:
        """Return the runs with their histories, epoch by epoch."""
        found = list(runs)
        series: dict[str, dict[str, History]] = {}
        with errors_as_lines(self.address), uncollected():
            for key in CURVES:
                having = [run.run_id for run in found if run.status == "finished" and key in run.metrics]
                series[key] = read_histories(self.client, [run_id for run_id in having if run_id], key)
        return [_with_curve(run, *(series[key].get(run.run_id or "", {}) for key in CURVES)) for run in found]

    def _by_id(self, run_ids: Sequence[str]) -> list[MlflowRun]:
        from mlflow.exceptions import MlflowException

        found, problems = [], []
        known: dict[str, MlflowRun] = {}
        for number, run_id in enumerate(dict.fromkeys(run_ids)):
            try:
                run = known.get(run_id) or self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                problems.append(f"there is no run {run_id!r} in {self.address.shown}")
                continue
            kind = run.data.tags.get(KIND_TAG, "none of adaptkit's")
            if kind not in ("adaptation", *PARENTS):
                problems.append(f"run {run_id} is of kind {kind}; adaptation runs are compared")
            elif run.info.lifecycle_stage == "deleted":
                problems.append(f"run {run_id} was deleted; `mlflow runs restore --run-id {run_id}` brings it back")
            found.append(run)
            if number == FEW and len(run_ids) > 2 * FEW:
                # Many at once are read sooner than one by one: most are of one experiment.
                known = {run.info.run_id: run for run in self._search(_experiments(found), ADAPTATIONS, None)}
        if problems:
            raise BadInput(*problems)
        return found

    def _search(self, experiments: list[str], condition: str, where: str | None) -> list[MlflowRun]:
        from mlflow.exceptions import MlflowException

        filter_string = f"{condition} and {with_params(where)}" if where and where.strip() else condition
        found: list[MlflowRun] = []
        token: str | None = None
        while True:
            try:
                page = self.client.search_runs(
                    experiments,
                    filter_string,
                    max_results=PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            except MlflowException as error:
                if where and error.error_code == "INVALID_PARAMETER_VALUE":
                    raise BadInput(f"--where: {str(error).strip().splitlines()[0]}") from None
                raise
            found.extend(page)
            token = page.token
            if not token:
                return found

    def _with_predictions(self, run: ComparedRun, artifacts: str) -> tuple[ComparedRun, str | None]:
        """Return the run with its predictions, or the reason why they cannot be read."""
        if run.status != "finished":
            return run, None
        try:
            with (
                self.artifact(artifacts, PREDICTIONS_FILE) as path,
                self.artifact(artifacts, ADAPTER_CARD_PATH) as card,
            ):
                return _with_files(run, path, card)
        except FileNotFoundError as error:
            return run, f"{run.name} ({run.run_id}) has no artifact {error.filename}"

    @contextmanager
    def artifact(self, artifacts: str, name: str) -> Iterator[Path]:
        """Lend an artifact as a local file.

        Raises FileNotFoundError, with its name, when there is none, and BadInput when the store fails.
        """
        local = local_artifacts(artifacts, self.address.path)
        if local is not None:  # not by MLflow, which takes longer to find a file than reading it takes
            if not (local / name).exists():
                raise FileNotFoundError(2, "no such artifact", name)
            yield local / name
            return
        with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
            with errors_as_lines(self.address):
                where = fetch(artifacts, name, folder, self.address.uri)
            yield where


def open_reader(uri: str | None) -> Reader:
    """Open the store that is meant for reading; raise BadInput when there is none, or it cannot be reached."""
    address, client = open_existing(uri)
    return Reader(address, client)


def _with_files(run: ComparedRun, predictions: Path, card: Path) -> tuple[ComparedRun, str | None]:
    try:
        classes = tuple(map(str, read_card(card, {"classes": list})["classes"]))
        read = read_predictions(predictions, classes, ("clean", "shifted") if run.has_source else ("shifted",))
    except BadInput as error:
        return run, f"{run.name} ({run.run_id}): {error}"
    except (KeyError, ValueError, OverflowError, OSError) as error:
        return run, f"{run.name} ({run.run_id}): its predictions cannot be read: {type(error).__name__}: {error}"
    return dataclasses.replace(run, classes=classes, predictions=read), None


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
    # A run without a source may not have been evaluated before its end.
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
    """Return what became of a run; one that nobody can still be running was killed."""
    status = run.info.status.lower()
    if status not in ("running", "scheduled"):
        return status, None
    if lives(run.data.tags) is False:
        return "killed", "its process is gone"
    return "running", None
