"""Run the tests that inject faults and the fuzzer, and write docs/reliability.md from their results.

python benchmarks/reliability.py [--fuzz-seconds 60] [--jobs 2] [--notes DIR] [--output docs/reliability.md]

--notes stores the notes of the tests in a folder and keeps existing notes. --write-only runs nothing and writes the
file from such a folder. To add single tests to a folder, run them with the environment variable RELIABILITY_OUT.

All numbers are measured: tests note the faults that they inject and the outcome (`tests/faults.csv` describes each
fault and its guarantee), and the fuzzer counts its inputs.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.reliability import FAULTS, FOLDER  # noqa: E402

SUMMARY = "fuzz.json"
INTRODUCTION = """# Reliability

Runs are only useful if their records can be trusted. The tests therefore inject real faults: they kill processes, fill
file systems and close connections. Each row of the first table is a fault. It shows what adaptkit guarantees and how
often the guarantee held. The tables were written by

    python benchmarks/reliability.py

on {when}: {machine}{how}. To continue after a fault, see [resuming runs](resuming.md) and
[unreachable tracking servers](outages.md).
"""


def main() -> None:
    """Run the tests and the fuzzer and write the file. Exit with code 1 if a guarantee did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz-seconds", type=int, default=60, help="seconds for each kind of input; 0: do not fuzz")
    parser.add_argument("--jobs", type=int, default=2, help="number of test processes")
    parser.add_argument("--notes", type=Path, help="folder for the notes of the tests")
    parser.add_argument("--write-only", action="store_true", help="write the file from existing notes")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "reliability.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.notes or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        summary = folder / SUMMARY
        passed = arguments.write_only or tests(folder, arguments.jobs)
        if arguments.fuzz_seconds and not arguments.write_only:
            fuzz(summary, arguments.fuzz_seconds)
        noted = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path != summary]
        fuzzed = json.loads(summary.read_text())["targets"] if summary.exists() else {}
    rows, broken = table(noted)
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    how = "; tests and inputs with findings were run again after a fix" if arguments.write_only else ""
    text = INTRODUCTION.format(when=datetime.date.today().isoformat(), machine=machine, how=how)
    text += "\n".join(["\n## Faults\n", *rows, ""])
    if fuzzed:
        text += "\n".join(["\n## Untrusted input\n", *inputs(fuzzed), ""])
    temporary = arguments.output.with_name(f".{arguments.output.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, arguments.output)
    findings = [finding for target in fuzzed.values() for finding in target["findings"]]
    if not passed or broken or findings:
        sys.exit(
            f"tests {'passed' if passed else 'failed'}; not kept: {broken or 'none'}; findings: {findings or 'none'}"
        )


def tests(folder: Path, jobs: int) -> bool:
    """Run every test file that notes faults, with notes in this folder. Return whether all tests passed."""
    files = [
        str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "reliability import" in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(jobs), "-m", "slow or not slow", *files]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {FOLDER: str(folder), "OMP_NUM_THREADS": "1"})
    return done.returncode == 0


def fuzz(summary: Path, seconds: int) -> None:
    """Run the fuzzer on each kind of input for this number of seconds. It writes a summary by kind."""
    command = [sys.executable, str(ROOT / "tests" / "fuzzing.py"), "--seconds", str(seconds), "--json", str(summary)]
    subprocess.run(command, cwd=ROOT, check=False)


def table(noted: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the rows of all faults, and the faults that were not injected or whose guarantee did not always hold."""
    injected: collections.Counter[str] = collections.Counter()
    kept: collections.Counter[str] = collections.Counter()
    where = collections.defaultdict(set)
    for one in noted:
        injected[one["fault"]] += one["injected"]
        kept[one["fault"]] += one["survived"]
        where[one["fault"]].add(one["test"].partition("::")[0])
    rows = [
        "| fault | injected by | guarantee | injected | held | test |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for name, fault in FAULTS.items():
        cells = [fault.what, fault.produced, fault.promised, str(injected[name]), str(kept[name])]
        rows.append(f"| {' | '.join([*cells, ', '.join(f'`{file}`' for file in sorted(where[name]))])} |")
    rows.append(f"| **all** | | | **{injected.total()}** | **{kept.total()}** | |")
    return rows, [name for name in FAULTS if not injected[name] or kept[name] < injected[name]]


def inputs(fuzzed: dict[str, Any]) -> list[str]:
    """Return the rows of the fuzzer's results."""
    rows = [
        "A fuzzer generates input for every reader, guided by coverage. Only expected errors are allowed: no hangs and",
        "no unbounded use of memory.",
        "",
    ]
    rows += ["| reader | inputs | seconds | findings |", "| --- | ---: | ---: | ---: |"]
    for name, target in fuzzed.items():
        rows.append(f"| {name} | {target['inputs']:,} | {target['seconds']:.0f} | {len(target['findings'])} |")
    total = sum(target["inputs"] for target in fuzzed.values())
    return [*rows, f"| **all** | **{total:,}** | | **{sum(len(t['findings']) for t in fuzzed.values())}** |"]


if __name__ == "__main__":
    main()
