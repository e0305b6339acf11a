"""`adaptkit reproduce` with other hardware or versions, and with changed or damaged records."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from mlflow import MlflowClient
from support.artifacts import artifacts_of, run_of
from support.experiments import Tracked
from support.reproduction import (
    change,
    edit,
    nudge_all,
    retag,
    target_digest,
)

import adaptkit
from adaptkit.adapters.weights import pack, unpack
from adaptkit.system.hardware import recorded_threads
from adaptkit.tracking.environment import Environment, environment

Cli = Callable[..., Result]


@pytest.mark.slow
def test_small_differences_on_other_hardware(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    version = importlib.metadata.version("torch").partition("+")[0]
    edit(copy, run_id, "environment.txt", f"\ntorch=={version}", "\ntorch==2.5.0")
    nudge_all(copy, run_id, 1e-4)
    result = cli("reproduce", run_id)
    assert result.exit_code == 0
    assert result.stdout.startswith("head seed=0: within tolerance\n")
    assert "             other metrics by at most 0.01 % (train/loss, epoch " in result.stdout
    assert re.search(rf"\n +the run +now\ntorch +2\.5\.0\S* +{version}\S*\n", result.stdout)
    assert result.stdout.endswith("Differences of this size are normal on other hardware or with other versions.\n")


@pytest.mark.slow
def test_large_differences_on_other_hardware(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    edit(copy, run_id, "environment.txt", "adaptkit 0", "adaptkit 9")
    nudge_all(copy, run_id, 1e-4)
    change(
        copy,
        "UPDATE metrics SET value = value * 2 WHERE run_uuid = ? AND key = 'train/loss' AND step = 2",
        run_id,
    )
    result = cli("reproduce", run_id)
    assert result.exit_code == 1
    assert "First difference above the tolerance: train/loss, epoch 2\n" in result.stdout
    assert result.stdout.endswith("These differences may be the cause, but the results differ more than is normal.\n")


@pytest.mark.slow
def test_identical_on_other_hardware(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    retag(copy, run_id, "adaptkit.threads", "64")
    result = cli("reproduce", run_id)
    assert result.exit_code == 0 and result.stdout.startswith("head seed=0: identical\n")
    assert re.search(r"\n +the run +now\nthreads +64 +1\nThe results are identical nevertheless\.\n", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"^click==.*$", "click==0.1"),  # does not change results
        (r"^mlflow==.*$", "mlflow==3.1"),
        (r"^(platform Linux-)[^-]+", r"\g<1>2.6.32"),  # the kernel
        (r"^(python \d+\.\d+).*$", r"\g<1>.99"),
    ],
)
def test_irrelevant_versions_allow_no_difference(old: str, new: str, cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    path = artifacts_of(copy, run_id) / "environment.txt"
    text, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE)
    if not count and "platform" in old:
        pytest.skip("not on Linux")
    assert count == 1
    path.write_text(text)
    nudge_all(copy, run_id, 1e-4)
    found = json.loads(cli("reproduce", run_id, "--json").stdout)
    assert (found["verdict"], found["environment_differences"]) == ("different", [])


@pytest.mark.slow
def test_shift_rounded_differently(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    retag(copy, run_id, "adaptkit.data_fingerprint", "0" * 64)
    change(copy, "UPDATE datasets SET digest = '1' WHERE digest = ?", target_digest(copy, run_id))
    assert "the target images differ\n" in cli("reproduce", run_id).stdout
    edit(copy, run_id, "environment.txt", "\ncpu ", "\ncpu ALTIVEC, not ")
    result = cli("reproduce", run_id)
    assert result.exit_code == 0 and result.stdout.startswith("head seed=0: within tolerance\n")
    assert f"processor  {platform.machine()}, ALTIVEC, not" in result.stdout
    # Other hardware does not excuse different images.
    retag(copy, run_id, "adaptkit.images_digest", "2" * 64)
    assert cli("reproduce", run_id).exit_code == 1


def test_environment() -> None:
    copy = Environment.of(environment())
    found = copy.deciding("cpu", "3", ["Adaptkit_BitFit"])
    assert list(found)[:7] == ["adaptkit", "Python", "system", "processor", "cores", "threads", "device"]
    assert (found["adaptkit"], found["threads"], found["device"]) == (adaptkit.__version__, "3", "cpu")
    assert torch.backends.cpu.get_cpu_capability() in found["processor"]
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0] and "mlflow" not in found
    assert not any(name.startswith("nvidia-") for name in found)
    # Records of earlier versions of adaptkit have fewer details, which is noted.
    less = Environment.of("adaptkit 0.1.0\nprocessor x86_64, 4 cores, 2 torch threads\n\nnumpy==2.0\n")
    assert less.deciding("cuda", None) == {
        "adaptkit": "0.1.0",
        "Python": "not recorded",
        "system": "not recorded",
        "processor": "x86_64, model not recorded",
        "cores": "4",
        "threads": "2",
        "device": "cuda",
        "GPU": "not recorded",
        "numpy": "2.0",
    }


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    before, told = torch.get_num_threads(), list[str]()
    torch.set_num_threads(2)
    try:
        with recorded_threads(1, told.append):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2 and told == ["using 1 thread, as in the run"]
        with recorded_threads(4096, told.append):
            assert torch.get_num_threads() == 2
        assert re.fullmatch(r"the run used 4096 threads, but this machine has only \d+ cores", told[1])
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with recorded_threads(1, told.append):
            assert torch.get_num_threads() == 2  # set by the user
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        ("nothing", "no run 'nothing' in "),
        ("group", r"run \w+ \(lora rank=4, head seed=0\) groups others and has no model; name one of its runs: "),
        ("FAILED", r"run \w+ \(lora rank=4 seed=0\) failed: it has no model"),
        ("RUNNING", r"run \w+ \(lora rank=4 seed=0\) is still running: wait for it"),
        ("deleted", r"run \w+ \(.+\) was deleted; `mlflow runs restore --run-id \w+` brings it back"),
        ("imported", r"run \w+ \(.+\) was imported: adaptkit did not train it, and cannot train it again"),
        ("processes", r"run \w+ \(.+\) was trained by 2 processes and cannot be reproduced: "),
        ("config gone", r"run \w+ \(.+\) has no artifact config.yaml"),
        ("config not YAML", r"run \w+ \(.+\): config file .+config.yaml: not valid YAML in line 1"),
        ("config altered", r"run \w+ \(.+\): its config.yaml was altered: lr is 0.5, but was 0.005"),
        ("config of two", r"run \w+ \(.+\): its config.yaml was altered: it must name one strategy and one "),
        ("card altered", r"run \w+ \(.+\): its adapter/adapter.json was altered or belongs to another run"),
        ("adapter altered", r"run \w+ \(.+\): .+adapter.safetensors is damaged: its sha256 is \w+, and adapter.json "),
        ("predictions", r"run \w+ \(.+\): its predictions.csv was altered: it is not a table of predictions"),
        ("split gone", r"run \w+ \(.+\) has no artifact split.json"),
        ("split cut short", r"run \w+ \(.+\): its split.json was altered\n"),
        ("split altered", r"run \w+ \(.+\): its split.json was altered\n"),
        ("split with a new checksum", r"run \w+ \(.+\): its split.json was altered\n"),
        ("environment", r"run \w+ \(.+\) has no artifact environment.txt"),
    ],
)
def test_runs_that_cannot_be_reproduced(make: str, problem: str, cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "lora")
    artifacts, client = artifacts_of(copy, run_id), MlflowClient(tracking_uri=copy)
    if make == "nothing":
        run_id = make
    elif make == "group":
        run_id = tracked.outcome["parent_run_id"]
    elif make in ("FAILED", "RUNNING"):
        change(copy, "UPDATE runs SET status = ? WHERE run_uuid = ?", make, run_id)
    elif make == "deleted":
        client.delete_run(run_id)
    elif make == "imported":
        retag(copy, run_id, "adaptkit.kind", "imported")
    elif make == "processes":
        retag(copy, run_id, "adaptkit.processes", "2")
    elif make == "config gone":
        (artifacts / "config.yaml").unlink()
    elif make == "config not YAML":
        (artifacts / "config.yaml").write_text("a: [")
    elif make == "config altered":
        edit(copy, run_id, "config.yaml", "\nlr: 0.005", "\nlr: 0.5")
    elif make == "config of two":
        edit(copy, run_id, "config.yaml", "\nseed: 0", "\nseed: 0-1")
    elif make == "card altered":
        edit(copy, run_id, "adapter/adapter.json", '"lora"', '"Lora"')
    elif make == "adapter altered":
        path = artifacts / "adapter/adapter.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    elif make == "predictions":
        (artifacts / "predictions.csv").write_text("<html>")
    elif make == "split gone":
        (artifacts / "split.json").unlink()
    elif make == "split cut short":
        path = artifacts / "split.json"
        path.write_bytes(path.read_bytes()[:-40])
    elif make in ("split altered", "split with a new checksum"):
        resplit(artifacts / "split.json", sign="anew" in make)
    elif make == "environment":
        (artifacts / "environment.txt").unlink()
    result = cli("reproduce", run_id)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.match(f"Error: {problem}", result.stderr) and result.stderr.count("\n") == 1, result.stderr


def resplit(path: Path, sign: bool | None) -> None:
    """Replace an image in the pool of a split.json. Update its checksum, keep it, or (None) remove it."""
    content = json.loads(path.read_text())
    content["parts"]["pool"]["images"][0] = 4999
    if sign is not False:
        del content["sha256"]
    if sign:
        content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content))


@pytest.mark.slow
def test_split_without_checksum(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    path = artifacts_of(copy, run_id) / "split.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "sha256"}, indent=8))
    assert cli("reproduce", run_id).stdout.startswith("head seed=0: identical\n")
    path.write_text(json.dumps(content))
    resplit(path, sign=None)
    result = cli("reproduce", run_id)
    assert (result.exit_code, result.stderr.endswith("its split.json was altered\n")) == (2, True)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (r"^split.source: 200$", "split.source: 300", "split.source is 300, but was 200"),
        (r"^split.pool: 100$\n", "", "split.pool is none, but was 100"),
        (r"^shift: .*$", "shift: rotate=30", "shift is rotate=30, but was rotate=45,noise=0.3"),
        (r"^dataset: mnist5k$", "dataset: digits", "dataset is digits, but was mnist5k"),
        (r"^target: none$", "target: digits", "target is digits, but was none"),
        (r"^split.file: none$", "split.file: mine.json", "split.file names a file, but was none"),
    ],
)
def test_config_with_other_data_settings(old: str, new: str, line: str, cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "lora")
    path = artifacts_of(copy, run_id) / "config.yaml"
    text, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)
    result = cli("reproduce", run_id)
    assert (result.exit_code, result.stdout) == (2, "")
    told = f"Error: run {run_id} (lora rank=4 seed=0): its config.yaml was altered: {line}\n"
    assert result.stderr == told


def test_empty_config(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id, base_id = run_of(tracked, "lora"), tracked.outcome["base"]["run_id"]
    for emptied in (run_id, base_id):
        (artifacts_of(copy, emptied) / "config.yaml").write_text("")
    result = cli("reproduce", run_id)
    assert (result.exit_code, result.stdout) == (2, "")
    wrong = [
        "base.epochs is 6, but was 2",
        "base.lr is none, but was 0.001",
        "epochs is 10, but was 2",
        "image_size is none, but was 28",
        "lr is 0.01, but was 0.005",
        "metric is none, but was accuracy",
        "protocol is none, but was draws",
        "shots is 20, but was 5",
        "split.pool is none, but was 100",
        "split.source is none, but was 200",
        "split.test is none, but was 100",
        "strategy is head, but was lora",
    ]
    start = f"Error: run {run_id} (lora rank=4 seed=0): its config.yaml was altered: "
    assert result.stderr.splitlines() == [start + line for line in wrong]
    result = cli("reproduce", base_id)
    assert (result.exit_code, result.stdout) == (2, "")
    title = f"run {base_id} (base small_cnn mnist5k)"
    assert result.stderr == f"Error: {title}: its config.yaml was altered: dataset is none, but was mnist5k\n"


@pytest.mark.slow
def test_missing_device(cli: Cli, copy: str, tracked: Tracked) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("it is here")
    run_id = run_of(tracked, "lora")
    edit(copy, run_id, "config.yaml", "\ndevice: cpu", "\ndevice: mps")
    change(copy, "UPDATE params SET value = 'mps' WHERE run_uuid = ? AND key = 'device'", run_id)
    result = cli("reproduce", run_id)
    assert result.exit_code == 2
    hint = "; the run used this device: choose another one with --device auto"
    assert (
        result.stderr.startswith("Error: device: mps is not available on this machine; choose cpu")
        and hint in result.stderr
    )
    # On another device, the result may differ.
    found = json.loads(cli("reproduce", run_id, "--device", "cpu", "--json").stdout)
    assert found["verdict"] == "identical"
    assert found["environment_differences"] == [{"what": "device", "recorded": "mps", "now": "cpu"}]


def test_damaged_base_run(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = tracked.outcome["base"]["run_id"]
    path = artifacts_of(copy, run_id) / "base/base.safetensors"
    tensors = unpack(path.read_bytes())
    path.write_bytes(pack({name: tensor + 1 for name, tensor in tensors.items()}))
    result = cli("reproduce", run_id)
    assert result.exit_code == 2 and "its base/base.safetensors was altered: its fingerprint is " in result.stderr
