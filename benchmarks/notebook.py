"""Compare `adaptkit run --preset notebook` with the notebook as a plain script: accuracies and whole-process time.

    python benchmarks/notebook.py --script NOTEBOOK.py --data-dir FOLDER_WITH_MNIST

Both run once per seed, in turn, each in a separate process. adaptkit has an empty cache and an empty folder, so that it
trains the base and creates the tracking store every time. Prints a Markdown table. Keep the machine idle while it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

from experiments import fresh_folder, strategies
from measuring import markdown, ratios, timed
from scipy.stats import t, ttest_ind

STRATEGIES = ("full", "head", "lora")


def interval(values: list[float], factor: float = 100) -> str:
    """Return `mean ± half-width of the 95 % t-interval`."""
    mean = factor * statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    half = factor * statistics.stdev(values) / math.sqrt(len(values)) * float(t.ppf(0.975, len(values) - 1))
    return f"{mean:.2f} ± {half:.2f}"


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="store the raw results in this JSON file")
    parser.add_argument("--read", type=Path, help="print the tables of stored results")
    options = parser.parse_args()
    if options.read:
        kept = json.loads(options.read.read_text())
        print_tables(kept["seconds"], kept["results"])
        return
    if not (options.script and options.data_dir):
        parser.error("--script and --data-dir are needed")
    data, script_file = str(options.data_dir.resolve()), str(options.script.resolve())
    raw: dict[str, list[Any]] = {"script": [], "adaptkit": []}
    seconds: dict[str, list[float]] = {"script": [], "adaptkit": []}
    for seed in range(options.seeds):
        commands = {
            "script": [sys.executable, script_file, "--data-dir", data, "--seed", str(seed), "--shifted"],
            "adaptkit": [
                *(sys.executable, "-m", "adaptkit", "run", "--preset", "notebook", "--data-dir", data, "--json"),
                *(
                    *strategies(STRATEGIES),
                    "--seeds",
                    str(seed),
                    "--set",
                    f"split.seed={seed}",
                    "--set",
                    f"base.seed={seed}",
                ),
            ],
        }
        for name in ("script", "adaptkit") if seed % 2 == 0 else ("adaptkit", "script"):
            with fresh_folder() as folder:
                sample, printed = timed(commands[name], folder, {"ADAPTKIT_CACHE": str(folder / "cache")})
            seconds[name].append(sample["seconds"])
            raw[name].append(json.loads(printed))
            print(f"seed {seed} {name}: {sample['seconds']:.1f} s", file=sys.stderr)
            if options.output:
                options.output.write_text(json.dumps({"seconds": seconds, "results": raw}, indent=2))
    print_tables(seconds, raw)


def print_tables(seconds: dict[str, list[float]], raw: dict[str, list[Any]]) -> None:
    """Print accuracies and times as Markdown. p is that of Welch's t-test of script and adaptkit, not corrected."""
    theirs: dict[str, list[float]] = {
        "base, source test": [run["base"]["test_accuracy"][-1] for run in raw["script"]],
        "zero-shot, target test": [run["base"]["shifted_accuracy"] for run in raw["script"]],
    }
    ours: dict[str, list[float]] = {
        "base, source test": [document["base"]["test_accuracy"] for document in raw["adaptkit"]],
        "zero-shot, target test": [document["base"]["shifted_accuracy"] for document in raw["adaptkit"]],
    }
    for strategy in STRATEGIES:
        runs = [run for document in raw["adaptkit"] for run in document["runs"] if run["strategy"] == strategy]
        theirs[f"{strategy}, source test"] = [run[strategy]["test_accuracy"][-1] for run in raw["script"]]
        theirs[f"{strategy}, target test"] = [run[strategy]["shifted_accuracy"] for run in raw["script"]]
        ours[f"{strategy}, source test"] = [run["metrics"]["final/test_accuracy"] for run in runs]
        ours[f"{strategy}, target test"] = [run["metrics"]["final/shifted_accuracy"] for run in runs]
    first = raw["script"][0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {first['torch']},")
    print(f"{first['threads']} threads, {len(raw['script'])} seeds.\n")
    rows = []
    for name in theirs:
        p = ttest_ind(theirs[name], ours[name], equal_var=False).pvalue
        rows.append([name, interval(theirs[name]), interval(ours[name]), f"{p:.2f}"])
    print(markdown(["accuracy in %, mean ± 95 % interval", "script", "adaptkit", "p"], rows))
    times = {name: (values, 1) for name, values in seconds.items()}
    times["adaptkit / script"] = (ratios(seconds["adaptkit"], seconds["script"]), 2)
    rows = [
        [name, *(f"{figure(values):.{digits}f}" for figure in (min, statistics.median, max))]
        for name, (values, digits) in times.items()
    ]
    print(f"\n{markdown(['whole process, seconds', 'minimum', 'median', 'maximum'], rows)}")


if __name__ == "__main__":
    main()
