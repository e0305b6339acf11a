"""Measure the speed of adaptkit, compare it with its goals, and print Markdown tables.

    python benchmarks/speed.py --script NOTEBOOK.py --data-dir FOLDER_WITH_MNIST --output speed.json
    python benchmarks/speed.py --only startup,tracking --repeats 9
    python benchmarks/speed.py --read speed.json

The cases of a ratio run in turn, in alternating order, each in a separate process. A first run has an empty folder and
an empty cache. Results are medians with minimum and maximum; ratios are computed within each repeat. Keep the machine
idle: five repeats take about two hours. With `--only` and an existing `--output`, the other parts of that file are
kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import many_runs
import overhead
import peers
import phases
import scaling
import startup
from measuring import Figures, Setting, described, machine, markdown

PARTS = {
    "startup": startup,
    "tracking": overhead,
    "lora": peers,
    "seeds": many_runs,
    "scaling": scaling,
    "notebook": phases,
}


def main() -> None:
    """Measure the chosen parts, or read stored results, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", type=Path, help="the notebook as a plain script; without it, no ratios to it")
    parser.add_argument("--data-dir", type=Path, help="the folder with MNIST, for the notebook's experiment")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="run at a tiny size; the results are not meaningful")
    parser.add_argument("--output", type=Path, help="store the raw results in this JSON file")
    parser.add_argument("--read", type=Path, help="print the tables of stored results")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.read:
        print_tables(json.loads(options.read.read_text()))
        return
    if "notebook" in names and not options.data_dir:
        parser.error("the part notebook needs --data-dir, a folder with MNIST; leave it out with --only")
    for path in (options.script, options.data_dir):
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
    document: dict[str, Any] = {}
    if options.output and options.output.exists():
        document = json.loads(options.output.read_text())
    for name in (name for name in PARTS if name in names):
        print(f"{name}:", file=sys.stderr)
        measure(name, options, document)
    print_tables({name: document[name] for name in PARTS if name in document})


def measure(name: str, options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Measure a part. Store its results, with machine and date, after every repeat."""
    part: dict[str, Any] = {"machine": machine(), "repeats": options.repeats, "quick": options.quick}

    def keep(figures: Figures) -> None:
        document[name] = part | {"figures": figures, "load_after": os.getloadavg()[0]}
        if options.output:
            options.output.write_text(json.dumps(document, indent=1))

    setting = Setting(options.repeats, options.quick, options.script, options.data_dir, keep)
    keep(PARTS[name].measure(setting))


def print_tables(document: dict[str, Any]) -> None:
    """Print the goals of all parts, then the tables of each part."""
    goals = [goal.row for name, part in document.items() for goal in PARTS[name].goals(part["figures"])]
    print("## Goals\n")
    print(markdown(["goal", "measured, median (min to max)", "at most", "met"], goals))
    last = None
    for name, part in document.items():
        print(f"\n## {PARTS[name].TITLE}\n")
        if (found := described(part["machine"])) != last:
            print(f"{found}.\n")
            last = found
        quick = " **Tried at a tiny size: these figures mean nothing.**" if part["quick"] else ""
        load = f"load average {part['machine']['load']:.1f} before and {part['load_after']:.1f} after"
        print(f"{part['repeats']} repeats, {load}.{quick}\n")
        print(PARTS[name].tables(part["figures"]))


if __name__ == "__main__":
    main()
