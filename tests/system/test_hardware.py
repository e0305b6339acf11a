"""Choice of the precision, and division of the cores among experiments."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from support.experiments import TINY, TINY_SETTINGS

import adaptkit
from adaptkit.events import RunResult, RunStart
from adaptkit.system import hardware
from adaptkit.system.hardware import computes_bf16, find_precision, precision_notices, shared_threads

Cli = Callable[..., Result]

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
EMULATED = "Note: bf16 is emulated on this CPU and slower than fp32; --precision auto uses bf16 only if it is native"

#: enough training for a useful accuracy, but short enough for emulated bf16
SMALL_SETTINGS = TINY_SETTINGS | {
    "split.source": 400,
    "split.test": 150,
    "base.epochs": 4,
    "base.batch_size": 20,
    "evaluate_shifted": "end",
}


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a function that sets whether this processor has instructions for bf16."""

    def make(is_native: bool) -> None:
        monkeypatch.setattr(hardware, "computes_bf16", lambda device: is_native)

    return make


class Dtypes:
    """Record the number formats of weights, gradients and files."""

    def __init__(self) -> None:
        self.weights: set[torch.dtype] = set()
        self.gradients: set[torch.dtype] = set()
        self.saved: set[torch.dtype] = set()
        self.params: dict[str, object] = {}

    @adaptkit.hookimpl
    def adaptkit_run_started(self, run: RunStart, model: torch.nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: self.gradients.add(p.grad.dtype))

    @adaptkit.hookimpl
    def adaptkit_run_ended(self, run: RunStart, result: RunResult, model: torch.nn.Module) -> None:
        self.weights |= {tensor.dtype for tensor in model.state_dict().values()}
        self.params = dict(run.params)
        for path in result.files.values():
            if path.suffix == ".safetensors":
                self.saved |= {tensor.dtype for tensor in load_file(path).values()}


@pytest.mark.slow
def test_bf16_accuracy_and_state() -> None:
    watcher = Dtypes()
    exact = adaptkit.run("head", settings=SMALL_SETTINGS, track=False)
    rounded = adaptkit.run("head", settings=SMALL_SETTINGS, precision="bf16", plugins=[watcher], track=False)
    assert rounded.failed == ()  # the reloaded adapter gives the logits of the trained model
    assert exact.base.test_accuracy > 0.5
    assert rounded.base.test_accuracy == pytest.approx(exact.base.test_accuracy, abs=0.06)
    for key in ("final/test_accuracy", "final/shifted_accuracy"):
        assert rounded.runs[0].metrics[key] == pytest.approx(exact.runs[0].metrics[key], abs=0.06)
    losses = [[epoch.loss for epoch in outcome.base.epochs] for outcome in (rounded, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and losses[0] != losses[1]
    assert rounded.base.fingerprint != exact.base.fingerprint
    assert watcher.weights == watcher.gradients == watcher.saved == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(("is_native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision(cli: Cli, native: Callable[[bool], None], is_native: bool, precision: str) -> None:
    native(is_native)
    result = cli("run", "-s", "head", *TINY, "--precision", "auto", "--dry-run")
    assert result.exit_code == 0
    assert f"Base     small_cnn, 1 x 28 x 28 pixels, 10 classes, on cpu in {precision}, " in result.stdout
    assert "bf16 is emulated" not in result.stdout
    plan = json.loads(cli("run", "-s", "head", *TINY, "--precision", "auto", "--dry-run", "--json").stdout)
    assert (plan["precision"], plan["notices"]) == (precision, [])


@pytest.mark.slow
@pytest.mark.parametrize(("is_native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_resolved_in_record(native: Callable[[bool], None], is_native: bool, precision: str) -> None:
    native(is_native)
    watcher = Dtypes()
    settings = TINY_SETTINGS | {"base.seed": 11}
    chosen = adaptkit.run("head", settings=settings, precision="auto", plugins=[watcher], track=False)
    assert (chosen.plan.precision, watcher.params["precision"]) == (precision, precision)
    named = adaptkit.run("head", settings=settings, precision=precision, track=False)
    assert named.base.cached and named.base.fingerprint == chosen.base.fingerprint
    for key in ("final/test_accuracy", "final/shifted_accuracy", "memory/peak_bytes"):
        assert named.runs[0].metrics[key] == chosen.runs[0].metrics[key]
    other = "fp32" if is_native else "bf16"
    assert adaptkit.run("head", settings=settings, precision=other, track=False).base.fingerprint != (
        chosen.base.fingerprint
    )


@pytest.mark.slow
def test_notice_of_emulated_bf16(cli: Cli, native: Callable[[bool], None]) -> None:
    native(False)
    result = cli("run", "-s", "head", *TINY, "--precision", "bf16", "--no-track")
    lines = result.stderr.splitlines()
    assert lines.count(EMULATED) == 1
    assert lines.index(EMULATED) < next(number for number, line in enumerate(lines) if line.startswith("["))
    native(True)
    assert "emulated" not in cli("run", "-s", "head", *TINY, "--precision", "bf16", "--no-track").stderr


def test_unknown_precision(cli: Cli) -> None:
    result = cli("run", "-s", "head", "--precision", "fp16")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: precision: must be fp32, bf16 or auto, not 'fp16'\n"


@pytest.mark.parametrize(
    ("machine", "onednn", "instructions", "native"),
    [
        ("x86_64", True, ("avx512_bf16",), True),
        ("AMD64", True, ("amx_tile",), True),
        ("x86_64", True, (), False),  # AVX-512 without BF16: oneDNN emulates it
        ("x86_64", False, ("avx512_bf16",), False),  # torch without oneDNN
        ("aarch64", True, (), True),
        ("arm64", None, (), False),  # a build without the function
    ],
)
def test_native_bf16_on_cpu(
    monkeypatch: pytest.MonkeyPatch, machine: str, onednn: bool | None, instructions: tuple[str, ...], native: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    asked = SimpleNamespace() if onednn is None else SimpleNamespace(_is_mkldnn_bf16_supported=lambda: onednn)
    monkeypatch.setattr(torch.ops, "mkldnn", asked)
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in instructions)
    assert computes_bf16(CPU) is native
    assert find_precision("auto", CPU) == ("bf16" if native else "fp32")


@pytest.mark.parametrize("native", [True, False])
def test_native_bf16_on_gpu(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: including_emulation or native)
    assert find_precision("auto", CUDA) == ("bf16" if native else "fp32")
    assert [line.split(" and ")[0] for line in precision_notices("bf16", CUDA)] == (
        [] if native else ["bf16 is emulated on this GPU"]
    )
    # unknown for Apple's GPUs
    assert (find_precision("auto", MPS), precision_notices("bf16", MPS)) == ("fp32", ())


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate eight cores, without a chosen number of threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("others", "threads", "words"),
    [
        (0, 8, None),
        (1, 4, "1 other experiment is running on this machine: this one uses 4 of 8 cores"),
        (2, 2, "2 other experiments are running on this machine: this one uses 2 of 8 cores"),
        (20, 1, "20 other experiments are running on this machine: this one uses 1 of 8 cores"),
    ],
)
def test_experiments_share_cores(eight_cores: None, others: int, threads: int, words: str | None) -> None:
    notices: list[str] = []
    with pytest.raises(ZeroDivisionError), shared_threads(others, notices.append):
        assert torch.get_num_threads() == threads
        raise ZeroDivisionError
    assert torch.get_num_threads() == 8
    assert [line.split("; ")[0] for line in notices] == ([words] if words else [])


def test_container_quota(eight_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    notices: list[str] = []
    with shared_threads(0, notices.append):
        assert torch.get_num_threads() == 3
    assert (torch.get_num_threads(), notices) == (8, [])
    monkeypatch.setattr("joblib.cpu_count", lambda: 64)  # logical cores; torch counts the physical ones
    with shared_threads(1, notices.append):
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_chosen_threads_stay(eight_cores: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "8")
    notices: list[str] = []
    with shared_threads(3, notices.append):
        assert torch.get_num_threads() == 8
    assert notices == []


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_kept() -> None:
    code = (
        "import torch\n"
        "from adaptkit.system.hardware import keep_freed_memory\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "def held():\n"
        "    before = resident()\n"
        "    torch.ones(16 << 20)\n"
        "    return (resident() - before) >> 20\n"
        "held()  # memory of torch's first call is not freed\n"
        "plain = held()\n"
        "keep_freed_memory()\n"
        "print(plain, held())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain, kept = map(int, done.stdout.split())
    assert plain < 8 and kept >= 56  # of 64 MiB
