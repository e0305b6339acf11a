"""Out of memory: the run fails with a hint, and the other runs continue."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import TINY
from support.reliability import note
from torch import Tensor, nn

from adaptkit.errors import lacks_memory
from adaptkit.training.loop import Recipe
from adaptkit.training.memory import step_bytes

HINT = "the device's memory is too small; a smaller --batch-size may help"

#: a strategy that allocates more memory than any machine has, in torch or in Python
GREEDY = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from adaptkit import hookimpl


@dataclass
class Greedy:
    """Train the head, and allocate memory after a step."""

    name: ClassVar[str] = "greedy"
    where: str = "nowhere"

    def adapt(self, model):
        return model.head.parameters()

    def step_ended(self, model, step):
        if self.where == "torch":
            torch.empty(1 << 60, dtype=torch.uint8)
        if self.where == "python":
            bytearray(1 << 62)
        if self.where == "bug":
            raise RuntimeError("memory of an elephant")


@hookimpl
def adaptkit_strategies():
    return [Greedy]
'''


@pytest.fixture
def greedy(own_folder: Path) -> tuple[str, ...]:
    (own_folder / "greedy.py").write_text(GREEDY)
    return ("--plugin", "greedy.py", "-s", "greedy", *TINY)


@pytest.mark.slow
def test_trial_out_of_memory_fails_with_a_hint(
    cli: Callable[..., Result], greedy: tuple[str, ...], own_folder: Path
) -> None:
    uri = f"sqlite:///{own_folder}/mlflow.db"
    grid = ("--grid", "where=nowhere,torch,python,bug")
    result = cli("sweep", *greedy, *grid, "--tracking-uri", uri, "--json", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    found = {trial["label"].partition("where=")[2]: trial for trial in json.loads(result.stdout)["trials"]}
    assert {where: (trial["status"], trial["error"]) for where, trial in found.items() if where != "bug"} == {
        "nowhere": ("finished", None),
        "torch": ("failed", HINT),
        "python": ("failed", HINT),
    }
    assert found["bug"]["error"].startswith(
        "strategy greedy fails in step_ended(): RuntimeError: memory of an elephant"
    )
    runs = {run_id: MlflowClient(uri).get_run(run_id) for trial in found.values() if (run_id := trial["run_id"])}
    told = {run.data.tags.get("adaptkit.error") for run in runs.values() if run.info.status == "FAILED"}
    assert HINT in told
    assert [run.info.status for run in runs.values()].count("FAILED") == 3
    note("memory", 2)


def test_run_out_of_memory_does_not_stop_the_others(cli: Callable[..., Result], greedy: tuple[str, ...]) -> None:
    result = cli("run", *greedy, "-s", "head", "-o", "greedy.where=torch", "--no-track", "--json", "-q")
    assert result.exit_code == 1
    records = {run["strategy"]: run for run in json.loads(result.stdout)["runs"]}
    assert (records["greedy"]["status"], records["greedy"]["error"]) == ("failed", HINT)
    assert records["head"]["status"] == "finished"
    assert "Traceback" not in result.stderr


def test_recognize_out_of_memory_errors() -> None:
    assert lacks_memory(MemoryError())
    assert lacks_memory(torch.OutOfMemoryError("CUDA out of memory."))
    wrapped = ValueError("a library's own")
    wrapped.__cause__ = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    assert lacks_memory(wrapped)
    assert not lacks_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lacks_memory(ValueError("Cannot allocate memory, said a book"))


#: runs adaptkit with 192 MB of address space more than its imports and the base need
LIMITED = """
import resource, sys
import torch, torchvision, sklearn.metrics, scipy.stats
from adaptkit.cli import main
from adaptkit.experiment import adaptation
from adaptkit.experiment.base import obtain_base

def limited(*arguments, **options):
    base = obtain_base(*arguments, **options)
    with open("/proc/self/statm") as stream:
        held = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (192 << 20),) * 2)
    return base

adaptation.obtain_base = limited
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory limits of processes exist only on Linux")
def test_memory_limit_of_a_process(own_folder: Path) -> None:
    sizes = ("--set", "split.source=200", "--set", "split.pool=400", "--set", "split.test=100", "--set", "shots=20")
    rest = (*sizes, "--set", "base.epochs=1", "--epochs", "1", "--no-track", "--json", "-q")
    command = (sys.executable, "-c", LIMITED, "run", "-s", "full", "--image-size", "112", *rest)
    made = subprocess.run([*command, "--batch-size", "200"], capture_output=True, text=True, timeout=600)
    assert made.returncode == 1, made.stderr
    assert [run["error"] for run in json.loads(made.stdout)["runs"]] == [HINT]
    assert "Traceback" not in made.stderr
    note("memory")


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_tensors_are_counted(layout: torch.layout) -> None:
    class Sparse(nn.Module):
        """A layer whose weight is the sum of two vectors' product and a sparse tensor, which the graph saves."""

        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.ones(8))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            square = torch.diag(self.values).to_sparse(layout=layout)
            logits: Tensor = self.head(torch.sparse.mm(square, x.t()).t())
            return logits

    recipe = Recipe(epochs=1, batch_size=4, lr=0.1, order_seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns once that compressed layouts are in beta state
        sparse = step_bytes(Sparse(), torch.rand(4, 8), torch.zeros(4, dtype=torch.long), recipe=recipe)
    dense = sum(parameter.nbytes for parameter in Sparse().parameters())
    assert sparse > 4 * dense  # parameters, gradients, two moments of Adam, and what the graph saves
