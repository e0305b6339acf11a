"""Keep checkpoints of an experiment's runs while they are made, and start from those that are there."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptkit.contracts import Epoch, Run
from adaptkit.experiment.preparation import Experiment
from adaptkit.experiment.underway import Claim, Record, claim, file_digest, folder_of
from adaptkit.training.checkpoints import Checkpoint, Keep, read_checkpoint, unseen, write_checkpoint

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Resumed, Tracker

#: what decides the last digits of results
DISTRIBUTIONS = ("adaptkit-vision", "torch", "torchvision", "numpy")


class Kept:
    """What is kept of one run: nothing, where runs are not kept. The store has its first `logged` epochs."""

    def __init__(self, keeping: Keeping | None = None, held: Claim | None = None, record: Record | None = None) -> None:
        self._keeping, self._claim, self._record = keeping, held, record
        self._resumed = keeping.resumed.get(record.name) if keeping and record else None
        self._told = False

    def start(self, model: nn.Module, acts: bool = False) -> Checkpoint | None:
        """Return the checkpoint from which a model, as it is before it is trained, goes on; None: from the beginning.

        Of a strategy that `acts` between steps none is kept: what it remembers is nobody else's to know.
        """
        if self._claim is None or self._record is None:
            return None
        reason = "its strategy acts between steps" if acts else unseen(model)
        found = None
        if reason is not None:
            self._give_up(reason)
        else:
            try:
                found = read_checkpoint(self._claim.checkpoint, self._record.local_id)
                if (misfit := found.misfit(model)) is not None:
                    raise ValueError(misfit)
            except FileNotFoundError:
                reason = self._record.no_checkpoint or "no epoch of it had ended"
            except ValueError as error:
                found, reason = None, f"its checkpoint cannot be used ({error})"
        if self._resumed is not None and self._keeping is not None:
            if found is None:
                self._keeping.notice(f"{self._record.name}: trained again from its first epoch: {reason}")
            else:
                self._keeping.notice(f"{self._record.name}: goes on after epoch {len(found.epochs)}")
        return found

    def lacks(self, epoch: Epoch) -> bool:
        """Tell whether watchers have not been told of an epoch."""
        return self._resumed is None or epoch.number > self._resumed.epochs

    @property
    def keep(self) -> Keep | None:
        """Return what is done with each epoch's checkpoint; None if there is to be none."""
        return self._keep if self._record is not None and self._record.no_checkpoint is None else None

    def _keep(self, found: Checkpoint | str) -> None:
        assert self._claim is not None and self._record is not None and self._keeping is not None
        try:
            if isinstance(found, str):
                self._give_up(found)
            elif self._record.no_checkpoint is None:
                write_checkpoint(self._claim.checkpoint, found, self._record.local_id)
        except OSError as error:
            self._tell(error)

    def _give_up(self, reason: str) -> None:
        assert self._claim is not None and self._record is not None
        if self._record.no_checkpoint is not None:
            return
        self._record = dataclasses.replace(self._record, no_checkpoint=reason)
        try:
            # First: an earlier checkpoint holds all there was then, but not what was kept outside since.
            self._claim.checkpoint.unlink(missing_ok=True)
            self._claim.write(self._record)
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        assert self._keeping is not None and self._claim is not None
        if not self._told:
            self._keeping.notice(_unwritten(self._claim.path, error))
        self._told = True


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Keep the runs of one tracked experiment; `resumed` are those, by name, that go on, `claims` their folders.

    `left` are the runs that a signal has stopped; `parent` is the local id of what groups a run that goes on alone.
    """

    experiment: Experiment
    tracker: Tracker
    reuse: bool
    notice: Callable[[str], None]
    report: Path | None = None
    resumed: Mapping[str, Resumed] = dataclasses.field(default_factory=dict)
    claims: dict[str, Claim] = dataclasses.field(default_factory=dict)
    left: list[str] = dataclasses.field(default_factory=list)
    parent: str | None = None

    @contextmanager
    def run(self, run: Run, config: str, base_fingerprint: str | None = None) -> Iterator[Kept]:
        """Keep a run while it is made; forget it when it has ended, but not when a signal stopped it."""
        record = self._record(
            self.tracker.local_id(run),
            run.kind,
            run.name,
            config,
            parent=(self.parent or self.tracker.group_id) if run.kind == "adaptation" else None,
            base_fingerprint=base_fingerprint,
            params={key: str(value) for key, value in run.params.items()},
        )
        with self._kept(record, lambda: self.tracker.run_id(run.name)) as kept:
            yield kept

    @contextmanager
    def group(self) -> Iterator[None]:
        """Keep what the run that groups this experiment's runs is made of, while they are made."""
        group, request = self.tracker.group_id, self.experiment.request
        if group is None:
            yield
            return
        record = self._record(group, "comparison", request.group_name, request.command_text())
        with self._kept(record, lambda: self.tracker.parent_id):
            yield

    def _record(self, local_id: str, kind: str, name: str, config: str, **known: Any) -> Record:
        store = self.tracker.store
        return Record(
            local_id=local_id,
            kind=kind,
            name=name,
            config=config,
            folder=str(Path.cwd()),
            store=store.without_secrets(store.uri),
            experiment=store.experiment_name,
            base_key=self.experiment.base_key,
            data_fingerprint=self.experiment.domains.fingerprint,
            threads=torch.get_num_threads(),
            reuse=self.reuse,
            versions=versions(),
            command=store.without_secrets(_command()),
            report=None if self.report is None else str(self.report.absolute()),
            **known,
        )

    @contextmanager
    def _kept(self, record: Record, run_id: Callable[[], str | None]) -> Iterator[Kept]:
        held = self.claims.pop(record.name, None)
        try:
            held = held or claim(record.local_id)
            if held is not None:
                files = {path: file_digest(path) for path in self.experiment.request.plugin_files}
                record = dataclasses.replace(record, plugin_files=files)
                held.write(record)
        except OSError as error:
            if held is not None:
                held.release()
                held = None
            self.notice(_unwritten(folder_of(record.local_id), error))
        if held is None:
            yield Kept()
            return
        try:
            yield Kept(self, held, record)
        except KeyboardInterrupt:
            held.release()
            self.left.append(run_id() or "--all")  # a store that is slow or away has no id for it yet
            raise
        except BaseException:
            held.discard()
            raise
        held.discard()

    def hint(self, tracking_uri: str | None) -> str | None:
        """Return the command that goes on with what a signal has stopped; None if nothing was kept of it."""
        if not self.left:
            return None
        words = ["adaptkit", "resume", self.left[-1]]
        if tracking_uri is not None:
            words += ["--tracking-uri", self.tracker.store.without_secrets(tracking_uri)]
        return shlex.join(words)


@contextmanager
def kept_while(keeping: Keeping | None, run: Run, config: str, base_fingerprint: str | None = None) -> Iterator[Kept]:
    """Keep a run while it is made, if runs are kept."""
    if keeping is None:
        yield Kept()
        return
    with keeping.run(run, config, base_fingerprint) as kept:
        yield kept


def versions() -> dict[str, str]:
    """Return the versions of what decides the last digits of results."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _command() -> str:
    """Return what was typed, or which script calls."""
    name = Path(sys.argv[0]).name
    return shlex.join(["adaptkit" if name == "__main__.py" else name, *sys.argv[1:]])


def _unwritten(path: Path, error: OSError) -> str:
    return f"no checkpoints are kept: cannot write to {path} ({error.strerror or error}); the run cannot be resumed"
