"""Write runs with chosen predictions to a real MLflow store."""

from __future__ import annotations

import functools
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from sklearn.metrics import f1_score

from adaptkit.events import Predictions, RunResult
from adaptkit.tracking.predictions import write_predictions
from adaptkit.tracking.store import open_store

IMAGES = 200
CLASSES = tuple("abcde")
TRUTH = numpy.arange(IMAGES) % len(CLASSES)
DATA, BASE = "d" * 64, "b" * 64


_open = functools.cache(open_store)


def predicted(wrong: Iterable[int], truth: Any = TRUTH) -> Any:
    """Return predictions that are wrong for these images: the next class."""
    found = truth.copy()
    chosen = list(wrong)
    found[chosen] = (found[chosen] + 1) % len(CLASSES)
    return found


def fabricate(
    uri: str,
    strategy: str,
    seed: int,
    wrong: Iterable[int],
    *,
    wrong_clean: Iterable[int] = (),
    experiment: str = "adaptkit",
    options: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    status: str = "FINISHED",
    artifacts: Sequence[str] = ("predictions.csv", "adapter/adapter.json"),
    arm: str | None = None,
    truth: Any = TRUTH,
    epochs: int = 2,
) -> str:
    """Record a run whose model is wrong for these target test images; return its id."""
    store = _open(uri, experiment)
    client: MlflowClient = store.client
    shifted, clean = predicted(wrong, truth), predicted(wrong_clean, truth)
    base = predicted(range(len(truth) // 2), truth)
    accuracy, clean_accuracy = float((shifted == truth).mean()), float((clean == truth).mean())
    known = {
        "final/test_accuracy": clean_accuracy,
        "final/shifted_accuracy": accuracy,
        "final/shifted_macro_f1": float(f1_score(truth, shifted, average="macro")),
        "final/zero_shot_accuracy": 0.5,
        "final/base_test_accuracy": 1.0,
        "final/gain": accuracy - 0.5,
        "final/retention": clean_accuracy - 1.0,
        "params/total": 1000,
        "params/trainable": 100,
        "params/trainable_fraction": 0.1,
        "size/adapter_bytes": 400,
        "memory/peak_bytes": 4000,
        "time/train_seconds": 10.0 + 0.1 * seed,
        "time/inference_ratio": 1.0,
    } | dict(metrics or {})
    settings = {
        "strategy": strategy, "seed": str(seed), "epochs": "2", "batch_size": "32", "lr": "0.001", "shots": "50",
        "dataset": "letters", "target": "none", "shift": "noise=0.3", "backbone": "small_cnn", "device": "cpu",
    }  # fmt: skip
    settings |= {f"strategy.{key}": value for key, value in (options or {}).items()} | dict(params or {})
    own_tags = {
        "adaptkit.kind": "adaptation",
        "adaptkit.arm": arm or strategy,
        "adaptkit.data_fingerprint": DATA,
        "adaptkit.base_fingerprint": BASE,
        "adaptkit.pair_id": f"{DATA[:12]}-{seed}",
        "adaptkit.timing": "alone",
        "adaptkit.host": socket.gethostname(),
        "adaptkit.pid": str(os.getpid()),
        "adaptkit.pool_images": "200",
        "adaptkit.drawn_images": "50",
    } | dict(tags or {})
    run_id = str(client.create_run(store.experiment_id, run_name=f"{arm or strategy} seed={seed}").info.run_id)
    now = int(time.time() * 1000)
    points = [Metric(key, value, now, 0) for key, value in known.items()] if status == "FINISHED" else []
    for epoch in range(1, epochs + 1):
        points += [
            Metric("test/accuracy", clean_accuracy, now, epoch),
            Metric("shifted/accuracy", accuracy - 0.1 * (epochs - epoch) / max(1, epochs - 1), now, epoch),
            Metric("time/cumulative_seconds", 5.0 * epoch, now, epoch),
        ]
    client.log_batch(
        run_id,
        metrics=points,
        params=[Param(key, value) for key, value in settings.items()],
        tags=[RunTag(key, value) for key, value in own_tags.items()],
    )
    if status == "FINISHED":
        index, sure = numpy.arange(len(truth)), numpy.full(len(truth), 0.9)
        result = RunResult(
            metrics=known,
            epochs=(),
            predictions={
                "clean": Predictions(index, truth, clean, sure, truth),
                "shifted": Predictions(index, truth, shifted, sure, base),
            },
            classes=CLASSES,
            config="",
        )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "adapter").mkdir()
            write_predictions(Path(folder), result)
            (Path(folder) / "adapter" / "adapter.json").write_text(json.dumps({"classes": CLASSES}))
            for name in artifacts:
                client.log_artifact(run_id, str(Path(folder) / name), str(Path(name).parent).strip("."))
    if status != "RUNNING":
        client.set_terminated(run_id, status)
    return run_id
