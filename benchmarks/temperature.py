"""Measure how often one temperature lowers the negative log-likelihood of runs, cross-fitted.

    python benchmarks/temperature.py                # 50 runs of full fine-tuning on 100 labels, 10 minutes

Each run divides the labelled images of its own seed. The temperature of each part of the predictions is fitted on the
other parts, as `adaptkit refit --calibrate` reports it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy

import adaptkit
from adaptkit.comparison.temperature import calibrate_predictions
from adaptkit.names import PREDICTIONS_FILE
from adaptkit.tracking.predictions import classes_of, read_predictions, read_table
from adaptkit.tracking.runs import open_runs

SIGNS = {"lower": -1, "the same": 0, "higher": 1}


def main() -> None:
    """Make the runs, calibrate their predictions, and print the share of runs with a lower loss."""
    parser = argparse.ArgumentParser(
        description="Measure how often one temperature lowers the negative log-likelihood."
    )
    parser.add_argument("--strategy", default="full")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        store = f"sqlite:///{Path(folder, 'mlflow.db')}"
        outcome = adaptkit.run(
            arguments.strategy,
            seeds=f"0-{arguments.seeds - 1}",
            shots=arguments.shots,
            epochs=arguments.epochs,
            evaluate_shifted="end",
            tracking_uri=store,
        )
        runs, rows = open_runs(store), []
        for run in outcome.runs:
            with runs.find(str(run.run_id)).file(PREDICTIONS_FILE) as path:
                table = read_table(path)
            predictions = read_predictions(table, classes_of(table) or (), ["shifted"])["shifted"]
            one = calibrate_predictions(predictions)
            rows.append((one.temperature, one.nll_before, one.nll_after, one.ece_before, one.ece_after))
        os.chdir("/")
    temperature, before, after, error, left = numpy.array(rows).T
    change = numpy.where(numpy.isclose(before, after, rtol=0, atol=1e-9), 0, after - before)
    shares = ", ".join(f"{word} in {(numpy.sign(change) == sign).mean():.0%}" for word, sign in SIGNS.items())
    print(f"{arguments.strategy}, {len(rows)} runs: {shares}")
    print(
        f"negative log-likelihood {before.mean():.3f} -> {after.mean():.3f}, worst change {(after - before).max():+.3f}"
    )
    print(f"calibration error {100 * error.mean():.1f} -> {100 * left.mean():.1f} points")
    print(f"temperature {temperature.min():.2f} to {temperature.max():.2f}")


if __name__ == "__main__":
    main()
