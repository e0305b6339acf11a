"""Change stored runs, and read the output of `adaptkit reproduce`."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from click.testing import Result
from mlflow import MlflowClient
from support.artifacts import artifacts_of

from adaptkit.adapters.files import card_digest
from adaptkit.adapters.weights import pack, unpack
from adaptkit.system.files import sha256_of

FIRST = re.compile(r"First difference[^:]*: (.+)\n  recorded  (.+)\n  now       (.+)\n")


def change(uri: str, statement: str, *values: Any) -> None:
    """Change the database of a store with SQL."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        assert database.execute(statement, values).rowcount > 0
        database.commit()


def retag(uri: str, run_id: str, key: str, value: str) -> None:
    MlflowClient(tracking_uri=uri).set_tag(run_id, key, value)


def edit(uri: str, run_id: str, name: str, old: str, new: str) -> None:
    """Replace text in an artifact."""
    path = artifacts_of(uri, run_id) / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def snapshot(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder and its subfolders."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def first_difference(result: Result) -> tuple[str, str, str]:
    """Return the printed first difference: name, recorded value, current value."""
    found = FIRST.search(result.stdout)
    assert found is not None, result.stdout
    return found[1], found[2], found[3]


def epoch_lines(result: Result) -> list[str]:
    """Return the run and the number of each printed epoch."""
    return re.findall(r"^\[(.+?)\] epoch (\d+)", result.stderr, re.MULTILINE)


def resign(uri: str, run_id: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Replace the tensors of the adapter of a run, with a valid checksum."""
    folder = artifacts_of(uri, run_id) / "adapter"
    tensors = unpack((folder / "adapter.safetensors").read_bytes())
    change(tensors)
    (folder / "adapter.safetensors").write_bytes(pack(tensors))
    card = json.loads((folder / "adapter.json").read_text()) | {"sha256": sha256_of(folder / "adapter.safetensors")}
    card["card_sha256"] = card_digest(card)
    (folder / "adapter.json").write_text(json.dumps(card))
    retag(uri, run_id, "adaptkit.adapter_sha256", sha256_of(folder / "adapter.json"))


def nudge_all(uri: str, run_id: str, by: float) -> None:
    change(uri, "UPDATE metrics SET value = value * ? WHERE run_uuid = ? AND key = 'train/loss'", 1 + by, run_id)


def target_digest(uri: str, run_id: str) -> str:
    inputs = MlflowClient(tracking_uri=uri).get_run(run_id).inputs.dataset_inputs
    return next(given.dataset.digest for given in inputs if given.tags[0].value == "target")
