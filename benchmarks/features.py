"""Measure how long the strategies on frozen features take: five strategies, 20 seeds and four numbers of images.

    python benchmarks/features.py

The runs are not tracked. They use 2,000 target images of mnist5k (1,000 to draw from, 1,000 for the test) and the
features of one `small_cnn`, which is trained before. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time

from measuring import markdown

import adaptkit

STRATEGIES = ("knn", "centroid", "ridge", "logistic", "lda")
SIZES = (5, 10, 20, 50)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    settings = {"split.source": 2000, "split.pool": 1000, "split.test": 1000}
    adaptkit.run("centroid", settings=settings, track=False)  # trains the base
    rows, total = [], 0.0
    for shots in SIZES:
        start = time.perf_counter()
        outcome = adaptkit.run(
            STRATEGIES, seeds=range(options.seeds), settings=settings | {"shots": shots}, track=False
        )
        seconds = time.perf_counter() - start
        total += seconds
        rows.append([f"{10 * shots}", f"{len(outcome.runs)}", f"{seconds:.1f}"])
    print(markdown(["labelled images", "runs", "seconds"], [*rows, ["all", "", f"{total:.1f}"]]))


if __name__ == "__main__":
    main()
