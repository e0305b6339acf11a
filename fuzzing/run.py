"""Fuzz what adaptkit reads, guided by coverage, each target in a process of its own: `python fuzzing/run.py --help`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
#: what one input may take before it counts as a hang, and all that the process may hold
HANG_SECONDS, HELD_MB = 10, 4096
#: a target that ends its process again and again is found out by then
MOST_ENDS = 5
#: seconds to import torch and to stop, beyond those of fuzzing
AROUND = 120


@click.command()
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option("--seconds", type=click.IntRange(min=1), default=60, metavar="N", help="For each target.  [default: 60]")
@click.option("--seed", type=click.IntRange(1, 2**31), default=1, metavar="N", help="Of the inputs.  [default: 1]")
@click.option(
    "--json", "summary", type=click.Path(path_type=Path), metavar="FILE", help="Write what was found as JSON."
)
@click.option(
    "--findings",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("fuzzing-findings"),
    metavar="DIR",
    help="Where inputs that were found go.  [default: fuzzing-findings]",
)
@click.option("--list", "only_list", is_flag=True, help="Print the targets.")
def main(
    names: tuple[str, ...], seconds: int, seed: int, summary: Path | None, findings: Path, only_list: bool
) -> None:
    """Fuzz each TARGET (all of them, if none is named) with atheris; exits with 1 if anything was found.

    A finding is an error that nobody expects, a hang, or memory without bound; its input is kept in a file.

    \b
    Example: python fuzzing/run.py grid config --seconds 30 --json out.json
    """
    sys.path.insert(0, str(ROOT))
    from fuzzing.targets import TARGETS

    if unknown := [name for name in names if name not in TARGETS]:
        raise click.UsageError(f"unknown target {', '.join(unknown)}; known: {', '.join(TARGETS)}")
    if only_list:
        for name, target in TARGETS.items():
            click.echo(f"{name:<15} {(target.run.__doc__ or '').splitlines()[0]}")
        return
    try:
        import atheris  # noqa: F401
    except ModuleNotFoundError:
        raise click.UsageError('atheris is not installed: pip install -e ".[fuzz]"') from None
    found = {}
    for name in names or TARGETS:
        found[name] = one = fuzz(name, seconds, seed, findings)
        told = f"{len(one['findings'])} found" if one["findings"] else "nothing found"
        click.echo(f"{name:<15} {one['inputs']:>9,} inputs in {one['seconds']:.0f} s, {one['coverage']} edges: {told}")
        for finding in one["findings"]:
            click.echo(f"    {finding['kind']}: {finding['message']} ({finding['input']})")
        if summary is not None:
            summary.write_text(json.dumps({"seed": seed, "targets": found}, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if any(one["findings"] for one in found.values()) else 0)


def fuzz(name: str, seconds: int, seed: int, folder: Path) -> dict[str, Any]:
    """Fuzz one target for so many seconds; a process that an input ends is followed by another."""
    total: dict[str, Any] = {"inputs": 0, "seconds": 0.0, "coverage": 0, "findings": []}
    until = time.monotonic() + seconds
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzzing-", dir=memory, ignore_cleanup_errors=True) as kept:
        place = Path(kept)
        for turn in range(MOST_ENDS):
            left = round(until - time.monotonic())
            if left < 1:
                break
            began = time.monotonic()
            code, log = _process(name, left, seed + turn, place)
            part = json.loads((place / "state.json").read_text()) if (place / "state.json").exists() else {}
            total["inputs"] += part.get("inputs", 0)
            total["seconds"] = round(total["seconds"] + part.get("seconds", 0.0), 1)
            total["coverage"] = max([total["coverage"], *map(int, re.findall(r"\bcov: (\d+)", log))])
            known = {(finding["kind"], finding["message"]) for finding in total["findings"]}
            told = [one for one in part.get("findings", []) if (one["kind"], one["message"]) not in known]
            if code != 0:
                told.append(_end(code, log, place))
            for finding in told:
                total["findings"].append(finding | {"input": _keep(folder / name, Path(finding["input"]))})
            if code == 0:
                break
            until += time.monotonic() - began - part.get("seconds", 0.0)  # starting is not fuzzing
    return total


def _process(name: str, seconds: int, seed: int, place: Path) -> tuple[int, str]:
    (place / "state.json").unlink(missing_ok=True)
    command = [
        *(sys.executable, str(ROOT / "fuzzing" / "worker.py"), name, str(place)),
        *(f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={HELD_MB}"),
        *("-max_len=4096", "-len_control=20", "-print_final_stats=0", f"-artifact_prefix={place}/"),
    ]
    with (place / "log").open("w+b") as log:
        try:
            code = subprocess.run(
                command,
                stdout=log,
                stderr=log,
                cwd=place,
                env={**os.environ, "FUZZING_FOLDER": str(place)},
                timeout=seconds + AROUND,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
        log.seek(0)
        return code, log.read().decode(errors="replace")


def _end(code: int, log: str, place: Path) -> dict[str, str]:
    """Return a finding for a process that did not end by itself."""
    kept = sorted(place.glob("*-*"), key=lambda path: path.stat().st_mtime)
    kinds = {"timeout": "hang", "oom": "memory", "crash": "crash"}
    kind = kinds.get(kept[-1].name.partition("-")[0], "crash") if kept else "crash"
    lines = [line.strip() for line in log.splitlines() if "ERROR:" in line or "Error" in line]
    message = f"ended with {code}: {lines[-1] if lines else log.strip()[-200:]}"
    return {"kind": kind, "message": message, "input": str(kept[-1] if kept else place / "last-input")}


def _keep(folder: Path, source: Path) -> str:
    """Copy an input to where it stays; return the path."""
    if not source.is_file():
        return "not kept"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / source.name).write_bytes(source.read_bytes())
    return str(folder / source.name)


if __name__ == "__main__":
    main()
