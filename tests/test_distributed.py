"""Several processes that torchrun starts: what they train is what one trains, and none outlives another."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FOREIGN, TINY
from safetensors.torch import load_file
from test_tracking import runs

from adaptkit.training.torchrun import Place, place

#: 50 target images in batches of 7: of the last batch, a single image, the second process has none
RUN = ("-s", "full", "-s", "head", "-s", "lora", "-s", "spy", *TINY, "--batch-size", "7", "--plugin", "plugin.py", "-q")
LEARNED = ("loss", "train_accuracy", "test_accuracy", "shifted_accuracy")

PLUGIN = '''
import os, signal, time
from adaptkit import hookimpl

RANK = os.environ.get("RANK", "alone")

def watch(module, inputs):
    if module.training:
        if RANK == "1":
            print("a process that shall be silent")
        with open(f"seen-{RANK}", "a") as stream:
            stream.write(f"{len(inputs[0])} ")

class Spy:
    """Note how many images each process trains on."""
    name = "spy"
    lr = 1e-3
    def adapt(self, model):
        model.register_forward_pre_hook(watch)
        return list(model.parameters())

class Failing:
    """Fail in the second process alone."""
    name = "failing"
    lr = 1e-3
    def adapt(self, model):
        model.register_forward_pre_hook(self.pass_by)
        return list(model.parameters())
    def pass_by(self, module, inputs):
        if module.training and RANK == "1" and HOW == "forward":
            raise ValueError("no forward pass")
    def step_ended(self, model, step):
        if step == 3 and RANK == "1" and HOW == "killed":
            with open("died", "w") as stream:
                stream.write(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3 and RANK == "1" and HOW == "step":
            raise ValueError("no step")
        if step == 3 and RANK == "1" and HOW == "drift":
            next(model.parameters()).data.add_(1e-6)
        if step == 1 and RANK == "1" and HOW == "evaluation":
            model.eval = None

HOW = os.environ.get("HOW", "")

@hookimpl
def adaptkit_strategies():
    return [Spy, Failing]

@hookimpl
def adaptkit_run_started(run, model):
    with open(f"told-{RANK}", "a") as stream:
        stream.write(f"{run.name}\\n")
'''


#: run by two processes; prints what each of them finds
SCRIPT = """
import sys, torch
from torch import nn
from adaptkit.errors import AdaptkitError, RunFailed
from adaptkit.training.distributed import joined

def outcome(action):
    try:
        return action()
    except AdaptkitError as error:
        return type(error).__name__ + " " + str(error)

def fail(processes):
    with processes.together():
        if processes.rank == 1:
            raise RunFailed("only here")

with joined(lambda: torch.device("cpu")) as processes:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].requires_grad_(False).eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters += nn.Linear(2, 2).parameters()  # which nothing uses
    found = []
    for size in (5, 1):
        images, labels = torch.rand(size, 3), torch.arange(size) % 2
        nn.functional.cross_entropy(model(images), labels).backward()
        expected = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        part = processes.share(torch.arange(size))
        with processes.combined(parameters):
            if len(part):
                loss = nn.functional.cross_entropy(model(images[part]), labels[part])
                (loss * len(part) / size).backward()
        got = [parameter.grad for parameter in parameters]
        same = [a is None if b is None else torch.allclose(a, b, atol=1e-7) for a, b in zip(got, expected)]
        found += [part.tolist(), all(same), [gradient is None for gradient in got]]
        for parameter in parameters:
            parameter.grad = None
    model[1].train()
    model[1].running_mean.fill_(processes.rank)
    model[1].num_batches_tracked.fill_(7 - processes.rank)
    processes.average_statistics(model)
    found += [model[1].running_mean.tolist(), model[1].num_batches_tracked.item()]
    found += [processes.from_first(lambda: processes.rank), outcome(lambda: fail(processes))]
    found += [outcome(lambda: processes.require_same({"": torch.ones(1)}, "in")), int(processes.total(torch.ones(())))]
    model[0].weight.data.add_(processes.rank)
    found += [outcome(lambda: processes.require_same(model.state_dict(), "after"))]
with open(f"found-{processes.rank}", "w") as stream:
    stream.write(repr(found))
"""


def command(*arguments: str, processes: int = 2) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *launcher, *arguments]


def started(arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment = inherited | {"ADAPTKIT_CACHE": str(folder / "cache"), "MLFLOW_DISABLE_TELEMETRY": "true"} | variables
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def own_lines(errors: str) -> list[str]:
    """Return what adaptkit's processes wrote to standard error: all before torchrun's report of those that failed."""
    return re.split(r"^[WE]\d{4} .*elastic", errors, maxsplit=1, flags=re.MULTILINE)[0].splitlines()


def exit_codes(errors: str) -> list[int]:
    return [int(code) for code in re.findall(r"^  exitcode  : (-?\d+)", errors, re.MULTILINE)]


@dataclass(frozen=True)
class Done:
    """A folder with a store and a cache in which an experiment was run, and what it printed."""

    folder: Path
    outcome: dict[str, Any]
    errors: str

    def records(self) -> dict[str, Any]:
        return {run["strategy"]: run for run in self.outcome["runs"]}

    def adapter(self, strategy: str) -> dict[str, torch.Tensor]:
        run_id = self.records()[strategy]["run_id"]
        (path,) = self.folder.glob(f"mlruns/*/{run_id}/artifacts/adapter/adapter.safetensors")
        return load_file(path)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[int, Done]:
    """Run one experiment with one process and with two, each with a store and a cache of its own."""
    root, found = tmp_path_factory.mktemp("processes"), {}
    for count in (1, 2):
        folder = root / str(count)
        folder.mkdir()
        shutil.copy(empty_store, folder / "mlflow.db")
        (folder / "plugin.py").write_text(PLUGIN)
        done = started(command("-m", "adaptkit", "run", *RUN, "--json", processes=count), folder)
        assert done.returncode == 0, done.stderr
        found[count] = Done(folder, json.loads(done.stdout), done.stderr)
    return found


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")  # other tools set these, too
    assert place() == Place(0, 0, 1)
    for name, value in (("LOCAL_RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert place() == Place(1, 0, 2)


def test_gradients_are_those_of_the_whole_batch_and_errors_are_everybodys(own_folder: Path) -> None:
    (own_folder / "script.py").write_text(SCRIPT)
    done = started(command("script.py"), own_folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    used = [False] * 4 + [True] * 2
    for rank, parts in enumerate(([[0, 1, 2], [0]], [[3, 4], []])):
        found = eval((own_folder / f"found-{rank}").read_text())
        assert found[:6] == [parts[0], True, used, parts[1], True, used]
        assert found[6:] == [
            *([0.5] * 4, 7), 0, "RunFailed only here", None, 2,
            "RunFailed the processes do not hold the same weights after training",
        ]  # fmt: skip


def test_bad_input_is_said_once_and_is_exit_code_2_of_each_process(own_folder: Path) -> None:
    done = started(command("-m", "adaptkit", "run", "-s", "hed", *TINY, "--no-track"), own_folder)
    assert own_lines(done.stderr) == ["Error: unknown strategy 'hed'; did you mean 'head'?"]
    assert (done.returncode, done.stdout, exit_codes(done.stderr)) == (1, "", [2, 2])


@pytest.mark.slow
def test_what_shows_only_in_the_data_or_the_store_is_said_once_too(own_folder: Path) -> None:
    for wrong, line in (
        (("--target", "folder:nowhere"), "Error: folder:nowhere: there is no such folder"),
        (("--report", "file/report"), "Error: cannot write a report to file/report: Not a directory"),
    ):
        (own_folder / "file").touch()
        done = started(command("-m", "adaptkit", "run", "-s", "head", *TINY, "--no-track", *wrong), own_folder)
        assert own_lines(done.stderr) == [line]
        assert (done.returncode, done.stdout, exit_codes(done.stderr)) == (1, "", [2, 2])


@pytest.mark.slow
def test_two_processes_find_what_one_finds(both: dict[int, Done]) -> None:
    one, two = both[1], both[2]
    for ours, theirs in zip(two.outcome["base"]["epochs"], one.outcome["base"]["epochs"], strict=True):
        assert [ours[key] for key in LEARNED[:3]] == pytest.approx([theirs[key] for key in LEARNED[:3]], abs=1e-4)
    assert list(two.records()) == list(one.records()) == ["full", "head", "lora", "spy"]
    for strategy, run in two.records().items():
        other = one.records()[strategy]
        assert run["metrics"].keys() == other["metrics"].keys()
        for key in (key for key in run["metrics"] if not key.startswith("time/")):
            assert run["metrics"][key] == pytest.approx(other["metrics"][key], abs=1e-4), (strategy, key)
        for ours, theirs in zip(run["epochs"], other["epochs"], strict=True):
            assert [ours[key] for key in LEARNED] == pytest.approx([theirs[key] for key in LEARNED], abs=1e-4)
        ours, theirs = two.adapter(strategy), one.adapter(strategy)
        assert ours.keys() == theirs.keys() and ours
        for name, tensor in ours.items():
            # Adam makes a whole step of a gradient that is rounding noise alone: a few of 400,000 weights move so.
            share = ((tensor - theirs[name]).abs() > 1e-4).float().mean().item()
            assert share <= (1e-4 if strategy in ("full", "spy") else 0), (strategy, name)
    (ours,), (theirs,) = (list((both[n].folder / "cache" / "bases").glob("*/base.safetensors")) for n in (2, 1))
    assert ours.parent.name == theirs.parent.name  # one recipe
    weights, others = load_file(ours), load_file(theirs)
    assert all(torch.allclose(weights[name], others[name], rtol=0, atol=1e-4) for name in others)


@pytest.mark.slow
def test_each_process_trains_on_its_share(both: dict[int, Done]) -> None:
    def seen(count: int, rank: str) -> list[int]:
        return [int(word) for word in (both[count].folder / f"seen-{rank}").read_text().split()]

    # One step more, of the first process: the one of which the memory is measured.
    assert seen(1, "alone") == [7] + 2 * [*[7] * 7, 1]
    assert seen(2, "0") == [7] + 2 * [*[4] * 7, 1]
    assert seen(2, "1") == 2 * [3] * 7


@pytest.mark.slow
def test_the_first_process_alone_tracks_tells_and_is_watched(both: dict[int, Done]) -> None:
    two = both[2]
    assert two.errors == ""
    found = runs(f"sqlite:///{two.folder / 'mlflow.db'}")
    own = ["full seed=0", "head seed=0", "lora seed=0", "spy seed=0"]
    assert sorted(found) == ["base small_cnn mnist5k", "full seed=0", "full, head, lora, spy seed=0", *own[1:]]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert {found[name].data.tags["adaptkit.processes"] for name in ("base small_cnn mnist5k", *own)} == {"2"}
    assert (two.folder / "told-0").read_text().splitlines() == ["base small_cnn mnist5k", *own]
    assert not (two.folder / "told-1").exists()
    # One seat for both, and nobody beside them.
    (arrivals,) = (two.folder / "cache" / "running").glob("*/arrivals")
    assert arrivals.read_bytes() == b"."
    assert found["full seed=0"].data.tags["adaptkit.timing"] == "alone"
    alone = runs(f"sqlite:///{both[1].folder / 'mlflow.db'}")["full seed=0"].data.tags
    assert alone["adaptkit.processes"] == "1"


@pytest.mark.slow
def test_a_base_in_the_cache_is_found_by_all(both: dict[int, Done]) -> None:
    two = both[2]
    done = started(command("-m", "adaptkit", "run", *RUN[:4], *RUN[8:], "--json", "--no-track"), two.folder)
    assert (done.returncode, done.stderr) == (0, "")
    outcome = json.loads(done.stdout)
    assert outcome["base"]["cached"] and outcome["base"]["fingerprint"] == two.outcome["base"]["fingerprint"]
    assert [run["strategy"] for run in outcome["runs"]] == ["full", "head"]
    for run in outcome["runs"]:
        earlier = two.records()[run["strategy"]]
        assert [[epoch[key] for key in LEARNED] for epoch in run["epochs"]] == [
            [epoch[key] for key in LEARNED] for epoch in earlier["epochs"]
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("forward", "Error: process 1 fails: ValueError: no forward pass ("),
        ("step", "Error: process 1 fails: ValueError: no step ("),
        ("evaluation", "Error: process 1 fails: TypeError: 'NoneType' object is not callable ("),
        ("killed", "Error: another process of this run has ended, or cannot be reached"),
    ],
)
def test_a_process_that_fails_ends_all_within_seconds(store: Path, own_folder: Path, how: str, words: str) -> None:
    (own_folder / "plugin.py").write_text(PLUGIN)
    arguments = ("-s", "failing", "-s", "head", *TINY, "--plugin", "plugin.py", "-q")
    done = started(command("-m", "adaptkit", "run", *arguments), own_folder, HOW=how)
    if how == "killed":
        assert time.time() - float((own_folder / "died").read_text()) < 20
        # torchrun may stop the first process before it can say more.
        assert -9 in exit_codes(done.stderr) and len(exit_codes(done.stderr)) == 2
        assert [line for line in own_lines(done.stderr) if line not in (words, "Interrupted.")] == []
    else:
        # Where only one knows, torchrun may stop the first process before its own end.
        assert 1 in exit_codes(done.stderr) and set(exit_codes(done.stderr)) <= (
            {1, -15} if how == "evaluation" else {1}
        )
        assert len([line for line in own_lines(done.stderr) if line.startswith(words)]) == 1, done.stderr
    assert (done.returncode, done.stdout) == (1, "")
    found = runs()
    assert sorted(found) == ["base small_cnn mnist5k", "failing seed=0", "failing, head seed=0"]
    assert found["failing seed=0"].info.status in (("FAILED", "KILLED") if how == "killed" else ("FAILED",))


@pytest.mark.slow
def test_weights_that_drift_apart_are_a_failed_run_and_the_next_one_goes_on(store: Path, own_folder: Path) -> None:
    (own_folder / "plugin.py").write_text(PLUGIN)
    arguments = ("-s", "failing", "-s", "head", *TINY, "--plugin", "plugin.py", "-q")
    done = started(command("-m", "adaptkit", "run", *arguments), own_folder, HOW="drift")
    line = "Error: failing seed=0: the processes do not hold the same weights after training"
    assert (own_lines(done.stderr), exit_codes(done.stderr)) == ([line], [1, 1])
    assert {name: run.info.status for name, run in runs().items() if "," not in name} == {
        "base small_cnn mnist5k": "FINISHED", "failing seed=0": "FAILED", "head seed=0": "FINISHED",
    }  # fmt: skip


@pytest.mark.slow
def test_the_way_beyond_that_the_docs_show_runs(own_folder: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "distributed.md").read_text(encoding="utf-8")
    (script,) = [block for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "fully_shard" in block]
    (own_folder / "beyond.py").write_text(script)
    done = started(command("beyond.py"), own_folder)
    assert done.returncode == 0, done.stderr
    lines = sorted(re.sub(r"loss [0-9.]+", "loss", line) for line in done.stdout.splitlines())
    assert lines == [f"process {rank}: loss, 18 tensors trained" for rank in (0, 0, 1, 1)]
