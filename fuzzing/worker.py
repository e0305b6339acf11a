"""The process of one target: `python fuzzing/worker.py TARGET FOLDER [libFuzzer's options]`, started by `run.py`."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
#: what the fuzzer sees the inside of; torch and numpy would cost minutes, and are not ours to cover
SEEN = ["adaptkit", "yaml", "PIL.Image", "PIL.PngImagePlugin", "PIL.GifImagePlugin", "PIL.TiffImagePlugin"]
SAVE_SECONDS = 0.5
MOST_FINDINGS = 20


def main(name: str, folder: Path, options: list[str]) -> None:
    """Fuzz a target until libFuzzer's time is over; `state.json` in the folder tells how far it is."""
    with atheris.instrument_imports(include=SEEN, enable_loader_override=False):
        from fuzzing.targets import BYTES, TARGETS, bounded

        target = TARGETS[name]
        for data in target.corpus:  # what a reader imports when it is called is seen as well
            with bounded(60, 16 * BYTES):
                target.run(data)
    began = saved = time.monotonic()
    count = 0
    findings: dict[tuple[str, str], dict[str, str]] = {}
    owner = os.getpid()

    def save() -> None:
        state = {"inputs": count, "seconds": time.monotonic() - began, "findings": list(findings.values())}
        scratch = folder / "state.part"
        scratch.write_text(json.dumps(state))
        scratch.replace(folder / "state.json")

    def one(data: bytes) -> None:
        nonlocal count, saved
        count += 1
        try:
            target.run(data)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = (type(error).__name__, f"{where.filename}:{where.lineno}")
            if key not in findings and len(findings) < MOST_FINDINGS:
                digest = hashlib.sha256(data).hexdigest()[:16]
                (folder / f"error-{digest}").write_bytes(data)
                kind = "memory" if isinstance(error, MemoryError) else "error"
                message = f"{key[0]} at {where.name}, line {where.lineno} of {Path(where.filename).name}: {error}"
                findings[key] = {
                    "kind": kind,
                    "message": " ".join(message.split())[:300],
                    "input": str(folder / f"error-{digest}"),
                }
                save()
        if time.monotonic() - saved > SAVE_SECONDS and os.getpid() == owner:
            saved = time.monotonic()
            save()

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for data in target.corpus:
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    if target.words:
        escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
        (folder / "words").write_text("".join(f'"{word}"\n' for word in escaped))
        options = [*options, f"-dict={folder / 'words'}"]
    # One input alone may take so much more memory than the process holds already.
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2 * BYTES, resource.RLIM_INFINITY))
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    save()
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
