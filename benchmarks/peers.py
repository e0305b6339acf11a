"""Compare LoRA with PEFT and loralib: run `lora.py` in a separate process, to avoid large imports here."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

from experiments import HERE
from lora import PEERS, table
from measuring import Figures, Goal, Setting, ratios, timed

TITLE = "LoRA against PEFT and loralib"
MEASURE = "import json, sys, lora; print(json.dumps(lora.measure(int(sys.argv[1]))))"


def measure(setting: Setting) -> Figures:
    """Return the result of `lora.measure`, or the missing libraries."""
    if missing := [name for name in PEERS if importlib.util.find_spec(name.lower()) is None]:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return {"missing": missing}
    _, printed = timed([sys.executable, "-c", MEASURE, str(setting.repeats)], HERE)
    found: Figures = json.loads(printed.splitlines()[-1])
    return found


def tables(figures: Figures) -> str:
    """Return the tables of `lora.py`."""
    if "missing" in figures:
        return f"Not measured: {' and '.join(figures['missing'])} not installed (`pip install -e .[bench]`)."
    return table(figures)


def goals(figures: Figures) -> list[Goal]:
    """Return the goals for step, memory and merged inference on each model."""
    found = []
    for name, model in figures.get("models", {}).items():
        found += [_goal(f"LoRA step, {name}: adaptkit / {peer}", model["step_seconds"], peer) for peer in PEERS]
        memory = {library: [value] for library, value in model["step_bytes"].items()}
        found += [_goal(f"LoRA memory, {name}: adaptkit / {peer}", memory, peer, 1.0) for peer in PEERS]
        found.append(_goal(f"merged inference, {name}: adaptkit / base", model["inference_seconds"], "base"))
    return found or [Goal("LoRA against PEFT and loralib", [], 1.02)]


def _goal(name: str, figures: dict[str, list[Any]], other: str, limit: float = 1.02) -> Goal:
    return Goal(name, ratios(figures["adaptkit"], figures[other]), limit, digits=3)
