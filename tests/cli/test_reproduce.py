"""`adaptkit reproduce`: re-run a run from its record, and report differences."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from mlflow import MlflowClient
from support.artifacts import artifacts_of, run_of
from support.experiments import TINY, TINY_SETTINGS, Tracked
from support.plain_model import Plain
from support.reliability import note
from support.reproduction import (
    change,
    epoch_lines,
    first_difference,
    resign,
    retag,
    snapshot,
)

import adaptkit
from adaptkit.errors import BadInput

Cli = Callable[..., Result]


def test_identical_and_read_only(cli: Cli, copy: str, tracked: Tracked) -> None:
    folder = Path(copy.removeprefix("sqlite:///")).parent
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
        "metrics      31 values         equal to the last bit",
        "predictions  200 images        equal",
        "adapter      13,608 numbers    equal to the last bit",
    ]
    assert lines[9] == "Computed with the recorded versions, on the same kind of hardware:"
    assert lines[10].startswith(f"adaptkit {adaptkit.__version__}, Python 3.")
    assert epoch_lines(result) == [("lora rank=4 seed=0", "1"), ("lora rank=4 seed=0", "2")]
    assert snapshot(folder) == before
    assert not Path("mlflow.db").exists() and not Path("mlruns").exists()
    note("reproduced")


@pytest.mark.slow
def test_base_missing_from_the_cache(
    cli: Cli, tracked: Tracked, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    asked = ["reproduce", run_of(tracked, "head"), "--tracking-uri", tracked.uri, "--json"]
    found = json.loads(cli(*asked, "-q").stdout)
    assert (found["verdict"], found["base"], found["first_difference"]) == ("identical", "made anew", None)
    assert found["compared"] == {"metrics": 31, "predictions": 200, "tensors": 2, "numbers": 1290}
    assert found["environment"]["recorded"] == found["environment"]["now"]
    # The cache now has the base. --refresh-base does not use it and does not change it.
    bases = snapshot(own_folder / "cache" / "bases")
    assert json.loads(cli(*asked, "-q").stdout)["base"] == "from the cache"
    insisted = cli(*asked, "--refresh-base", "--no-feature-cache")
    assert json.loads(insisted.stdout)["verdict"] == "identical"
    assert [name for name, _ in epoch_lines(insisted)] == ["base small_cnn mnist5k"] * 2 + ["head seed=0"] * 2
    assert snapshot(own_folder / "cache" / "bases") == bases
    note("reproduced", 3)


@pytest.mark.slow
def test_base_run(cli: Cli, tracked: Tracked) -> None:
    result = cli("reproduce", tracked.outcome["base"]["run_id"], "--tracking-uri", tracked.uri)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "base small_cnn mnist5k: identical"
    assert lines[4:7] == [
        "metrics      6 values          equal to the last bit",
        "predictions  100 images        equal",
        "base         421,644 numbers   equal to the last bit",
    ]
    assert len(epoch_lines(result)) == 2


@pytest.mark.slow
def test_from_python(tracked: Tracked) -> None:
    found = adaptkit.reproduce(run_of(tracked, "lora"), tracking_uri=tracked.uri, device="cpu")
    assert isinstance(found, adaptkit.Reproduction)
    assert (found.verdict, found.first, found.differences) == ("identical", None, ())


@pytest.mark.slow
def test_another_process(tracked: Tracked) -> None:
    command = [sys.executable, "-m", "adaptkit", "reproduce", run_of(tracked, "lora"), "--tracking-uri", tracked.uri]
    result = subprocess.run([*command, "-q"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("lora rank=4 seed=0: identical\n")


@pytest.mark.slow
def test_first_difference(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    loss = MlflowClient(tracking_uri=copy).get_metric_history(run_id, "train/loss")[0].value
    nudge = "UPDATE metrics SET value = value + ? WHERE run_uuid = ? AND key = ? AND step = ?"
    change(copy, nudge, 1e-15, run_id, "train/loss", 1)
    change(copy, nudge, 0.5, run_id, "train/loss", 2)
    change(copy, nudge, 0.5, run_id, "final/gain", 0)
    result = cli("reproduce", run_id)
    assert result.exit_code == 1 and result.stdout.startswith("head seed=0: different\n")
    what, before, now = first_difference(result)
    assert (what, float(now)) == ("train/loss, epoch 1", loss) and float(before) == loss + 1e-15 != loss
    assert "2 more values differ; --json lists all.\n" in result.stdout
    assert "metrics      31 values         3 differ\n" in result.stdout
    found = json.loads(cli("reproduce", run_id, "--json").stdout)
    assert [one["what"] for one in found["differences"]] == [
        "train/loss, epoch 1",
        "train/loss, epoch 2",
        "final/gain",
    ]
    assert [one["within"] for one in found["differences"]] == [True, False, False]


@pytest.mark.slow
def test_missing_metric(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    MlflowClient(tracking_uri=copy).log_metric(run_id, "energy", 3.0)
    change(copy, "DELETE FROM latest_metrics WHERE run_uuid = ? AND key = 'params/total'", run_id)
    found = json.loads(cli("reproduce", run_id, "--json").stdout)
    assert [(one["what"], one["recorded"], one["now"]) for one in found["differences"]] == [
        ("energy", 3.0, None),
        ("params/total", None, 421642.0),
    ]


@pytest.mark.slow
def test_times_and_memory_are_ignored(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    for table in ("metrics", "latest_metrics"):
        change(copy, f"UPDATE {table} SET value = 9 WHERE run_uuid = ? AND key LIKE 'time/%'", run_id)
        change(copy, f"UPDATE {table} SET value = 9 WHERE run_uuid = ? AND key LIKE 'memory/%'", run_id)
    assert cli("reproduce", run_id).stdout.startswith("head seed=0: identical\n")


@pytest.mark.slow
def test_different_prediction(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    path = artifacts_of(copy, run_id) / "predictions.csv"
    lines = path.read_text().splitlines()
    row = next(number for number, line in enumerate(lines) if ",shifted," in line)
    image, test, group, fold, truth, prediction, *rest = lines[row].split(",")
    other = str((int(prediction) + 1) % 10)
    lines[row] = ",".join([image, test, group, fold, truth, other, *rest])
    path.write_text("\r\n".join([*lines, ""]))
    result = cli("reproduce", run_id)
    assert result.exit_code == 1
    assert first_difference(result) == (f"prediction, image {image} of the shifted test set", other, prediction)
    assert "  1 of 200 images\n" in result.stdout and "metrics      31 values         equal to" in result.stdout


@pytest.mark.slow
def test_predictions_of_an_earlier_version(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")
    path = artifacts_of(copy, run_id) / "predictions.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("test_set", "image", "truth", "prediction", "confidence", "base_prediction")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"confidence": row[f"p_{row['prediction']}"]} for row in rows)
    assert cli("reproduce", run_id).stdout.startswith("head seed=0: identical\n")
    path.write_text(path.read_text().replace(f"{rows[0]['truth']},{rows[0]['prediction']},0.", ",,0.", 1))
    result = cli("reproduce", run_id)
    assert result.exit_code == 1 and "predictions  200 images        1 differs\n" in result.stdout


@pytest.mark.slow
def test_one_bit_of_the_adapter(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "head")

    def flip(tensors: dict[str, torch.Tensor]) -> None:
        (name,) = (name for name in tensors if name.endswith("bias"))
        tensors[name].view(torch.int32)[3] ^= 1

    resign(copy, run_id, flip)
    result = cli("reproduce", run_id)
    assert result.exit_code == 1
    what, before, now = first_difference(result)
    assert re.fullmatch(r"adapter, \S+\.bias\[3\]", what) and before != now
    assert float(before) == pytest.approx(float(now), rel=1e-6)
    assert "adapter      1,290 numbers     differs\n" in result.stdout


def test_other_data_stop_before_training(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "lora")
    retag(copy, run_id, "adaptkit.data_fingerprint", "0" * 64)
    result = cli("reproduce", run_id)
    assert (result.exit_code, epoch_lines(result)) == (1, [])
    now = tracked.outcome["data_fingerprint"]
    assert first_difference(result) == ("fingerprint of the data", "0" * 64, now)
    assert "  the same images, divided differently\n" in result.stdout
    assert "data         000000000000      different\nThe run was not repeated.\n" in result.stdout


@pytest.mark.slow
def test_other_base_in_the_cache(cli: Cli, copy: str, tracked: Tracked) -> None:
    run_id = run_of(tracked, "lora")
    retag(copy, run_id, "adaptkit.base_fingerprint", "0" * 64)
    bases = Path(os.environ["ADAPTKIT_CACHE"]) / "bases"
    before = snapshot(bases)
    result = cli("reproduce", run_id)
    assert result.exit_code == 1
    now = tracked.outcome["base"]["fingerprint"]
    assert first_difference(result) == ("fingerprint of the base", "0" * 64, now)
    told = f"the cache has another base of this recipe ({now[:12]}); it stays there and is not used\n"
    assert told in result.stderr and ("base small_cnn mnist5k", "2") in epoch_lines(result)
    assert "base         000000000000      different, made anew\n" in result.stdout
    assert snapshot(bases) == before


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
    """Record a run with a plugin, severities and a split file. Delete the split file."""
    Path("tails.py").write_text(PLUGIN.format(option="count"))
    shutil.copy(artifacts_of(tracked.uri, run_of(tracked, "lora")) / "split.json", "mine.json")
    arguments = ["-s", "tails", "-o", "count=2", "--plugin", "tails.py", "--severity", "0.5,1,2", "--json"]
    result = cli("run", *arguments, *TINY, "--set", "split.file=mine.json", "--seeds", "3")
    Path("mine.json").unlink()
    return str(json.loads(result.stdout)["runs"][0]["run_id"])


@pytest.mark.slow
def test_plugins_severities_and_a_missing_split_file(cli: Cli, elaborate: str, store: Path) -> None:
    before = snapshot(store.parent / "mlruns") | {"database": hashlib.sha256(store.read_bytes()).hexdigest()}
    result = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("tails seed=3: identical\n")
    # 4 per epoch and that of the plugin, 11 final ones, 3 + 3 for severities, and the area.
    assert "metrics      40 values         equal to the last bit\n" in result.stdout
    assert "split.file mine.json: using the run's split.json, which is equal\n" in result.stderr
    # Metrics that the plugin logs are compared, but not added to the store.
    after = snapshot(store.parent / "mlruns") | {"database": hashlib.sha256(store.read_bytes()).hexdigest()}
    assert after == before


def test_damaged_split(cli: Cli, elaborate: str, store: Path) -> None:
    path = artifacts_of(f"sqlite:///{store}", elaborate) / "split.json"
    path.write_text(path.read_text()[:-40])
    result = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: run {elaborate} (tails seed=3): its split.json was altered\n"


@pytest.mark.slow
def test_missing_or_changed_plugin(cli: Cli, elaborate: str) -> None:
    missing = cli("reproduce", elaborate)
    assert missing.exit_code == 2 and "(tails seed=3): unknown strategy 'tails'" in missing.stderr
    assert missing.stderr.endswith(f"; the run was made with --plugin {Path('tails.py').absolute()}\n")
    Path("tails.py").write_text(PLUGIN.format(option="number"))
    renamed = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert renamed.exit_code == 2
    assert renamed.stderr.endswith("; the run used it: its plugin or adaptkit has changed since then\n")
    more = PLUGIN.format(option="count").replace("count: int = 2", "count: int = 2\n    power: int = 1")
    Path("tails.py").write_text(more)
    grown = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert grown.stderr.endswith(
        "(tails seed=3): strategy.power was unknown to the run: its plugin has changed since then\n"
    )
    Path("tails.py").write_text(PLUGIN.format(option="count").replace("[-self.count:]", "[:self.count]"))
    other = cli("reproduce", elaborate, "--plugin", "tails.py")
    assert other.exit_code == 1 and first_difference(other)[0] == "train/loss, epoch 1"


@pytest.mark.slow
def test_images_in_another_folder(cli: Cli, store: Path, own_folder: Path) -> None:
    from support.photos import make_photos

    make_photos(own_folder / "photos")
    arguments = ["-s", "head", "--dataset", "folder:photos", "--image-size", "16", "--shift", "contrast=0.5", "--json"]
    settings = ["--set", "base.epochs=1", "--epochs", "1", "--set", "shots=1"]
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
def test_model_from_python(store: Path) -> None:
    model, other = Plain(10), Plain(10)
    with torch.no_grad():
        other.out.bias += 1
    outcome = adaptkit.run("full", backbone=model, settings=TINY_SETTINGS)
    run_id = outcome.runs[0].run_id
    assert run_id is not None
    assert adaptkit.reproduce(run_id, backbone=model).verdict == "identical"
    with pytest.raises(BadInput) as raised:
        adaptkit.reproduce(run_id)
    assert str(raised.value).endswith("it is a Python object; pass it again with the argument backbone=model")
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
