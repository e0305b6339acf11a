"""Shared code of the benchmarks: timed processes, interleaving, spread, machine, Markdown tables."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: a timed process: `seconds`, `cpu_seconds`, `peak_bytes`, and values added by the caller
Sample = dict[str, Any]
#: measurements of a part by name; lists have a value or sample for each repeat, in the same order
Figures = dict[str, Any]

#: environment variables that would change the results
LEFT_OUT = ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "ADAPTKIT_PLUGINS", "ADAPTKIT_CACHE")


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement: `quick` uses tiny sizes; `keep` stores results as they arrive."""

    repeats: int
    quick: bool
    script: Path | None
    data_dir: Path | None
    keep: Callable[[Figures], None]


@dataclass(frozen=True)
class Goal:
    """A measurement with its upper limit. `values` has one value for each repeat."""

    name: str
    values: Sequence[float]
    limit: float
    unit: str = ""
    digits: int = 2

    @property
    def row(self) -> list[str]:
        """Return the cells of the row for this goal."""
        limit = f"{self.limit:g}{self.unit}"
        if not self.values:
            return [self.name, "not measured", limit, ""]
        met = "yes" if statistics.median(self.values) <= self.limit else "no"
        return [self.name, f"{spread(self.values, self.digits)}{self.unit}", limit, met]


def timed(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> tuple[Sample, str]:
    """Run a command in a folder and return its time, memory and output.

    `started` is the time of the monotonic clock, which all processes share. If the command fails, the benchmark exits.
    The peak is the maximum of that process and this one, so do not import large packages here.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages:
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=inherited | dict(environment or {}), stdout=output, stderr=messages
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        messages.seek(0)
        if process.returncode != 0:
            last = messages.read().decode(errors="replace")[-2000:]
            sys.exit(f"{' '.join(command)} ended with {process.returncode}\n{last}")
        sample = {
            "started": started,
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }
        return sample, output.read().decode()


def interleaved(
    cases: Mapping[str, Callable[[], Mapping[str, Any]]], repeats: int, keep: Callable[[Figures], None]
) -> dict[str, list[Any]]:
    """Run the cases in turn, in alternating order, and return the samples by name."""
    found: dict[str, list[Any]] = {}
    for repeat in range(repeats):
        for case in list(cases) if repeat % 2 == 0 else reversed(cases):
            for name, value in cases[case]().items():
                found.setdefault(name, []).append(value)
                took = value["seconds"] if isinstance(value, dict) else value
                print(f"{repeat + 1}/{repeats} {name}: {took:.2f} s", file=sys.stderr)
        keep(found)
    return found


def column(samples: Sequence[Sample], key: str = "seconds") -> list[float]:
    """Return one value of each sample."""
    return [sample[key] for sample in samples]


def ratios(these: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratio for each repeat that both have, so that simultaneous measurements are compared."""
    return [this / other for this, other in zip(these, others, strict=False)]


def differences(these: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the difference for each repeat."""
    return [this - other for this, other in zip(these, others, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return `median (minimum to maximum)`."""
    if not values:
        return "not measured"
    median = f"{statistics.median(values):.{digits}f}"
    return f"{median} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


ASKED = """
import json, torch
from importlib.metadata import version
names = ("adaptkit-vision", "mlflow", "numpy", "torch", "torchvision")
print(json.dumps([torch.get_num_threads(), {name: version(name) for name in names}]))
"""


def machine() -> dict[str, Any]:
    """Return facts that affect measurements: processor, threads, versions, commit, load."""
    here = Path(__file__).parent
    threads, versions = json.loads(timed([sys.executable, "-c", ASKED], here)[1])
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
        "commit": git.stdout.strip() or "unknown",
        "load": os.getloadavg()[0],
    }


def described(found: Mapping[str, Any]) -> str:
    """Describe a machine in a line of text."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['date']}, {found['processor']}, {found['architecture']}, {found['cores']} cores, {found['threads']} "
        f"threads, Python {found['python']}, {versions}, commit {found['commit']}"
    )


def _processor() -> str:
    """Return the name of the processor if the system provides it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
