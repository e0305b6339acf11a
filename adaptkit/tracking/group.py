"""The run of kind comparison that groups the runs of one command."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptkit.findings import Findings
from adaptkit.tracking.events import End, Log, Reopen, now
from adaptkit.tracking.outbox import Outbox
from adaptkit.tracking.recorder import begin_comparison, findings_log, write_arms
from adaptkit.tracking.run_events import Resumed
from adaptkit.tracking.store import Store


class Group:
    """Record what a command's runs say together."""

    def __init__(
        self, outbox: Outbox, store: Store, name: str, params: Mapping[str, Any], resumed: Resumed | None = None
    ) -> None:
        self.local_id = resumed.local_id if resumed else uuid.uuid4().hex
        self._outbox, self._store, self._is_ended = outbox, store, False
        outbox.open(self.local_id, name)
        create, log = begin_comparison(store, name, params)
        beginning = (Reopen(resumed.run_id), Log(tags=create.tags), log) if resumed else (create, log)
        outbox.tell(self.local_id, *beginning)
        outbox.wait_for_id(self.local_id)

    def conclude(self, findings: Findings, files: Sequence[Path]) -> None:
        """Record what the runs say, with these files."""

        def write(folder: Path) -> None:
            write_arms(folder / "arms.csv", findings.comparisons)
            for path in files:
                shutil.copyfile(path, folder / path.name)

        self._outbox.tell(self.local_id, findings_log(findings, self._store.experiment_id))
        self._outbox.put(self.local_id, "artifacts", write)

    def end(self, status: str) -> None:
        """Record the end, once."""
        if not self._is_ended:
            self._is_ended = True
            self._outbox.tell(self.local_id, End(status, now()))
