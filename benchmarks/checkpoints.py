"""Measure the time and size of the checkpoint after each epoch, compared with the time of the epoch."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import adaptkit
from adaptkit import hookimpl
from adaptkit.experiment import recovery
from adaptkit.training.checkpoints import TrainingState

RESNET = {"backbone": "torchvision:resnet18", "weights": "none", "epochs": 3, "base.epochs": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "small_cnn, full": ("full", {}),
    "small_cnn, lora": ("lora", {}),
    "small_cnn, head": ("head", {}),
    "resnet18, full": ("full", RESNET),
    "resnet18, head": ("head", RESNET),
}


class Watching:
    """Record the time of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    @hookimpl
    def adaptkit_epoch_ended(self, run: Any, epoch: Any) -> None:
        """Record an epoch of adaptation."""
        if run.kind == "adaptation":
            self.epochs.append(epoch.seconds)


def measure(strategy: str, settings: dict[str, Any]) -> tuple[list[float], list[float], list[float], int]:
    """Run once. Return the seconds of epochs, of capturing and of writing checkpoints, and a checkpoint's bytes."""
    capturing, writing, size = [], [], 0
    capture, write = TrainingState.capture, recovery.write_checkpoint

    def timed_capture(self: TrainingState, *given: Any) -> Any:
        start = time.perf_counter()
        found = capture(self, *given)
        capturing.append(time.perf_counter() - start)
        return found

    def timed_write(path: Path, *given: Any) -> None:
        nonlocal size
        start = time.perf_counter()
        write(path, *given)
        writing.append(time.perf_counter() - start)
        size = path.stat().st_size

    TrainingState.capture, recovery.write_checkpoint = timed_capture, timed_write  # type: ignore[method-assign]
    watching = Watching()
    try:
        adaptkit.run("scratch", settings={**settings, "epochs": 1})  # the base is cached after this run
        capturing.clear()
        writing.clear()
        adaptkit.run(strategy, settings=settings, plugins=[watching])
    finally:
        TrainingState.capture, recovery.write_checkpoint = capture, write  # type: ignore[method-assign]
    return watching.epochs, capturing, writing, size


def main() -> None:
    """Print a table with a row for each case."""
    print("| | epoch, s | checkpoint, s | of an epoch | size, MB |")
    print("| --- | --- | --- | --- | --- |")
    for name, (strategy, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            os.environ |= {"ADAPTKIT_STATE": f"{folder}/state", "ADAPTKIT_CACHE": f"{folder}/cache"}
            epochs, capturing, writing, size = measure(strategy, settings)
            os.chdir("/")
        seconds = statistics.median(map(sum, zip(capturing, writing, strict=True)))
        epoch = statistics.median(epochs)
        print(f"| {name} | {epoch:.3f} | {seconds:.4f} | {100 * seconds / epoch:.1f} % | {size / 1e6:.2f} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
