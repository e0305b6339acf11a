"""Fuzz the readers of the tests with hostile input, guided by coverage: `python tests/fuzzing.py --help`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hostile import Target

HERE = Path(__file__).resolve().parent
#: first argument of a process that fuzzes one target
WORKER = "--worker"
#: limits: seconds for one input before it counts as a hang, and memory of the process
HANG_SECONDS, HELD_MB = 10, 4096
#: seconds to import torch and to stop, beyond those of fuzzing
AROUND = 120
SAVE_SECONDS = 0.5
MOST_FINDINGS = 20
#: modules whose coverage guides the fuzzer; instrumenting torch and numpy would take minutes
SEEN = ["adaptkit", "yaml", "PIL.Image", "PIL.PngImagePlugin", "PIL.GifImagePlugin", "PIL.TiffImagePlugin"]


@click.command()
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option("--seconds", type=click.IntRange(min=1), default=60, metavar="N", help="For each target.  [default: 60]")
@click.option("--seed", type=click.IntRange(1, 2**31), default=1, metavar="N", help="Of the inputs.  [default: 1]")
@click.option("--json", "summary", type=click.Path(path_type=Path), metavar="FILE", help="Write the result as JSON.")
@click.option(
    "--findings",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("fuzzing-findings"),
    metavar="DIR",
    help="Folder for inputs that caused a finding.  [default: fuzzing-findings]",
)
@click.option("--list", "only_list", is_flag=True, help="Print the targets.")
def main(
    names: tuple[str, ...], seconds: int, seed: int, summary: Path | None, findings: Path, only_list: bool
) -> None:
    """Fuzz each TARGET (all of them, if none is named) with atheris; exits with 1 if anything was found.

    The targets are the tests with hostile input. A finding is an unexpected error, a hang, or too much memory; its
    input is kept in a file.

    \b
    Example: python tests/fuzzing.py grid config --seconds 30 --json out.json
    """
    known = targets()
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"unknown target {', '.join(unknown)}; known: {', '.join(known)}")
    if only_list:
        for name, target in known.items():
            click.echo(f"{name:<15} {(target.run.__doc__ or '').splitlines()[0]}")
        return
    if importlib.util.find_spec("atheris") is None:
        raise click.UsageError('atheris is not installed: pip install -e ".[fuzz]"')
    found = {}
    for name in names or known:
        found[name] = one = fuzz(name, seconds=seconds, seed=seed, folder=findings)
        told = f"{len(one['findings'])} found" if one["findings"] else "nothing found"
        click.echo(f"{name:<15} {one['inputs']:>9,} inputs in {one['seconds']:.0f} s: {told}")
        for finding in one["findings"]:
            click.echo(f"    {finding['message']} ({finding['input']})")
        if summary is not None:
            summary.write_text(json.dumps({"seed": seed, "targets": found}, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if any(one["findings"] for one in found.values()) else 0)


def targets(only: str = "") -> dict[str, Target]:
    """Return the tests with hostile input by name, or only one of them, from all `test_*_inputs.py`."""
    found = {}
    for path in sorted(HERE.rglob("test_*_inputs.py")):
        if only and f"def test_{only}(" not in path.read_text(encoding="utf-8"):
            continue  # importing an instrumented module takes long
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        tests = {name: value for name, value in vars(module).items() if hasattr(value, "target")}
        found |= {name.removeprefix("test_"): test.target for name, test in tests.items()}
    return found


def fuzz(name: str, *, seconds: int, seed: int, folder: Path) -> dict[str, Any]:
    """Fuzz one target in a separate process; copy the inputs that caused a finding into a folder."""
    import hostile

    with tempfile.TemporaryDirectory(prefix="fuzzing-", dir=hostile.PLACE, ignore_cleanup_errors=True) as place:
        command = [
            *(sys.executable, __file__, WORKER, name, place),
            *(f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={HELD_MB}"),
            *("-max_len=4096", "-len_control=20", "-print_final_stats=0", f"-artifact_prefix={place}/end-"),
        ]
        log = Path(place, "log")
        with log.open("wb") as stream:
            try:
                done = subprocess.run(command, stdout=stream, stderr=stream, cwd=place, timeout=seconds + AROUND)
                code = done.returncode
            except subprocess.TimeoutExpired:
                code = -1
        state = Path(place, "state.json")
        result = json.loads(state.read_text()) if state.exists() else {"inputs": 0, "seconds": 0.0, "findings": []}
        if code != 0:  # an input ended the process; libFuzzer has stored it
            kept = next(iter(sorted(Path(place).glob("end-*"))), log)
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
            reason = next((line for line in reversed(lines) if "Error" in line or "ERROR:" in line), "\n".join(lines))
            result["findings"].append({"message": f"ended with {code}: {reason[-300:]}", "input": str(kept)})
        for finding in result["findings"]:
            source = Path(finding["input"])
            kept = folder / name / source.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(source.read_bytes())
            finding["input"] = str(kept)
        return dict(result)


def work(name: str, folder: Path, options: list[str]) -> None:
    """Fuzz one target in this process until the time is over; `state.json` in the folder holds the result so far."""
    import atheris

    with atheris.instrument_imports(include=SEEN, enable_loader_override=False):
        import hostile
        from hostile import BYTES, bounded, held

        hostile.PLACE = str(folder)  # libFuzzer ends the process without cleaning up; the folder is removed
        target = targets(only=name)[name]
        for data in target.corpus:  # readers import modules when they are called: these are instrumented too
            with bounded(60, 16 * BYTES):
                target.run(data)
    began = saved = time.monotonic()
    count = 0
    findings: dict[tuple[str, str], dict[str, str]] = {}
    owner = os.getpid()

    def save() -> None:
        state = {"inputs": count, "seconds": time.monotonic() - began, "findings": list(findings.values())}
        part = folder / "state.part"
        part.write_text(json.dumps(state))
        part.replace(folder / "state.json")

    def one(data: bytes) -> None:
        nonlocal count, saved
        count += 1
        try:
            target.run(data)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = (type(error).__name__, f"{where.filename}:{where.lineno}")
            if key not in findings and len(findings) < MOST_FINDINGS:
                path = folder / f"error-{hashlib.sha256(data).hexdigest()[:16]}"
                path.write_bytes(data)
                message = f"{key[0]} at {where.name}, line {where.lineno} of {Path(where.filename).name}: {error}"
                findings[key] = {"message": re.sub(r"\s+", " ", message)[:300], "input": str(path)}
                save()
        if time.monotonic() - saved > SAVE_SECONDS and os.getpid() == owner:
            saved = time.monotonic()
            save()

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.corpus):
        (corpus / str(number)).write_bytes(data)
    if target.words:
        escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
        (folder / "words").write_text("".join(f'"{word}"\n' for word in escaped))
        options = [*options, f"-dict={folder / 'words'}"]
    # The limit for one input is added to the memory of the process.
    resource.setrlimit(resource.RLIMIT_AS, (held() + 2 * BYTES, resource.RLIM_INFINITY))
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    save()
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent)]
    if sys.argv[1:2] == [WORKER]:
        work(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        main()
