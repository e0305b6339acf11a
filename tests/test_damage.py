"""Damaged files of all kinds are detected, and computed again if possible; results never change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.experiments import TINY
from support.photos import make_photos
from support.reliability import note

Cli = Callable[..., Result]
RUN = ("run", "-s", "head", *TINY, "--no-track", "-q", "--json")


def spoiled(content: bytes, count: int) -> Iterator[bytes]:
    """Yield the content with a flipped bit at several positions, and truncated to several lengths."""
    for place in sorted({1, 9, len(content) - 2, *(len(content) * part // count for part in range(count))}):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 7
        yield bytes(flipped)
    for length in (0, 1, 7, len(content) // 2, len(content) - 2):  # the last line break has no meaning
        yield content[:length]


def numbers(result: Result) -> list[dict[str, float]]:
    return [
        {key: value for key, value in run["metrics"].items() if not key.startswith("time/")}
        for run in json.loads(result.stdout)["runs"]
    ]


@pytest.fixture
def cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    return own_folder / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base.safetensors", "base.json"])
def test_damaged_base_is_trained_again(name: str, cli: Cli, cache: Path) -> None:
    right = numbers(cli(*RUN))
    (folder,) = (path for path in (cache / "bases").iterdir() if path.is_dir())
    whole = (folder / name).read_bytes()
    for number, content in enumerate(spoiled(whole, 8)):
        (folder / name).write_bytes(content)
        verified = cli("cache", "verify", "bases")
        line = f"{folder}: its weights do not match its card"
        assert (verified.exit_code, verified.stdout.splitlines()[0]) == (1, line), number
        if number % 4 == 0:
            again = cli(*RUN)
            assert (again.exit_code, again.stderr) == (0, f"Warning: {folder} is damaged and is computed again\n")
            assert numbers(again) == right
            assert (folder / "base.safetensors").read_bytes() == whole or name == "base.json"
            assert cli("cache", "verify").exit_code == 0
        else:
            (folder / name).write_bytes(whole)
        note("damaged-base")


@pytest.mark.slow
def test_damaged_features_are_computed_again(cli: Cli, cache: Path) -> None:
    right = numbers(cli(*RUN))
    features = sorted((cache / "features").iterdir())
    whole = {path: path.read_bytes() for path in features}
    head = int.from_bytes(whole[features[0]][:8], "little")
    for number, path in enumerate(features):
        # In the metadata and in the numbers.
        for content in (*spoiled(whole[path], 6), *spoiled(whole[path][: 8 + head], 12)):
            path.write_bytes(content if len(content) < 8 + head - 1 or len(content) > 8 + head else whole[path][:-1])
            verified = cli("cache", "verify", "features")
            line = f"{path}: its content does not match its checksum"
            assert (verified.exit_code, verified.stdout.splitlines()[0]) == (1, line)
            note("damaged-features")
        again = cli(*RUN)
        assert again.exit_code == 0 and numbers(again) == right
        assert again.stderr in ("", f"Warning: {path} is damaged and is computed again\n"), number
        told = again.stderr != ""
        # This run does not read all of them; the others stay damaged until they are read.
        assert told == (cli("cache", "verify", "features").exit_code == 0)
        path.write_bytes(whole[path])


@pytest.mark.slow
def test_damaged_image_record_is_made_again(cli: Cli, cache: Path, own_folder: Path) -> None:
    make_photos(own_folder / "photos", per_class=8)
    target = (
        "--dataset",
        "none",
        "--weights",
        "none",
        "--target",
        f"folder:{own_folder / 'photos'}",
        "--image-size",
        "16",
    )
    run = ("run", "-s", "head", *target, "--epochs", "1", "--set", "shots=2", "--no-track", "-q", "--json")
    first = cli(*run)
    assert first.exit_code == 0, first.output
    (record,) = (cache / "pictures").glob("*.json")
    whole = record.read_bytes()
    for content in spoiled(whole, 12):
        record.write_bytes(content)
        verified = cli("cache", "verify", "pictures")
        line = f"{record}: its content does not match its checksum"
        assert (verified.exit_code, verified.stdout.splitlines()[0]) == (1, line), content
        note("damaged-pictures")
    again = cli(*run)
    assert f"Warning: {record} is damaged and is computed again" in again.stderr.splitlines()
    assert numbers(again) == numbers(first) and record.read_bytes() == whole


@pytest.fixture
def tracked(cli: Cli, own_folder: Path) -> tuple[str, Path]:
    """Create a tracked run; return its id and the folder of its artifacts."""
    made = cli("run", "-s", "lora", *TINY, "-q", "--json")
    assert made.exit_code == 0, made.output
    run_id = json.loads(made.stdout)["runs"][0]["run_id"]
    return run_id, next((own_folder / "mlruns").glob(f"*/{run_id}/artifacts"))


def refused(result: Result) -> list[str]:
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    lines = result.stderr.splitlines()
    assert lines and all(line.startswith("Error: ") for line in lines)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json"])
def test_damaged_adapter_is_refused(name: str, cli: Cli, tracked: tuple[str, Path], own_folder: Path) -> None:
    run_id, artifacts = tracked
    path = artifacts / "adapter" / name
    whole = path.read_bytes()
    export = ("export", run_id, "--to", "merged", "-o", "made")
    for content in spoiled(whole, 6):
        path.write_bytes(content)
        (line, *_) = refused(cli(*export))
        assert name in line or "damaged" in line or "altered" in line, line
        assert not (own_folder / "made").exists()
        note("damaged-adapter")
    path.write_bytes(whole)
    assert cli(*export).exit_code == 0


def test_damaged_split(cli: Cli, tracked: tuple[str, Path]) -> None:
    _, artifacts = tracked
    path = artifacts / "split.json"
    whole = path.read_bytes()
    again = ("run", "-s", "head", *TINY, "--set", f"split.file={path}", "--dry-run")
    assert cli(*again).exit_code == 0
    for content in spoiled(whole, 16):
        path.write_bytes(content)
        for line in refused(cli(*again)):
            assert line.startswith(f"Error: split.file {path}: "), line
        note("damaged-split")
    said: dict[str, Any] = json.loads(whole)
    said["parts"]["pool"]["images"].pop()
    path.write_text(json.dumps(said))
    (line,) = refused(cli(*again))
    assert 'if you edited it on purpose, delete the line "sha256" or set it to this value' in line
    found = line.partition("its sha256 is ")[2][:64]
    path.write_text(json.dumps(said | {"sha256": found}))
    assert cli(*again).exit_code == 0
    del said["sha256"]
    path.write_text(json.dumps(said, indent=4))
    assert cli(*again).exit_code == 0


@pytest.mark.slow
def test_cache_limit_evicts_oldest_bases(cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.experiment.base_cache import base_lock

    def run(seed: int) -> Result:
        result = cli("run", "-s", "head", *TINY, "--set", f"base.seed={seed}", "--no-track")
        assert result.exit_code == 0, result.output
        return result

    def kept() -> list[str]:
        return sorted((path.name for path in (cache / "bases").iterdir() if path.is_dir()), key=used)

    def used(key: str) -> float:
        return (cache / "bases" / key / "base.json").stat().st_mtime

    run(1), run(2), run(1)
    second, first = kept()
    monkeypatch.setenv("ADAPTKIT_CACHE_LIMIT", "4MB")  # each has 1.7 MB
    told = [line for line in run(3).stderr.splitlines() if "cache" in line]
    assert told == ["evicted the least recently used base from the cache (1.7 MB): ADAPTKIT_CACHE_LIMIT is 4.0 MB"]
    assert second not in kept() and kept()[0] == first
    third = kept()[1]
    monkeypatch.setenv("ADAPTKIT_CACHE_LIMIT", "1")
    with base_lock(first):
        run(4)
    assert kept()[0] == first and third not in kept() and len(kept()) == 2
    monkeypatch.setenv("ADAPTKIT_CACHE_LIMIT", "much")
    result = cli(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: ADAPTKIT_CACHE_LIMIT: 'much' is not a size; write 500MB or 2GB\n"
    shutil.rmtree(cache)


#: repeatedly writes and reads the same base and features; prints how often they were complete
SHARING = """
import sys, time, warnings
import torch
warnings.simplefilter("error")  # damaged files cause a warning
from torch import nn
from adaptkit.system.folders import cache_folder
from adaptkit.experiment.base_cache import Base, base_lock, remove_base, sound_base, store_base
from adaptkit.training.frozen.features import FeatureFiles

Base.sample = lambda self, request, domains: []  # these weights belong to no backbone
role, until = sys.argv[1], time.time() + float(sys.argv[2])
files, sound = FeatureFiles(cache_folder() / "features"), 0
while time.time() < until:
    if role == "write":
        for number in range(3):
            files.write(str(number), torch.full((400, 200), float(number)), float(number))
            model = nn.Linear(300, 200)
            nn.init.constant_(model.weight, number)
            nn.init.constant_(model.bias, number)
            with base_lock(f"key{number}"):
                store_base(f"key{number}", model.state_dict(), (), request=None, domains=None)
    elif role == "remove":
        for number in range(3):
            remove_base(f"key{number}")
            files.path(str(number)).unlink(missing_ok=True)
        time.sleep(0.01)
    else:
        for number in range(3):
            if (found := files.read(str(number))) is not None:
                assert found[1] == number and bool((found[0] == number).all()), "half a feature file"
                sound += 1
            with base_lock(f"key{number}"):
                base = sound_base(f"key{number}")
            if base is not None:
                assert all(bool((tensor == number).all()) for tensor in base.state.values()), "half a base"
                sound += 1
print(sound)
"""


@pytest.mark.slow
def test_files_are_never_read_half_written(cache: Path) -> None:
    roles = ("write", "write", "read", "read", "read", "remove")
    command = (sys.executable, "-c", SHARING)
    processes = [
        subprocess.Popen([*command, role, "12"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for role in roles
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, said, strict=True)] == [
        (0, "")
    ] * len(roles)
    sound = [int(output) for role, (output, _) in zip(roles, said, strict=True) if role == "read"]
    assert min(sound) > 5
    left = {path.suffix for path in (cache / "features").iterdir()}
    assert left <= {".safetensors"} and not list((cache / "bases").glob("*/.*"))
    note("cache-races")
