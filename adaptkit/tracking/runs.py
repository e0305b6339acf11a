"""Find a finished run in a store, and access its artifacts as local files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.errors import BadInput
from adaptkit.names import BASE_FINGERPRINT_TAG, BASE_RUN_ID_TAG, COMPARISON_RUN_ID_TAG, KIND_TAG, REFIT_OF_TAG
from adaptkit.tracking.address import artifact_address
from adaptkit.tracking.fetching import local_artifacts
from adaptkit.tracking.reader import PARENTS, Reader, open_reader
from adaptkit.tracking.search import search_runs
from adaptkit.tracking.store import Store, errors_as_lines

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

#: kinds of runs with a model
KINDS = ("adaptation", "final", "imported", "base")


@dataclass(frozen=True)
class StoredRun:
    """A run in a store, with access to its artifacts."""

    runs: RunFinder
    record: MlflowRun

    @property
    def run_id(self) -> str:
        """Return the id of the run."""
        return str(self.record.info.run_id)

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return str(self.record.info.run_name or self.run_id)

    @property
    def title(self) -> str:
        """Return id and name, as messages show them."""
        return f"run {self.run_id} ({self.name})"

    @property
    def tags(self) -> Mapping[str, str]:
        """Return the tags of the run."""
        tags: Mapping[str, str] = self.record.data.tags
        return tags

    @property
    def params(self) -> Mapping[str, str]:
        """Return the params of the run."""
        params: Mapping[str, str] = self.record.data.params
        return params

    @property
    def kind(self) -> str:
        """Return the kind of the run, such as adaptation or base."""
        return self.tags.get(KIND_TAG, "")

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Provide an artifact as a local file for the duration of a block; raise BadInput if it does not exist."""
        try:
            with self.runs.reader.artifact(self._artifacts, name) as path:
                yield path
        except FileNotFoundError as error:
            if error.filename != name:
                raise
            raise BadInput(f"{self.title} has no artifact {name}") from None

    @contextmanager
    def folder(self, name: str, *files: str) -> Iterator[Path]:
        """Provide files of an artifact folder in a local folder; raise BadInput if one does not exist."""
        with tempfile.TemporaryDirectory(prefix="adaptkit-") as copied:
            local = Path(copied)
            for file in files:
                with self.file(f"{name}/{file}") as path:
                    if self._local is None:
                        shutil.move(path, copied)
                    else:
                        local = path.parent
            yield local

    def has(self, name: str) -> bool:
        """Return whether the run has an artifact of this name."""
        folder, _, _ = name.rpartition("/")
        local = self._local
        if local is not None:
            return (local / name).is_file()
        with errors_as_lines(self.runs.reader.address):
            return any(entry.path == name for entry in self.runs.reader.client.list_artifacts(self.run_id, folder))

    def bases(self, fingerprint: str) -> Iterator[StoredRun]:
        """Yield the base run that the tags name, then other base runs with this fingerprint, the latest first."""
        named = self.tags.get(BASE_RUN_ID_TAG)
        if named and (record := self.runs.get(named)) is not None:
            yield StoredRun(self.runs, record)
        tags = {KIND_TAG: "base", BASE_FINGERPRINT_TAG: fingerprint}
        with errors_as_lines(self.runs.reader.address):
            others = search_runs(self.runs.reader.client, [self.record.info.experiment_id], tags=tags)
        yield from (StoredRun(self.runs, record) for record in reversed(others) if record.info.run_id != named)

    def store(self) -> Store:
        """Return the store, to write to the experiment of the run."""
        address, client = self.runs.reader.address, self.runs.reader.client
        with errors_as_lines(address):
            experiment = client.get_experiment(self.record.info.experiment_id)
        return Store(
            uri=address.uri,
            client=client,
            experiment_id=experiment.experiment_id,
            experiment_name=experiment.name,
            notices=(),
            ui_command=address.ui_command,
        )

    @property
    def _artifacts(self) -> str:
        return artifact_address(self._local) if self._local is not None else str(self.record.info.artifact_uri)

    @property
    def _local(self) -> Path | None:
        """Return the folder of the artifacts on this machine; None if they are on another machine."""
        address = str(self.record.info.artifact_uri or "")
        return local_artifacts(address, self.runs.reader.address.path)


@dataclass(frozen=True)
class RunFinder:
    """Find runs in an open store."""

    reader: Reader

    def find(self, run_id: str, kinds: Collection[str] = KINDS) -> StoredRun:
        """Return a finished run of one of these kinds; raise BadInput with a hint for any other run."""
        record = self.get(run_id)
        if record is None:
            raise BadInput(self.reader.unknown(run_id))
        run = StoredRun(self, record)
        if record.info.lifecycle_stage == "deleted":
            raise BadInput(f"{run.title} was deleted; `mlflow runs restore --run-id {run_id}` brings it back")
        uses_model = kinds == KINDS
        refit = self.refit_of(run) if uses_model else None
        if refit is not None:
            return refit
        if run.kind in PARENTS:
            children = self.reader.find([run_id], None, None)
            child_names = [f"{child.info.run_id} ({child.info.run_name})" for child in children]
            hint = f"; name one of its runs: {', '.join(child_names[:8])}" if child_names else ""
            if hint and uses_model:
                hint = f"; train one on all labels with `adaptkit refit {run_id}`, or{hint[1:]}"
            raise BadInput(f"{run.title} groups others and has no model{hint}{' ...' if child_names[8:] else ''}")
        if run.kind not in kinds:
            what = f"is of kind {run.kind}" if run.kind else "was not made by adaptkit"
            raise BadInput(f"{run.title} {what}: it has no model that adaptkit could rebuild")
        if run.params.get("protocol") == "folds" and run.kind == "adaptation" and uses_model:
            raise BadInput(
                f"{run.title} has a model for each fold; train one on all labels with `adaptkit refit {run_id}`"
            )
        status = record.info.status
        if status != "FINISHED":
            reasons = {"RUNNING": "is still running: wait for it", "KILLED": "was killed: it has no model"}
            raise BadInput(f"{run.title} {reasons.get(status, 'failed: it has no model')}")
        return run

    def refit_of(self, run: StoredRun) -> StoredRun | None:
        """Return the latest finished refit of a comparison or of a run with folds, whose id stands for it."""
        if run.kind in PARENTS:
            tags = {COMPARISON_RUN_ID_TAG: run.run_id}
        elif run.kind == "adaptation" and run.params.get("protocol") == "folds":
            tags = {REFIT_OF_TAG: run.run_id}
        else:
            return None
        tags[KIND_TAG] = "final"
        client, experiment = self.reader.client, run.record.info.experiment_id
        with errors_as_lines(self.reader.address):
            found = search_runs(client, [experiment], tags=tags, status="FINISHED")
        return StoredRun(self, found[-1]) if found else None

    def get(self, run_id: str) -> MlflowRun | None:
        """Return the record of a run of any kind; None if the id does not exist."""
        from mlflow.exceptions import MlflowException

        with errors_as_lines(self.reader.address):
            try:
                return self.reader.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                return None


def open_runs(uri: str | None) -> RunFinder:
    """Open a store for reading; raise BadInput if it does not exist or cannot be reached."""
    return RunFinder(open_reader(uri))
