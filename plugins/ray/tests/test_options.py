"""Options of the engine, and errors before training."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from adaptkit_ray import Ray
from adaptkit_ray.cluster import _slots_of
from click.testing import CliRunner
from conftest import TINY

from adaptkit.cli import main
from adaptkit.testing import Check, checks


@pytest.mark.parametrize("check", checks(Ray), ids=str)
def test_conformance(check: Check) -> None:
    check()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--engine", "rya"), "unknown engine 'rya'; did you mean 'ray'?"),
        (
            ("--engine", "ray", "--engine-option", "adress=a:1"),
            "unknown option 'ray.adress'; did you mean 'address'?",
        ),
        (
            ("--engine", "ray", "--engine-option", "address=here"),
            "ray.address: write HOST:PORT of the cluster's head, as in 10.0.0.5:6379, not here",
        ),
        (
            ("--engine", "ray", "--engine-option", "cpus_per_trial=0"),
            "ray.cpus_per_trial: must be at least 1, not 0",
        ),
        (
            ("--engine", "ray", "--engine-option", "gpus_per_trial=1.5"),
            "ray.gpus_per_trial: must be a part of one GPU or a whole number, not 1.5",
        ),
        (
            ("--engine", "ray", "--engine-option", "gpus_per_trial=1", "--device", "cpu"),
            "ray.gpus_per_trial=1: trials with --device cpu use no GPU",
        ),
        (
            ("--engine", "ray", "--device", "cuda"),
            "--device cuda: with --engine ray, set the share of a GPU for each trial, "
            "as in --engine-option gpus_per_trial=0.25",
        ),
    ],
)
@pytest.mark.parametrize("command", ["sweep", "tune"])
def test_refused(command: str, arguments: tuple[str, ...], line: str) -> None:
    result = CliRunner().invoke(main, [command, "-s", "head", *TINY, *arguments])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {line}\n")


def test_no_cluster_at_address() -> None:
    address = f"127.0.0.1:{free_port()}"
    arguments = ["sweep", "-s", "head", *TINY, "--engine", "ray", "--engine-option", f"address={address}"]
    result = CliRunner().invoke(main, arguments)
    line = f"ray.address: no Ray cluster answers at {address} (Connection refused)"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {line}\n")


def test_missing_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ray, "unavailable", "it needs Ray: pip install 'ray>=2.9'")
    result = CliRunner().invoke(main, ["sweep", "-s", "head", *TINY, "--engine", "ray"])
    line = "engine ray cannot be used: it needs Ray: pip install 'ray>=2.9'"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {line}\n")


@pytest.mark.parametrize(
    ("cpus", "gpus", "slots"), [(1, 0, 8), (3, 0, 2), (1, 0.1, 8), (1, 0.4, 4), (1, 1, 2), (1, 2, 1), (9, 0, 0)]
)
def test_slots_of_a_machine(cpus: int, gpus: float, slots: int) -> None:
    assert _slots_of({"CPU": 8.0, "GPU": 2.0}, Ray(cpus_per_trial=cpus, gpus_per_trial=gpus)) == slots


@pytest.mark.slow
def test_trial_too_large_for_cluster() -> None:
    command = [sys.executable, "-m", "adaptkit", "sweep", "-s", "head", *TINY]
    command += ["--engine", "ray", "--engine-option", "cpus_per_trial=9999"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: no machine of the Ray cluster has 9999 CPUs and 0 GPUs for a trial; its machines")
