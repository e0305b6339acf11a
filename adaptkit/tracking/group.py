"""The run of kind comparison that groups the runs of one command."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptkit.findings import Findings
from adaptkit.tracking.events import End, now
from adaptkit.tracking.outbox import Outbox
from adaptkit.tracking.recorder import begin_comparison, findings_log, write_arms
from adaptkit.tracking.store import Store


class Group:
    """Record what a command's runs say together."""

    def __init__(self, outbox: Outbox, store: Store, name: str, params: Mapping[str, Any]) -> None:
        self.local_id = uuid.uuid4().hex
        self._outbox, self._store = outbox, store
        outbox.open(self.local_id, name)
        outbox.tell(self.local_id, *begin_comparison(store, name, params))

    def conclude(self, findings: Findings, files: Sequence[Path]) -> None:
        """Record what the runs say, with these files."""

        def write(folder: Path) -> None:
            write_arms(folder / "arms.csv", findings.comparisons)
            for path in files:
                shutil.copyfile(path, folder / path.name)

        self._outbox.tell(self.local_id, findings_log(findings, self._store.experiment_id))
        self._outbox.put(self.local_id, "artifacts", write)

    def end(self, status: str) -> None:
        """Record the end."""
        self._outbox.tell(self.local_id, End(status, now()))
