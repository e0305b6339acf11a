"""Experiments on one machine are counted, also after kills and failures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import TINY, TINY_SETTINGS

import adaptkit
from adaptkit.events import Epoch, RunStart
from adaptkit.system.core_sharing import Occupancy, Seat

#: takes a seat, and answers each input line with the number of other experiments
SITTER = """
import sys
from adaptkit.system.core_sharing import Seat
with Seat() as seat:
    print("seated", flush=True)
    for line in sys.stdin:
        print(seat.occupancy().others, flush=True)
"""


class Sitter:
    """Another process that holds a seat."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", SITTER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def others(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return int(self.line())

    def leave(self) -> None:
        assert self.process.communicate() == ("", None) and self.process.returncode == 0


Sit = Callable[[], Sitter]


@pytest.fixture
def sit(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sit]:
    """Return a function that starts a process with a seat, in a separate cache folder."""
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    started: list[Sitter] = []

    def start() -> Sitter:
        started.append(Sitter())
        return started[-1]

    yield start
    for sitter in started:
        sitter.process.kill()
        sitter.process.communicate()


def seated(sit: Sit) -> Sitter:
    sitter = sit()
    assert sitter.line() == "seated"
    return sitter


def test_single_experiment(sit: Sit) -> None:
    with Seat() as seat:
        before = seat.occupancy()
        assert before == Occupancy(others=0, arrivals=1)
        assert seat.timing_since(before) == "alone"
    with Seat() as seat:
        before = seat.occupancy()
        assert before == Occupancy(others=0, arrivals=2)
        assert seat.timing_since(before) == "alone"


def test_two_processes(sit: Sit) -> None:
    with Seat() as seat:
        other = seated(sit)
        assert (seat.occupancy().others, other.others()) == (1, 1)
        other.leave()
        assert seat.occupancy().others == 0


def test_killed_process_frees_seat(sit: Sit, own_folder: Path) -> None:
    with Seat() as seat:
        other = seated(sit)
        assert seat.occupancy().others == 1
        other.process.kill()
        other.process.wait()
        assert seat.occupancy().others == 0
        seated(sit)
        assert seat.occupancy().others == 1
    taken = sorted(path.name for path in own_folder.glob("cache/running/*/*.lock"))
    assert taken == ["0.lock", "1.lock"]


def test_timing_with_overlap(sit: Sit) -> None:
    with Seat() as seat:
        first = seat.occupancy()
        assert seat.timing_since(first) == "alone"
        other = seated(sit)
        both = seat.occupancy()
        assert seat.timing_since(first) == "shared"  # it is still running
        other.leave()
        assert seat.timing_since(first) == "shared"  # it started and ended
        assert seat.timing_since(both) == "shared"  # it was running before
        assert seat.timing_since(seat.occupancy()) == "alone"


def test_simultaneous_start(sit: Sit) -> None:
    sitters = [sit() for _ in range(5)]
    assert [sitter.line() for sitter in sitters] == ["seated"] * 5
    assert [sitter.others() for sitter in sitters] == [4] * 5
    with Seat() as seat:
        assert seat.occupancy() == Occupancy(others=5, arrivals=6)


def test_two_experiments_in_one_process(sit: Sit) -> None:
    with Seat() as outer, Seat() as inner:
        assert (outer.occupancy().others, inner.occupancy().others) == (1, 1)


def test_failed_experiment_frees_seat(sit: Sit) -> None:
    with pytest.raises(ZeroDivisionError), Seat():
        raise ZeroDivisionError
    with Seat() as seat:
        assert seat.occupancy().others == 0


def test_read_only_cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "file").write_text("not a folder")
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "file"))
    with Seat() as seat:
        before = seat.occupancy()
        assert before == Occupancy(others=0, arrivals=0)
        assert seat.timing_since(before) == "alone"


@pytest.mark.slow
def test_shared_timing_is_not_ranked(
    sit: Sit, cli: Callable[..., Result], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = json.loads(cli("run", "-s", "head", "-s", "lora", *TINY, "--json", "-q").stdout)
        other = seated(sit)
        result = cli("run", "-s", "head", "-s", "lora", *TINY, "--experiment", "neighbour", "--json")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    other.leave()
    notice = "1 other experiment is running on this machine: this one uses 1 of 2 cores; "
    assert [line.startswith(notice) for line in result.stderr.splitlines()].count(True) == 1
    beside = json.loads(result.stdout)
    for outcome, timing, threads in ((alone, "alone", "2"), (beside, "shared", "1")):
        for run in outcome["runs"]:
            tags = MlflowClient().get_run(run["run_id"]).data.tags
            assert (tags["adaptkit.timing"], tags["adaptkit.threads"]) == (timing, threads)
        assert outcome["comparison"]["comparisons"][0]["timings_comparable"] is (timing == "alone")
    compared = json.loads(cli("compare", "--experiment", "neighbour", "--json").stdout)
    assert compared["comparisons"][0]["timings_comparable"] is False


@pytest.mark.slow
def test_short_experiment_during_run(sit: Sit) -> None:
    class Visitor:
        """Start and end another experiment during training."""

        @adaptkit.hookimpl
        def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
            if run.kind == "adaptation" and run.params["strategy"] == "head" and epoch.number == 1:
                seated(sit).leave()

    for strategies, comparable in ((["lora", "full"], True), (["lora", "head"], False)):
        outcome = adaptkit.run(strategies, settings=TINY_SETTINGS, plugins=[Visitor()], track=False)
        assert outcome.comparison is not None
        assert outcome.comparison.timings_comparable is comparable
