"""What the benchmarks share: timed child processes, interleaving, spread, the machine, Markdown tables."""

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

#: one timed child process: `seconds`, `cpu_seconds`, `peak_bytes`, and what its caller adds
Sample = dict[str, Any]
#: the figures of a part by name; lists hold a value or sample for each repeat, in the same order
Figures = dict[str, Any]

#: settings of the person who measures that would change what is measured
LEFT_OUT = ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "ADAPTKIT_PLUGINS", "ADAPTKIT_CACHE")


@dataclass(frozen=True)
class Setting:
    """How to measure: `quick` tries everything at a tiny size; `keep` saves figures as they come in."""

    repeats: int
    quick: bool
    script: Path | None
    data_dir: Path | None
    keep: Callable[[Figures], None]


@dataclass(frozen=True)
class Goal:
    """A figure beside the most that it should be: `values` has one for each repeat."""

    name: str
    values: Sequence[float]
    limit: float
    unit: str = ""
    digits: int = 2

    @property
    def row(self) -> list[str]:
        """Return the cells of the goal's line."""
        limit = f"{self.limit:g}{self.unit}"
        if not self.values:
            return [self.name, "not measured", limit, ""]
        met = "yes" if statistics.median(self.values) <= self.limit else "no"
        return [self.name, f"{spread(self.values, self.digits)}{self.unit}", limit, met]


def timed(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> tuple[Sample, str]:
    """Run a command in a folder; return its time and memory, and what it printed.

    `started` is the monotonic clock's time, the same clock for all processes. Ends the benchmark if the command fails.
    The peak is that of the process, or of this one where that is larger: import nothing large here.
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
    """Run the cases in turn, in the opposite order every other time; return what each gave, by the names it gave."""
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
    """Return one figure of each sample."""
    return [sample[key] for sample in samples]


def ratios(these: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratio of each repeat that both have: what ran at about the same time is compared."""
    return [this / other for this, other in zip(these, others, strict=False)]


def differences(these: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the difference of each repeat."""
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
    """Return what the figures depend on: processor, threads, versions, commit, and how busy the machine is."""
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
    """Return a machine as a line of text."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['date']}, {found['processor']}, {found['architecture']}, {found['cores']} cores, {found['threads']} "
        f"threads, Python {found['python']}, {versions}, commit {found['commit']}"
    )


def _processor() -> str:
    """Return the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
