"""Write runs that group other runs: those of `run`, `resume`, `sweep` and `tune`, and the comparisons of `compare`."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from adaptkit.comparison.findings import Comparisons
from adaptkit.errors import TrackingLost
from adaptkit.names import ARMS_FILE, KIND_TAG, VERSION_TAG
from adaptkit.tracking.environment import source_tags
from adaptkit.tracking.findings import findings_log, write_arms
from adaptkit.tracking.journal import Create, End, Event, Log, Reopen, now
from adaptkit.tracking.outbox import Outbox
from adaptkit.tracking.store import Store, errors_as_lines, open_existing, open_store
from adaptkit.version import __version__

#: maximum number of strategies in the name of a comparison run
NAMED_STRATEGIES = 4


def status_after(error: BaseException) -> str:
    """Return the final status of a run that this error stopped."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    return "FINISHED" if isinstance(error, SystemExit) and error.code in (None, 0) else "FAILED"


class ParentRun:
    """A run that groups other runs and contains their joint results.

    With a `run_id`, the existing run of that id is reopened; `local_id` is its identifier on this machine.
    """

    def __init__(
        self,
        outbox: Outbox,
        store: Store,
        name: str,
        *,
        kind: str,
        params: Mapping[str, object],
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        local_id: str | None = None,
    ) -> None:
        self.local_id = local_id or uuid.uuid4().hex
        self._outbox, self._store, self._is_ended = outbox, store, False
        tags = {**source_tags(store.without_secrets), VERSION_TAG: __version__, KIND_TAG: kind, **(tags or {})}
        opening: list[Event] = [Create(name, now(), tags)] if run_id is None else [Reopen(run_id), Log(tags=tags)]
        outbox.open(self.local_id, name)
        outbox.add(self.local_id, *opening, Log(params={key: str(value) for key, value in params.items()}))
        outbox.wait_for_id(self.local_id)

    @property
    def run_id(self) -> str:
        """Return the id of the run in the store; raise TrackingLost if the store has not created the run."""
        run_id = self._outbox.run_id(self.local_id)
        if run_id is None:
            raise TrackingLost(f"cannot create a run in {self._store.shown}: {self._outbox.fault or 'it is slow'}")
        return run_id

    def conclude(self, findings: Comparisons | None, files: Sequence[Path]) -> None:
        """Add the results of the grouped runs, and copies of these files."""

        def write(folder: Path) -> None:
            # In the root folder of the artifacts: MLflow's compare page shows no other files.
            if findings is not None:
                write_arms(folder / ARMS_FILE, findings.comparisons)
            for path in files:
                shutil.copyfile(path, folder / path.name)

        if findings is not None:
            self._outbox.add(self.local_id, findings_log(findings, self._store.experiment_id))
        if findings is not None or files:
            self._outbox.add_files(self.local_id, "artifacts", write)

    def end(self, status: str) -> None:
        """End the run; calls after the first have no effect."""
        if not self._is_ended:
            self._is_ended = True
            self._outbox.add(self.local_id, End(status, now()))


@contextmanager
def open_parent(
    store: Store,
    name: str,
    *,
    kind: str,
    params: Mapping[str, object],
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> Iterator[ParentRun]:
    """Open a parent run for the duration of a block; an error in the block determines its final status.

    Events that cannot be sent are not kept for later. Raises TrackingLost if the store does not accept all of them.
    """
    with tempfile.TemporaryDirectory(prefix="adaptkit-", ignore_cleanup_errors=True) as folder:
        outbox = Outbox(store, Path(folder))
        try:
            parent = ParentRun(outbox, store, name, kind=kind, params=params, tags=tags, run_id=run_id)
            try:
                outbox.flush()
                run_id = parent.run_id
                yield parent
            except BaseException as error:
                parent.end(status_after(error))
                raise
            parent.end("FINISHED")
        finally:
            fault = outbox.close()
        if fault is not None:
            with contextlib.suppress(Exception):  # an error of the store: it has already failed
                store.client.set_terminated(run_id, "FAILED")
            raise TrackingLost(f"{name!r} could not be recorded completely in {store.shown}: {fault}")


def record_findings(findings: Comparisons, files: Sequence[Path], tracking_uri: str | None) -> tuple[str, ...]:
    """Create a run for each comparison in the experiment of the compared runs; return the addresses of their reports.

    Raises BadInput if the store cannot be written, and TrackingLost if it fails later.
    """
    address, client = open_existing(tracking_uri)
    compared_id = findings.comparisons[0].arms[0].runs[0].run_id
    assert compared_id is not None  # runs that were read from a store have an id
    with errors_as_lines(address):
        experiment = client.get_experiment(client.get_run(compared_id).info.experiment_id)
    store = open_store(tracking_uri, experiment.name)
    run_ids = []
    for comparison in findings.comparisons:
        names = [arm.name for arm in comparison.arms]
        if len(names) > NAMED_STRATEGIES:
            names = [*names[:NAMED_STRATEGIES], f"{len(names) - NAMED_STRATEGIES} more"]
        title = f"compare {', '.join(names)}"
        with open_parent(store, title, kind="comparison", params=comparison.setup) as parent:
            parent.conclude(Comparisons((comparison,)), files)
            run_ids.append(parent.run_id)
    return tuple(address.report_url(store.experiment_id, run_id) for run_id in run_ids)
