"""Type checkers see the public interface: a user's script passes mypy --strict, and mistakes do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import adaptkit

SCRIPT = """\
from pathlib import Path

import adaptkit

outcome = adaptkit.run(["head", "lora"], seeds=range(3), options={"lora.rank": 4}, shift={"rotate": 30}, report="r")
accuracies: list[float] = [run.metrics["final/shifted_accuracy"] for run in outcome.runs]
if outcome.comparison is not None and outcome.comparison.best is not None:
    print(outcome.comparison.best.name, outcome.comparison.best.score.mean)
for comparison in adaptkit.compare(where="strategy != 'full'", report=Path("report")):
    print(*comparison.sentences, sep="\\n")
    print([(pair.a, pair.b, pair.verdict) for pair in comparison.pairs])
model = adaptkit.load(outcome.runs[0].run_id or "")
classes: tuple[str, ...] = model.classes
logits = model(model.preprocess("picture.png"))
for prediction in adaptkit.predict("run", [Path("photos")], top_k=2):
    print(prediction.path.name, prediction.label, prediction.confidence)
trials: list[str] = [trial.status for trial in adaptkit.sweep("lora", grid={"lora.rank": [1, 2]}, jobs=2).trials]
"""

MISTAKES = """\
import adaptkit

adaptkit.run("lora", seed=0)
adaptkit.run("lora", epochs="many")
adaptkit.predict("run")
adaptkit.run("lora").comparison.best
"""


@pytest.mark.slow
def test_user_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    # In the folder of adaptkit and with its settings, mypy finds what it has cached there.
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    scripts = [str(tmp_path / name) for name in ("script.py", "mistakes.py")]
    done = subprocess.run([*command, *scripts], capture_output=True, text=True, cwd=Path(adaptkit.__file__).parents[1])
    errors = [line.split(": ")[0] for line in done.stdout.splitlines() if ": error: " in line]
    assert [Path(error).name for error in errors] == [f"mistakes.py:{number}" for number in (3, 4, 5, 6)], done.stdout
