"""Time a sweep of 40 short trials with one job and with several: python benchmarks/sweep_jobs.py [--repeats 3]

The trials are those of `-s head -s lora` with five learning rates and four seeds, with the default preset. Each repeat
is a separate process, with a cached base and a store without trials. The two cases are interleaved.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from experiments import copied_folder, fresh_folder
from measuring import Sample, column, interleaved, machine, markdown, ratios, spread, timed

ADAPTKIT = [sys.executable, "-m", "adaptkit"]
SWEEP = ["-s", "head", "-s", "lora", "--grid", "lr=1e-4..1e-2/5log", "--seeds", "0-3"]


def sweep(folder: Path, *arguments: str) -> Sample:
    """Run the sweep in a folder. Return its times and its number of finished trials."""
    environment = {"ADAPTKIT_CACHE": str(folder / "cache")}
    sample, printed = timed([*ADAPTKIT, "sweep", *SWEEP, *arguments, "--json", "-q"], folder, environment)
    statuses = [trial["status"] for trial in json.loads(printed)["trials"]]
    if statuses != ["finished"] * len(statuses):
        sys.exit(f"not all trials finished: {statuses}")
    return sample | {"trials": len(statuses)}


def main() -> None:
    """Print the seconds of whole processes and their ratio as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    one, several = "--jobs 1", f"--jobs {arguments.jobs}"
    with fresh_folder() as prepared:
        # One trial creates the base, its features and the store.
        first = ["run", "-s", "head", "-s", "lora", "--experiment", "first", "-q", "--json"]
        timed([*ADAPTKIT, *first], prepared, {"ADAPTKIT_CACHE": str(prepared / "cache")})

        def case(*options: str) -> dict[str, Sample]:
            with copied_folder(prepared) as folder:
                return {" ".join(options) or one: sweep(folder, *options)}

        cases = {one: lambda: case(), several: lambda: case("--jobs", str(arguments.jobs))}
        found = interleaved(cases, arguments.repeats, lambda figures: None)
    rows = [
        [name, str(samples[0]["trials"]), spread(column(samples), 1), spread(column(samples, "cpu_seconds"), 1)]
        for name, samples in found.items()
    ]
    print(markdown(["sweep", "trials", "seconds", "CPU-seconds, including workers"], rows))
    print(f"\n{several} / {one}: {spread(ratios(column(found[several]), column(found[one])))}\n")
    print(json.dumps(machine(), indent=2))


if __name__ == "__main__":
    main()
