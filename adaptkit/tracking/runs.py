"""Find one finished run in a store, with its artifacts as local files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.errors import BadInput
from adaptkit.names import BASE_RUN_ID_TAG, KIND_TAG
from adaptkit.tracking.fetching import local_artifacts
from adaptkit.tracking.reader import Reader, open_reader
from adaptkit.tracking.store import errors_as_lines

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

#: kinds of runs that have a model
KINDS = ("adaptation", "imported", "base")


@dataclass(frozen=True)
class StoredRun:
    """A run in a store, and where its artifacts are."""

    runs: RunFinder
    record: MlflowRun

    @property
    def run_id(self) -> str:
        """Return the run's id."""
        return str(self.record.info.run_id)

    @property
    def name(self) -> str:
        """Return what the run is called."""
        return str(self.record.info.run_name or self.run_id)

    @property
    def title(self) -> str:
        """Return what messages call the run."""
        return f"run {self.run_id} ({self.name})"

    @property
    def tags(self) -> Mapping[str, str]:
        """Return the run's tags."""
        tags: Mapping[str, str] = self.record.data.tags
        return tags

    @property
    def params(self) -> Mapping[str, str]:
        """Return the run's params."""
        params: Mapping[str, str] = self.record.data.params
        return params

    @property
    def kind(self) -> str:
        """Return adaptation, imported or base."""
        return self.tags.get(KIND_TAG, "")

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Lend an artifact as a local file; raise BadInput when there is none."""
        try:
            with self.runs.reader.artifact(self._artifacts, name) as path:
                yield path
        except FileNotFoundError as error:
            if error.filename != name:
                raise
            raise BadInput(f"{self.title} has no artifact {name}") from None

    @contextmanager
    def folder(self, name: str, *files: str) -> Iterator[Path]:
        """Lend files of an artifact folder as they lie in a local folder; raise BadInput when one is missing."""
        with tempfile.TemporaryDirectory(prefix="adaptkit-") as copied:
            lent = Path(copied)
            for file in files:
                with self.file(f"{name}/{file}") as path:
                    if self._local is None:
                        shutil.move(path, copied)
                    else:
                        lent = path.parent
            yield lent

    def has(self, name: str) -> bool:
        """Tell whether the run has an artifact of this name."""
        folder, _, _ = name.rpartition("/")
        local = self._local
        if local is not None:
            return (local / name).is_file()
        with errors_as_lines(self.runs.reader.address):
            return any(entry.path == name for entry in self.runs.reader.client.list_artifacts(self.run_id, folder))

    def bases(self, fingerprint: str) -> Iterator[StoredRun]:
        """Yield the run's base run, if it is there, then others in its experiment that say they have these weights."""
        named = self.tags.get(BASE_RUN_ID_TAG)
        if named and (record := self.runs.get(named)) is not None:
            yield StoredRun(self.runs, record)
        condition = f"tags.`adaptkit.kind` = 'base' and tags.`adaptkit.base_fingerprint` = '{fingerprint}'"
        with errors_as_lines(self.runs.reader.address):
            others = self.runs.reader.client.search_runs([self.record.info.experiment_id], condition, max_results=10)
        yield from (StoredRun(self.runs, record) for record in others if record.info.run_id != named)

    @property
    def _artifacts(self) -> str:
        return str(self._local) if self._local is not None else str(self.record.info.artifact_uri)

    @property
    def _local(self) -> Path | None:
        """Return the folder of the run's artifacts on this machine; None if they are elsewhere."""
        address = str(self.record.info.artifact_uri or "")
        return local_artifacts(address, self.runs.reader.address.path)


@dataclass(frozen=True)
class RunFinder:
    """The runs of an open store."""

    reader: Reader

    def find(self, run_id: str, kinds: Collection[str] = KINDS) -> StoredRun:
        """Return a finished run of one of these kinds; raise BadInput, with what else can be done, for any other."""
        record = self.get(run_id)
        if record is None:
            raise BadInput(f"there is no run {run_id!r} in {self.reader.address.shown}")
        found = StoredRun(self, record)
        if record.info.lifecycle_stage == "deleted":
            raise BadInput(f"{found.title} was deleted; `mlflow runs restore --run-id {run_id}` brings it back")
        if found.kind in ("comparison", "sweep"):
            inner = [f"{run.info.run_id} ({run.info.run_name})" for run in self.reader.find([run_id], None, None)]
            hint = f"; name one of its runs: {', '.join(inner[:8])}" if inner else ""
            raise BadInput(f"{found.title} groups others and has no model{hint}{' ...' if inner[8:] else ''}")
        if found.kind not in kinds:
            made = f"is of kind {found.kind}" if found.kind else "is not a run of adaptkit's"
            raise BadInput(f"{found.title} {made}: it has no model that adaptkit could rebuild")
        status = record.info.status
        if status != "FINISHED":
            told = {"RUNNING": "is still running: wait for it", "KILLED": "was killed: it has no model"}
            raise BadInput(f"{found.title} {told.get(status, 'failed: it has no model')}")
        return found

    def get(self, run_id: str) -> MlflowRun | None:
        """Return the record of a run of any kind, None if there is none of this id."""
        from mlflow.exceptions import MlflowException

        with errors_as_lines(self.reader.address):
            try:
                return self.reader.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                return None


def open_runs(uri: str | None) -> RunFinder:
    """Open the store that is meant; raise BadInput when there is none, or it cannot be reached."""
    return RunFinder(open_reader(uri))
