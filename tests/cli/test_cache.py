"""`adaptkit cache`: list, verify and clear the entries."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.experiments import TINY

from adaptkit.experiment.base_cache import base_lock

Cli = Callable[..., Result]
RUN = ("run", "-s", "head", *TINY, "--no-track", "-q", "--json")


@pytest.fixture
def filled(own_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """Run one experiment with a separate cache. Return the folder of the cache and the results."""
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    return own_folder / "cache", metrics(cli)


def metrics(cli: Cli) -> dict[str, Any]:
    (run,) = json.loads(cli(*RUN).stdout)["runs"]
    return {key: value for key, value in run["metrics"].items() if not key.startswith("time/")}


def entries(cli: Cli, *kinds: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cli("cache", "list", *kinds, "--json").stdout)["entries"]
    return found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 64
    path.write_bytes(content)


def test_empty_cache(own_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "nowhere"))
    assert cli("cache", "list").stdout == f"{own_folder / 'nowhere'}: 0 entries, 0 B\n"
    verified, cleared = cli("cache", "verify"), cli("cache", "clear")
    assert (verified.exit_code, verified.stdout) == (0, "0 entries, 0 B read, 0 damaged\n")
    assert (cleared.exit_code, cleared.stdout) == (0, "Removed 0 entries, 0 B\n")


@pytest.mark.parametrize("command", ["list", "verify", "clear"])
@pytest.mark.parametrize("named", ["/dev/null", "/dev/null/x", "file", "file/below", "link"])
def test_cache_path_that_is_a_file(
    own_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str, named: str
) -> None:
    (own_folder / "file").write_bytes(b"")
    (own_folder / "link").symlink_to("nowhere")
    monkeypatch.setenv("ADAPTKIT_CACHE", named)
    result = cli("cache", command)
    assert (result.exit_code, result.stdout) == (2, "")
    path = own_folder / named
    assert result.stderr == f"Error: the cache {path} is not a folder; set ADAPTKIT_CACHE to another one\n"


def test_list(filled: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    cache, _ = filled
    (base,) = entries(cli, "bases")
    assert base["bytes"] == sum(path.stat().st_size for path in Path(base["path"]).iterdir()) > 1_000_000
    kept = {str(path): path.stat().st_size for path in (cache / "features").iterdir()}
    assert {entry["path"]: entry["bytes"] for entry in entries(cli, "features")} == kept and len(kept) == 4
    shown = cli("cache", "list").stdout
    assert shown.startswith(f"{cache}: 5 entries, ") and Path(base["path"]).name in shown


def test_verify_and_remove_damaged_entries(filled: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    _, right = filled
    sound = cli("cache", "verify")
    assert sound.exit_code == 0 and sound.stdout.startswith("5 entries, ") and "read, 0 damaged" in sound.stdout
    (base,) = entries(cli, "bases")
    feature, *others = entries(cli, "features")
    flip(Path(base["path"]) / "base.safetensors")
    flip(Path(feature["path"]))
    damaged = cli("cache", "verify")
    lines = [
        f"{base['path']}: its weights do not match its card",
        f"{feature['path']}: its content does not match its checksum",
    ]
    assert (damaged.exit_code, damaged.stdout.splitlines()[:-1]) == (1, lines)
    removed = cli("cache", "verify", "--remove")
    assert (removed.exit_code, removed.stdout.splitlines()[:-1]) == (0, [f"{line} (removed)" for line in lines])
    assert [entry["path"] for entry in entries(cli)] == [other["path"] for other in others]
    assert metrics(cli) == right
    assert cli("cache", "verify").exit_code == 0 and len(entries(cli)) == 5


def test_clear_keeps_the_most_recently_used(filled: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    first, *others = entries(cli, "features")
    old = time.time() - 7200
    os.utime(first["path"], (old, old))
    assert cli("cache", "clear", "--unused-for", "3h").stdout == "Removed 0 entries, 0 B\n"
    assert cli("cache", "clear", "--unused-for", "1h").stdout.startswith("Removed 1 entry, ")
    (base,) = entries(cli, "bases")
    assert entries(cli, "features") == others
    for number, other in enumerate(others):
        os.utime(other["path"], (old + number, old + number))
    found = json.loads(cli("cache", "clear", "--keep", f"{base['bytes']} B", "--json").stdout)
    assert [entry["path"] for entry in found["removed"]] == [other["path"] for other in others]
    assert [entry["path"] for entry in entries(cli)] == [base["path"]]


def test_clear_keeps_a_base_in_use(filled: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    (base,) = entries(cli, "bases")
    with base_lock(Path(base["path"]).name):
        result = cli("cache", "clear")
    assert result.stdout.splitlines()[1:] == [f"{base['path']} is in use"]
    assert result.stdout.startswith("Removed 4 entries, ") and entries(cli) == [base]
    assert cli("cache", "clear").stdout.startswith("Removed 1 entry, ") and entries(cli) == []


@pytest.mark.slow
def test_reusing_a_base_updates_its_time(filled: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    (base,) = entries(cli, "bases")
    card = Path(base["path"]) / "base.json"
    os.utime(card, (1000, 1000))
    assert cli("cache", "verify").exit_code == 0
    assert cli("run", "-s", "head", *TINY, "--dry-run").exit_code == 0
    assert entries(cli, "bases")[0]["used"] == 1000
    metrics(cli)
    assert entries(cli, "bases")[0]["used"] > time.time() - 300


def test_leftovers_of_dead_processes(filled: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    cache, _ = filled
    abandoned, fresh = cache / "features" / "one.part", cache / "features" / "two.part"
    for path in (abandoned, fresh):
        path.write_bytes(b"half")
    os.utime(abandoned, (1000, 1000))
    assert [entry["path"] for entry in entries(cli, "leftovers")] == [str(abandoned)]
    assert cli("cache", "clear", "leftovers").stdout == "Removed 1 entry, 4 B\n"
    assert fresh.exists() and not abandoned.exists() and len(entries(cli)) == 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("list", "base"), "the cache has no 'base'; did you mean 'bases'?"),
        (("clear", "--keep", "much"), "--keep: 'much' is not a size; write 500MB or 2GB"),
        (("clear", "--unused-for", "long"), "--unused-for: 'long' is not a duration; write 90s, 30m, 2h or 1h30m"),
    ],
)
def test_bad_input_removes_nothing(
    filled: tuple[Path, dict[str, Any]], cli: Cli, arguments: tuple[str, ...], line: str
) -> None:
    result = cli("cache", *arguments)
    assert (result.exit_code, result.stderr) == (2, f"Error: {line}\n")
    assert len(entries(cli)) == 5
