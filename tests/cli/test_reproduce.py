"""`adaptkit reproduce`: a run made again from its record alone, and what is said where it is not the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from mlflow import MlflowClient
from support.artifacts import artifacts_of, copied, run_of
from support.experiments import TINY, TINY_SETTINGS, Tracked
from support.plain_model import Plain
from support.reliability import note

import adaptkit
from adaptkit.adapters.files import card_digest
from adaptkit.adapters.weights import pack, unpack
from adaptkit.errors import BadInput
from adaptkit.system.files import sha256_of
from adaptkit.system.hardware import recorded_threads
from adaptkit.tracking.environment import Environment, environment

Cli = Callable[..., Result]
FIRST = re.compile(r"First difference[^:]*: (.+)\n  recorded  (.+)\n  now       (.+)\n")


@pytest.fixture
def own(tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of this test's own copy of the tracked store, the default one here."""
    uri = copied(tracked, tmp_path / "store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def change(uri: str, statement: str, *values: Any) -> None:
    """Change a store behind MLflow's back."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        assert database.execute(statement, values).rowcount > 0
        database.commit()


def retag(uri: str, run_id: str, key: str, value: str) -> None:
    MlflowClient(tracking_uri=uri).set_tag(run_id, key, value)


def edit(uri: str, run_id: str, name: str, old: str, new: str) -> None:
    """Replace a text in an artifact."""
    path = artifacts_of(uri, run_id) / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def snapshot(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def first_difference(result: Result) -> tuple[str, str, str]:
    """Return the first difference that was printed: what, recorded, now."""
    found = FIRST.search(result.stdout)
    assert found is not None, result.stdout
    return found[1], found[2], found[3]


def epoch_lines(result: Result) -> list[str]:
    """Return which epochs of which runs were trained."""
    return re.findall(r"^\[(.+?)\] epoch (\d+)", result.stderr, re.MULTILINE)


def test_a_run_comes_out_the_same_and_the_store_is_only_read(cli: Cli, own: str, tracked: Tracked) -> None:
    folder = Path(own.removeprefix("sqlite:///")).parent
    run_id, before = run_of(tracked, "lora"), snapshot(folder)
    result = cli("reproduce", run_id)
    assert result.exit_code == 0, result.stderr
    data, base = tracked.outcome["data_fingerprint"][:12], tracked.outcome["base"]["fingerprint"][:12]
    lines = result.stdout.splitlines()
    assert lines[:8] == [
        "lora rank=4 seed=0: identical",
        f"run {run_id}",
        "",
        f"data         {data}      as recorded",
        f"base         {base}      as recorded, from the cache",
        "metrics      22 values         equal to the last bit",
        "predictions  200 images        equal",
        "adapter      13,608 numbers    equal to the last bit",
    ]
    assert lines[9] == "Computed as recorded, with the same versions on hardware of the same kind:"
    assert lines[10].startswith(f"adaptkit {adaptkit.__version__}, Python 3.")
    assert epoch_lines(result) == [("lora rank=4 seed=0", "1"), ("lora rank=4 seed=0", "2")]
    assert snapshot(folder) == before
    assert not Path("mlflow.db").exists() and not Path("mlruns").exists()
    note("reproduced")


def test_the_base_is_made_anew_when_the_cache_is_gone(
    cli: Cli, tracked: Tracked, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    asked = ["reproduce", run_of(tracked, "head"), "--tracking-uri", tracked.uri, "--json"]
    found = json.loads(cli(*asked, "-q").stdout)
    assert (found["verdict"], found["base"], found["first_difference"]) == ("identical", "made anew", None)
    assert found["compared"] == {"metrics": 22, "predictions": 200, "tensors": 2, "numbers": 1290}
    assert found["environment"]["recorded"] == found["environment"]["now"]
    # It is in the cache now, and used, unless the user insists; then the one in the cache stays as it is.
    bases = snapshot(own_folder / "cache" / "bases")
    assert json.loads(cli(*asked, "-q").stdout)["base"] == "from the cache"
    insisted = cli(*asked, "--refresh-base", "--no-feature-cache")
    assert json.loads(insisted.stdout)["verdict"] == "identical"
    assert [name for name, _ in epoch_lines(insisted)] == ["base small_cnn mnist5k"] * 2 + ["head seed=0"] * 2
    assert snapshot(own_folder / "cache" / "bases") == bases
    note("reproduced", 3)


def test_a_base_run_is_trained_again(cli: Cli, tracked: Tracked) -> None:
    result = cli("reproduce", tracked.outcome["base"]["run_id"], "--tracking-uri", tracked.uri)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "base small_cnn mnist5k: identical"
    assert lines[4:7] == [
        "metrics      6 values          equal to the last bit",
        "predictions  100 images        equal",
        "base         421,642 numbers   equal to the last bit",
    ]
    assert len(epoch_lines(result)) == 2


@pytest.mark.slow
def test_from_python(tracked: Tracked) -> None:
    found = adaptkit.reproduce(run_of(tracked, "lora"), tracking_uri=tracked.uri, device="cpu")
    assert isinstance(found, adaptkit.Reproduction)
    assert (found.verdict, found.first, found.differences) == ("identical", None, ())


@pytest.mark.slow
def test_another_process_gets_the_same(tracked: Tracked) -> None:
    command = [sys.executable, "-m", "adaptkit", "reproduce", run_of(tracked, "lora"), "--tracking-uri", tracked.uri]
    result = subprocess.run([*command, "-q"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("lora rank=4 seed=0: identical\n")


# --- what differs ---


def test_the_first_difference_is_the_epoch_and_metric_that_comes_first(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    loss = MlflowClient(tracking_uri=own).get_metric_history(run_id, "train/loss")[0].value
    nudge = "UPDATE metrics SET value = value + ? WHERE run_uuid = ? AND key = ? AND step = ?"
    change(own, nudge, 1e-15, run_id, "train/loss", 1)
    change(own, nudge, 0.5, run_id, "train/loss", 2)
    change(own, nudge, 0.5, run_id, "final/gain", 0)
    result = cli("reproduce", run_id)
    assert result.exit_code == 1 and result.stdout.startswith("head seed=0: different\n")
    what, before, now = first_difference(result)
    assert (what, float(now)) == ("train/loss, epoch 1", loss) and float(before) == loss + 1e-15 != loss
    assert "2 more differ; --json lists them.\n" in result.stdout
    assert "metrics      22 values         3 differ\n" in result.stdout
    found = json.loads(cli("reproduce", run_id, "--json").stdout)
    assert [one["what"] for one in found["differences"]] == [
        "train/loss, epoch 1",
        "train/loss, epoch 2",
        "final/gain",
    ]
    assert [one["within"] for one in found["differences"]] == [True, False, False]


def test_a_metric_that_is_missing_differs(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    MlflowClient(tracking_uri=own).log_metric(run_id, "energy", 3.0)
    change(own, "DELETE FROM latest_metrics WHERE run_uuid = ? AND key = 'params/total'", run_id)
    found = json.loads(cli("reproduce", run_id, "--json").stdout)
    assert [(one["what"], one["recorded"], one["now"]) for one in found["differences"]] == [
        ("energy", 3.0, None),
        ("params/total", None, 421642.0),
    ]


def test_seconds_and_memory_do_not_count(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    for table in ("metrics", "latest_metrics"):
        change(own, f"UPDATE {table} SET value = 9 WHERE run_uuid = ? AND key LIKE 'time/%'", run_id)
        change(own, f"UPDATE {table} SET value = 9 WHERE run_uuid = ? AND key LIKE 'memory/%'", run_id)
    assert cli("reproduce", run_id).stdout.startswith("head seed=0: identical\n")


def test_a_prediction_that_differs_is_named(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    path = artifacts_of(own, run_id) / "predictions.csv"
    lines = path.read_text().splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("shifted"))
    test, image, truth, prediction, confidence, base = lines[row].split(",")
    other = str((int(prediction) + 1) % 10)
    lines[row] = ",".join([test, image, truth, other, confidence, base])
    path.write_text("\r\n".join([*lines, ""]))
    result = cli("reproduce", run_id)
    assert result.exit_code == 1
    assert first_difference(result) == (f"prediction, image {image} of the shifted test set", other, prediction)
    assert "  1 of 200 images\n" in result.stdout and "metrics      22 values         equal to" in result.stdout


def resign(uri: str, run_id: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Put other tensors into a run's adapter, as if the run had made them."""
    folder = artifacts_of(uri, run_id) / "adapter"
    tensors = unpack((folder / "adapter.safetensors").read_bytes())
    change(tensors)
    (folder / "adapter.safetensors").write_bytes(pack(tensors))
    card = json.loads((folder / "adapter.json").read_text()) | {"sha256": sha256_of(folder / "adapter.safetensors")}
    card["card_sha256"] = card_digest(card)
    (folder / "adapter.json").write_text(json.dumps(card))
    retag(uri, run_id, "adaptkit.adapter_sha256", sha256_of(folder / "adapter.json"))


def test_a_single_bit_of_the_adapter_counts(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")

    def flip(tensors: dict[str, torch.Tensor]) -> None:
        (name,) = (name for name in tensors if name.endswith("bias"))
        tensors[name].view(torch.int32)[3] ^= 1

    resign(own, run_id, flip)
    result = cli("reproduce", run_id)
    assert result.exit_code == 1
    what, before, now = first_difference(result)
    assert re.fullmatch(r"adapter, \S+\.bias\[3\]", what) and before != now
    assert float(before) == pytest.approx(float(now), rel=1e-6)
    assert "adapter      1,290 numbers     differs\n" in result.stdout


def test_other_data_are_told_before_anything_is_trained(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "lora")
    retag(own, run_id, "adaptkit.data_fingerprint", "0" * 64)
    result = cli("reproduce", run_id)
    assert (result.exit_code, epoch_lines(result)) == (1, [])
    now = tracked.outcome["data_fingerprint"]
    assert first_difference(result) == ("fingerprint of the data", "0" * 64, now)
    assert "  the same images, otherwise divided\n" in result.stdout
    assert "data         000000000000      others\nNothing was run.\n" in result.stdout


@pytest.mark.slow
def test_another_base_in_the_cache_is_not_used_and_stays(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "lora")
    retag(own, run_id, "adaptkit.base_fingerprint", "0" * 64)
    bases = Path(os.environ["ADAPTKIT_CACHE"]) / "bases"
    before = snapshot(bases)
    result = cli("reproduce", run_id)
    assert result.exit_code == 1
    now = tracked.outcome["base"]["fingerprint"]
    assert first_difference(result) == ("fingerprint of the base", "0" * 64, now)
    told = f"the cache has another base of this recipe ({now[:12]}): it is left there, and not used\n"
    assert told in result.stderr and ("base small_cnn mnist5k", "2") in epoch_lines(result)
    assert "base         000000000000      others, made anew\n" in result.stdout
    assert snapshot(bases) == before


# --- other hardware and versions ---


def nudge_all(uri: str, run_id: str, by: float) -> None:
    change(uri, "UPDATE metrics SET value = value * ? WHERE run_uuid = ? AND key = 'train/loss'", 1 + by, run_id)


def test_small_differences_elsewhere_are_within_tolerance(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    version = importlib.metadata.version("torch").partition("+")[0]
    edit(own, run_id, "environment.txt", f"\ntorch=={version}", "\ntorch==2.5.0")
    nudge_all(own, run_id, 1e-4)
    result = cli("reproduce", run_id)
    assert result.exit_code == 0
    assert result.stdout.startswith("head seed=0: within tolerance\n")
    assert "             other metrics by at most 0.01 % (train/loss, epoch " in result.stdout
    assert re.search(rf"\n +the run +now\ntorch +2\.5\.0\S* +{version}\S*\n", result.stdout)
    assert result.stdout.endswith("differences of this size are to be expected.\n")


@pytest.mark.slow
def test_large_differences_elsewhere_are_differences(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    edit(own, run_id, "environment.txt", "adaptkit 0", "adaptkit 9")
    nudge_all(own, run_id, 1e-4)
    change(own, "UPDATE metrics SET value = value * 2 WHERE run_uuid = ? AND key = 'train/loss' AND step = 2", run_id)
    result = cli("reproduce", run_id)
    assert result.exit_code == 1
    assert "First difference that is too large: train/loss, epoch 2\n" in result.stdout
    assert result.stdout.endswith("That may be why, but the difference is larger than is to be expected of it.\n")


@pytest.mark.slow
def test_the_same_elsewhere_is_identical(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    retag(own, run_id, "adaptkit.threads", "64")
    result = cli("reproduce", run_id)
    assert result.exit_code == 0 and result.stdout.startswith("head seed=0: identical\n")
    assert re.search(r"\n +the run +now\nthreads +64 +1\nIt came out the same nevertheless\.\n", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"^click==.*$", "click==0.1"),  # takes no part in numbers
        (r"^mlflow==.*$", "mlflow==3.1"),
        (r"^(platform Linux-)[^-]+", r"\g<1>2.6.32"),  # the kernel
        (r"^(python \d+\.\d+).*$", r"\g<1>.99"),
    ],
)
def test_what_takes_no_part_in_numbers_excuses_nothing(
    old: str, new: str, cli: Cli, own: str, tracked: Tracked
) -> None:
    run_id = run_of(tracked, "head")
    path = artifacts_of(own, run_id) / "environment.txt"
    text, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE)
    if not count and "platform" in old:
        pytest.skip("not on Linux")
    assert count == 1
    path.write_text(text)
    nudge_all(own, run_id, 1e-4)
    found = json.loads(cli("reproduce", run_id, "--json").stdout)
    assert (found["verdict"], found["environment_differences"]) == ("different", [])


@pytest.mark.slow
def test_a_shift_computed_elsewhere_gives_the_same_images_with_other_last_digits(
    cli: Cli, own: str, tracked: Tracked
) -> None:
    run_id = run_of(tracked, "head")
    retag(own, run_id, "adaptkit.data_fingerprint", "0" * 64)
    change(own, "UPDATE datasets SET digest = '1' WHERE digest = ?", target_digest(own, run_id))
    assert "the target images are others\n" in cli("reproduce", run_id).stdout
    edit(own, run_id, "environment.txt", "\ncpu ", "\ncpu ALTIVEC, not ")
    result = cli("reproduce", run_id)
    assert result.exit_code == 0 and result.stdout.startswith("head seed=0: within tolerance\n")
    assert f"processor  {platform.machine()}, ALTIVEC, not" in result.stdout
    # Other images remain others, wherever.
    retag(own, run_id, "adaptkit.images_digest", "2" * 64)
    assert cli("reproduce", run_id).exit_code == 1


def target_digest(uri: str, run_id: str) -> str:
    inputs = MlflowClient(tracking_uri=uri).get_run(run_id).inputs.dataset_inputs
    return next(given.dataset.digest for given in inputs if given.tags[0].value == "target")


def test_the_environment_says_what_numbers_depend_on() -> None:
    own = Environment.of(environment())
    found = own.deciding("cpu", "3", ["Adaptkit_BitFit"])
    assert list(found)[:7] == ["adaptkit", "Python", "system", "processor", "cores", "threads", "device"]
    assert (found["adaptkit"], found["threads"], found["device"]) == (adaptkit.__version__, "3", "cpu")
    assert torch.backends.cpu.get_cpu_capability() in found["processor"]
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0] and "mlflow" not in found
    assert not any(name.startswith("nvidia-") for name in found)
    # What an earlier adaptkit wrote says less, and that is told.
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


def test_as_many_threads_compute_as_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    before, told = torch.get_num_threads(), list[str]()
    torch.set_num_threads(2)
    try:
        with recorded_threads(1, told.append):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2 and told == ["computing on 1 thread, as the run did"]
        with recorded_threads(4096, told.append):
            assert torch.get_num_threads() == 2
        assert re.fullmatch(r"the run computed on 4096 threads, and there are \d+ cores? here", told[1])
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with recorded_threads(1, told.append):
            assert torch.get_num_threads() == 2  # the user has chosen
    finally:
        torch.set_num_threads(before)


# --- what cannot be made again ---


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        ("nothing", "there is no run 'nothing' in "),
        ("group", r"run \w+ \(lora rank=4, head seed=0\) groups others and has no model; name one of its runs: "),
        ("FAILED", r"run \w+ \(lora rank=4 seed=0\) failed: it has no model"),
        ("RUNNING", r"run \w+ \(lora rank=4 seed=0\) is still running: wait for it"),
        ("deleted", r"run \w+ \(.+\) was deleted; `mlflow runs restore --run-id \w+` brings it back"),
        ("imported", r"run \w+ \(.+\) was imported: adaptkit did not train it, and cannot train it again"),
        ("processes", r"run \w+ \(.+\) was shared out over 2 processes, and can be reproduced in one only: "),
        ("config gone", r"run \w+ \(.+\) has no artifact config.yaml"),
        ("config not YAML", r"run \w+ \(.+\): config file .+config.yaml: not valid YAML in line 1"),
        ("config altered", r"run \w+ \(.+\): its config.yaml was altered: lr is 0.5 there, and was 0.005"),
        ("config of two", r"run \w+ \(.+\): its config.yaml was altered: it must name one strategy and one "),
        ("card altered", r"run \w+ \(.+\): its adapter/adapter.json was altered, or is another run's: the run says "),
        ("adapter altered", r"run \w+ \(.+\): .+adapter.safetensors is damaged: its sha256 is \w+, and adapter.json "),
        ("predictions", r"run \w+ \(.+\): its predictions.csv was altered: it is not a table of predictions"),
        ("split gone", r"run \w+ \(.+\) has no artifact split.json"),
        ("split cut short", r"run \w+ \(.+\): its split.json was altered\n"),
        ("split altered", r"run \w+ \(.+\): its split.json was altered\n"),
        ("split signed anew", r"run \w+ \(.+\): its split.json was altered\n"),
        ("environment", r"run \w+ \(.+\) has no artifact environment.txt"),
    ],
)
def test_what_cannot_be_made_again_is_one_line(make: str, problem: str, cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "lora")
    artifacts, client = artifacts_of(own, run_id), MlflowClient(tracking_uri=own)
    if make == "nothing":
        run_id = make
    elif make == "group":
        run_id = tracked.outcome["parent_run_id"]
    elif make in ("FAILED", "RUNNING"):
        change(own, "UPDATE runs SET status = ? WHERE run_uuid = ?", make, run_id)
    elif make == "deleted":
        client.delete_run(run_id)
    elif make == "imported":
        retag(own, run_id, "adaptkit.kind", "imported")
    elif make == "processes":
        retag(own, run_id, "adaptkit.processes", "2")
    elif make == "config gone":
        (artifacts / "config.yaml").unlink()
    elif make == "config not YAML":
        (artifacts / "config.yaml").write_text("a: [")
    elif make == "config altered":
        edit(own, run_id, "config.yaml", "\nlr: 0.005", "\nlr: 0.5")
    elif make == "config of two":
        edit(own, run_id, "config.yaml", "\nseed: 0", "\nseed: 0-1")
    elif make == "card altered":
        edit(own, run_id, "adapter/adapter.json", '"lora"', '"Lora"')
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
    elif make in ("split altered", "split signed anew"):
        resplit(artifacts / "split.json", sign="anew" in make)
    elif make == "environment":
        (artifacts / "environment.txt").unlink()
    result = cli("reproduce", run_id)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.match(f"Error: {problem}", result.stderr) and result.stderr.count("\n") == 1, result.stderr


def resplit(path: Path, sign: bool | None) -> None:
    """Put another image into the pool of a split.json; sign it anew, leave its checksum as it is, or (None) away."""
    content = json.loads(path.read_text())
    content["parts"]["pool"]["images"][0] = 4999
    if sign is not False:
        del content["sha256"]
    if sign:
        content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content))


def test_a_split_without_checksum_or_laid_out_otherwise_is_the_same(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    path = artifacts_of(own, run_id) / "split.json"
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
        (r"^split.source: 200$", "split.source: 300", "split.source is 300 there, and was 200"),
        (r"^split.pool: 100$\n", "", "split.pool is none there, and was 100"),
        (r"^shift: .*$", "shift: rotate=30", "shift is rotate=30 there, and was rotate=45,noise=0.3"),
        (r"^dataset: mnist5k$", "dataset: digits", "dataset is digits there, and was mnist5k"),
        (r"^target: none$", "target: digits", "target is digits there, and was none"),
        (r"^split.file: none$", "split.file: mine.json", "split.file names a file there, and was none"),
    ],
)
def test_a_config_altered_in_what_makes_the_data_is_told_before_they_are_loaded(
    old: str, new: str, line: str, cli: Cli, own: str, tracked: Tracked
) -> None:
    run_id = run_of(tracked, "lora")
    path = artifacts_of(own, run_id) / "config.yaml"
    text, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)
    result = cli("reproduce", run_id)
    assert (result.exit_code, result.stdout) == (2, "")
    told = f"Error: run {run_id} (lora rank=4 seed=0): its config.yaml was altered: {line}\n"
    assert result.stderr == told


def test_an_emptied_config_is_told_by_what_it_lacks(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id, base_id = run_of(tracked, "lora"), tracked.outcome["base"]["run_id"]
    for emptied in (run_id, base_id):
        (artifacts_of(own, emptied) / "config.yaml").write_text("")
    result = cli("reproduce", run_id)
    assert (result.exit_code, result.stdout) == (2, "")
    wrong = [
        "base.epochs is 6 there, and was 2",
        "epochs is 10 there, and was 2",
        "image_size is none there, and was 28",
        "shots is 50 there, and was 5",
        "split.pool is none there, and was 100",
        "split.source is none there, and was 200",
        "split.test is none there, and was 100",
        "strategy is head there, and was lora",
    ]
    start = f"Error: run {run_id} (lora rank=4 seed=0): its config.yaml was altered: "
    assert result.stderr.splitlines() == [start + line for line in wrong]
    result = cli("reproduce", base_id)
    assert (result.exit_code, result.stdout) == (2, "")
    title = f"run {base_id} (base small_cnn mnist5k)"
    assert result.stderr == f"Error: {title}: its config.yaml was altered: dataset is none there, and was mnist5k\n"


def test_a_device_that_is_not_here_is_one_line(cli: Cli, own: str, tracked: Tracked) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("it is here")
    run_id = run_of(tracked, "lora")
    edit(own, run_id, "config.yaml", "\ndevice: cpu", "\ndevice: mps")
    change(own, "UPDATE params SET value = 'mps' WHERE run_uuid = ? AND key = 'device'", run_id)
    result = cli("reproduce", run_id)
    assert result.exit_code == 2
    hint = "; the run used this device: choose another one with --device auto"
    assert result.stderr.startswith("Error: device: mps is not available here; have: cpu") and hint in result.stderr
    # Computed on another device, it need not be the same.
    found = json.loads(cli("reproduce", run_id, "--device", "cpu", "--json").stdout)
    assert found["verdict"] == "identical"
    assert found["environment_differences"] == [{"what": "device", "recorded": "mps", "now": "cpu"}]


def test_a_damaged_base_run_is_one_line(cli: Cli, own: str, tracked: Tracked) -> None:
    run_id = tracked.outcome["base"]["run_id"]
    path = artifacts_of(own, run_id) / "base/base.safetensors"
    tensors = unpack(path.read_bytes())
    path.write_bytes(pack({name: tensor + 1 for name, tensor in tensors.items()}))
    result = cli("reproduce", run_id)
    assert result.exit_code == 2 and "its base/base.safetensors was altered: its fingerprint is " in result.stderr


# --- plugins, files, severities ---

PLUGIN = """
from dataclasses import dataclass, field
from typing import ClassVar
import mlflow
from adaptkit import hookimpl

@dataclass
class Tails:
    name: ClassVar[str] = "tails"
    {option}: int = 2

    def adapt(self, model):
        return list(model.parameters())[-self.{option}:]

@hookimpl
def adaptkit_strategies():
    return [Tails]

@hookimpl
def adaptkit_epoch_ended(run, epoch):
    mlflow.log_metric("plugin/energy", epoch.loss / 3, step=epoch.number)
"""


@pytest.fixture
def elaborate(cli: Cli, store: Path, tracked: Tracked) -> str:
    """Record a run of a plugin's strategy over severities, on a split from a file; the file goes away."""
    Path("tails.py").write_text(PLUGIN.format(option="count"))
    shutil.copy(artifacts_of(tracked.uri, run_of(tracked, "lora")) / "split.json", "mine.json")
    arguments = ["-s", "tails", "-o", "count=2", "--plugin", "tails.py", "--severity", "0.5,1,2", "--json"]
    result = cli("run", *arguments, *TINY, "--set", "split.file=mine.json", "--seeds", "3")
    Path("mine.json").unlink()
    return str(json.loads(result.stdout)["runs"][0]["run_id"])


def test_plugins_severities_and_a_split_whose_file_is_gone(cli: Cli, elaborate: str, store: Path) -> None:
    before = snapshot(store.parent / "mlruns") | {"database": hashlib.sha256(store.read_bytes()).hexdigest()}
    result = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("tails seed=3: identical\n")
    # 4 an epoch and the plugin's, 11 final ones, 3 + 3 over severities and the area.
    assert "metrics      31 values         equal to the last bit\n" in result.stdout
    assert "split.file mine.json: using the run's split.json, which is equal\n" in result.stderr
    # What the plugin logs to MLflow itself is compared, and not added to the store.
    after = snapshot(store.parent / "mlruns") | {"database": hashlib.sha256(store.read_bytes()).hexdigest()}
    assert after == before


def test_a_damaged_split_that_the_images_are_taken_from_is_one_line(cli: Cli, elaborate: str, store: Path) -> None:
    path = artifacts_of(f"sqlite:///{store}", elaborate) / "split.json"
    path.write_text(path.read_text()[:-40])
    result = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: run {elaborate} (tails seed=3): its split.json was altered\n"


def test_a_plugin_that_is_missing_or_has_changed_is_one_line(cli: Cli, elaborate: str) -> None:
    missing = cli("reproduce", elaborate)
    assert missing.exit_code == 2 and "(tails seed=3): unknown strategy 'tails'" in missing.stderr
    assert missing.stderr.endswith(f"; the run was made with --plugin {Path('tails.py').absolute()}\n")
    Path("tails.py").write_text(PLUGIN.format(option="number"))
    renamed = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert renamed.exit_code == 2
    assert renamed.stderr.endswith("; the run had it: its plugin or adaptkit has changed since\n")
    more = PLUGIN.format(option="count").replace("count: int = 2", "count: int = 2\n    power: int = 1")
    Path("tails.py").write_text(more)
    grown = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert grown.stderr.endswith(
        "(tails seed=3): strategy.power was unknown to the run: its plugin has changed since\n"
    )
    Path("tails.py").write_text(PLUGIN.format(option="count").replace("[-self.count:]", "[:self.count]"))
    other = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert other.exit_code == 1 and first_difference(other)[0] == "train/loss, epoch 1"


def test_pictures_in_another_place(cli: Cli, store: Path, own_folder: Path) -> None:
    from support.photos import make_photos

    make_photos(own_folder / "photos")
    arguments = ["-s", "head", "--dataset", "folder:photos", "--image-size", "16", "--shift", "contrast=0.5", "--json"]
    settings = ["--set", "base.epochs=1", "--epochs", "1", "--set", "shots=2"]
    run_id = json.loads(cli("run", *arguments, *settings).stdout)["runs"][0]["run_id"]
    assert cli("reproduce", run_id).stdout.startswith("head seed=0: identical\n")
    first = next(iter(sorted((own_folder / "photos").rglob("*.*"))))
    renamed = first.rename(first.with_name(f"{first.stem}_{first.suffix}"))
    assert cli("reproduce", run_id).stdout.startswith("head seed=0: identical\n")
    first = renamed
    first.unlink()
    result = cli("reproduce", run_id)
    assert result.exit_code == 1 and first_difference(result)[0] == "fingerprint of the data"
    (own_folder / "photos").rename(own_folder / "elsewhere")
    gone = cli("reproduce", run_id)
    assert gone.exit_code == 2 and "folder:photos" in gone.stderr and gone.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_model_from_python_is_given_again(store: Path) -> None:
    model, other = Plain(10), Plain(10)
    with torch.no_grad():
        other.out.bias += 1
    outcome = adaptkit.run("full", backbone=model, settings=TINY_SETTINGS)
    run_id = outcome.runs[0].run_id
    assert run_id is not None
    assert adaptkit.reproduce(run_id, backbone=model).verdict == "identical"
    with pytest.raises(BadInput) as raised:
        adaptkit.reproduce(run_id)
    assert str(raised.value).endswith(
        "it is a Python object; pass it again: adaptkit.reproduce(run_id, backbone=model)"
    )
    assert adaptkit.reproduce(run_id, backbone=other).verdict == "different"


@pytest.mark.slow
def test_runs_of_sweeps_and_tunings(cli: Cli, store: Path) -> None:
    swept = cli("sweep", "-s", "lora", "--grid", "lora.rank=1,2", *TINY, "--json")
    assert swept.exit_code == 0, swept.stderr
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("adaptkit").experiment_id
    (one, two) = client.search_runs([experiment], "tags.`adaptkit.kind` = 'adaptation'")
    for run in (one, two):
        again = cli("reproduce", run.info.run_id, "-q")
        assert again.stdout.partition("\n")[0].endswith(": identical"), again.stderr or again.stdout
    tuned = cli("tune", "-s", "head", "--trials", "2", "--seeds", "1", *TINY, "--json")
    assert tuned.exit_code == 0, tuned.stderr
    for run in client.search_runs([experiment], "tags.`adaptkit.kind` = 'tuning'"):
        result = cli("reproduce", run.info.run_id, "-q")
        assert result.stdout.splitlines()[0].endswith(": identical"), result.stdout
        assert "metrics      8 values          equal to the last bit\n" in result.stdout
        assert "predictions" not in result.stdout
