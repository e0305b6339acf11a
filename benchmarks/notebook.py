"""Compare `adaptkit run --preset notebook` with the notebook as a plain script: accuracies and whole-process time.

    python benchmarks/notebook.py --script NOTEBOOK.py --data-dir FOLDER_WITH_MNIST

Both run once per seed, in turn, each as a process of its own; adaptkit with an empty cache and an empty folder, so that
it trains the base and makes the tracking store every time. Prints a Markdown table; keep the machine idle meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scipy.stats import t

STRATEGIES = ("full", "head", "lora")


def timed(command: list[str], folder: str) -> tuple[float, dict[str, Any]]:
    """Return the seconds that a command took and the JSON document that it printed."""
    environment = dict(os.environ, ADAPTKIT_CACHE=f"{folder}/cache")
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return seconds, json.loads(done.stdout)


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
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="keep the raw figures in this JSON file")
    options = parser.parse_args()
    data, script_file = str(options.data_dir.resolve()), str(options.script.resolve())
    raw: dict[str, list[Any]] = {"script": [], "adaptkit": []}
    seconds: dict[str, list[float]] = {"script": [], "adaptkit": []}
    for seed in range(options.seeds):
        commands = {
            "script": [sys.executable, script_file, "--data-dir", data, "--seed", str(seed), "--shifted"],
            "adaptkit": [
                *(sys.executable, "-m", "adaptkit", "run", "--preset", "notebook", "--data-dir", data, "--json"),
                *(part for name in STRATEGIES for part in ("-s", name)),
                *("--seeds", str(seed), "--set", f"split.seed={seed}", "--set", f"base.seed={seed}"),
            ],
        }
        for name in ("script", "adaptkit") if seed % 2 == 0 else ("adaptkit", "script"):
            with tempfile.TemporaryDirectory() as folder:
                took, document = timed(commands[name], folder)
            seconds[name].append(took)
            raw[name].append(document)
            print(f"seed {seed} {name}: {took:.1f} s", file=sys.stderr)
            if options.output:
                options.output.write_text(json.dumps({"seconds": seconds, "results": raw}, indent=2))

    def script(strategy: str, test: str) -> list[float]:
        if test == "clean":
            return [run[strategy]["test_accuracy"][-1] for run in raw["script"]]
        return [run[strategy]["shifted_accuracy"] for run in raw["script"]]

    def ours(strategy: str, metric: str) -> list[float]:
        runs = [run for document in raw["adaptkit"] for run in document["runs"] if run["strategy"] == strategy]
        return [run["metrics"][metric] for run in runs]

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ")
    print(f"torch {raw['script'][0]['torch']}, {raw['script'][0]['threads']} threads, {options.seeds} seeds\n")
    print("| accuracy in %, mean ± 95 % interval | script | adaptkit |\n| --- | --- | --- |")
    base = [document["base"] for document in raw["adaptkit"]]
    print(
        f"| base, clean test | {interval(script('base', 'clean'))} | {interval([b['test_accuracy'] for b in base])} |"
    )
    shifted = interval([b["shifted_accuracy"] for b in base])
    print(f"| zero-shot, shifted test | {interval(script('base', 'shifted'))} | {shifted} |")
    for strategy in STRATEGIES:
        clean = interval(ours(strategy, "final/test_accuracy"))
        print(f"| {strategy}, clean test | {interval(script(strategy, 'clean'))} | {clean} |")
        shifted = interval(ours(strategy, "final/shifted_accuracy"))
        print(f"| {strategy}, shifted test | {interval(script(strategy, 'shifted'))} | {shifted} |")
    print("\n| whole process, seconds | minimum | median | maximum |\n| --- | --- | --- | --- |")
    for name, values in seconds.items():
        print(f"| {name} | {min(values):.1f} | {statistics.median(values):.1f} | {max(values):.1f} |")
    ratios = [ours / theirs for ours, theirs in zip(seconds["adaptkit"], seconds["script"], strict=True)]
    print(f"| adaptkit / script | {min(ratios):.2f} | {statistics.median(ratios):.2f} | {max(ratios):.2f} |")


if __name__ == "__main__":
    main()
