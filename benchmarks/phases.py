"""Compare each phase of the plain notebook script with adaptkit's preset `notebook`."""

from __future__ import annotations

import json
import subprocess
import sys

from experiments import PLAIN, experiment, first_batch, fresh_folder, strategies, total
from measuring import Figures, Goal, Sample, Setting, column, interleaved, markdown, ratios, spread, timed

TITLE = "The notebook's experiment, phase by phase"
STRATEGIES = ("full", "head", "lora")
TWENTY = (*STRATEGIES, "bitfit")
SMALL = (
    *("--epochs", "1", "--set", "base.epochs=1"),
    *("--set", "split.source=1000", "--set", "split.pool=2000", "--set", "split.test=500"),
)
#: repeats of long measurements that need little precision
SELDOM = 1
#: modes that run twice in the same folder; the second run finds base, features and store
TWICE = {"fp32": (), "plain path": (PLAIN,), "bf16": ("--precision", "bf16")}


def measure(setting: Setting) -> Figures:
    """Run the script, the preset twice in each mode, and all twenty runs. Each first run has an empty folder."""
    if setting.data_dir is None:
        sys.exit("the notebook's experiment needs --data-dir: a folder with MNIST")
    data = str(setting.data_dir.resolve())
    preset = ["--preset", "notebook", "--data-dir", data, *(SMALL if setting.quick else ())]

    def script() -> dict[str, Sample]:
        assert setting.script is not None
        with fresh_folder() as folder:
            sample, printed = timed([sys.executable, str(setting.script.resolve()), "--data-dir", data], folder)
        document = json.loads(printed)
        phases = {name: sum(document[name]["epoch_seconds"]) for name in ("base", *STRATEGIES)}
        accuracies = {name: document[name]["test_accuracy"][-1] for name in ("base", *STRATEGIES)}
        return {"script": sample | {"phases": phases, "clean": accuracies}}

    def twice(name: str) -> dict[str, Sample]:
        with fresh_folder() as folder:
            command = [*preset, *strategies(STRATEGIES), *TWICE[name]]
            return {name: experiment(folder, *command), f"{name}, second time": experiment(folder, *command)}

    def twenty(precision: str) -> dict[str, Sample]:
        with fresh_folder() as folder:
            command = [*preset, *strategies(TWENTY), "--seeds", "0-4", "--precision", precision]
            return {f"twenty runs, {precision}": experiment(folder, *command)}

    often = ({"script": script} if setting.script else {}) | {"fp32": lambda: twice("fp32")}
    seldom = {"plain path": lambda: twice("plain path"), "twenty fp32": lambda: twenty("fp32")}
    if computes_bf16():
        often |= {"bf16": lambda: twice("bf16")}
        seldom |= {"twenty bf16": lambda: twenty("bf16")}
    else:
        print("bf16 is emulated on this processor: not measured", file=sys.stderr)
    figures = interleaved(often, setting.repeats, setting.keep)
    kept = dict(figures)
    return kept | interleaved(seldom, min(setting.repeats, SELDOM), lambda more: setting.keep(kept | more))


def computes_bf16() -> bool:
    """Return whether `--precision auto` selects bf16 on this machine."""
    code = "import torch; from adaptkit.experiment import hardware; print(hardware.computes_bf16(torch.device('cpu')))"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return asked.stdout.strip() == "True"


def tables(figures: Figures) -> str:
    """Return tables of whole processes and of phases, with ratios to the script, and of the remaining time."""
    script = figures.get("script", [])
    whole = [_row(name, column(samples), column(script)) for name, samples in figures.items()]
    phases = []
    for phase in ("base", *STRATEGIES):
        theirs = _scripts(figures, phase)
        phases.append(_row(f"{phase}: script", theirs, []))
        for name in _measured(figures):
            phases.append(_row(f"{phase}: {name}", _phase(figures, name, phase), theirs))
            if phase != "base":
                again = total(figures[f"{name}, second time"], phase, "seconds")
                phases.append(_row(f"{phase}: {name}, second time, by the clock", again, theirs))
    rest = []
    for name in ("fp32", "fp32, second time"):
        samples = figures[name]
        trained = [sum(run["seconds"] for run in sample["runs"]) for sample in samples]
        ready = [
            first_batch(sample) - (0 if sample["base"]["cached"] else sample["base"]["seconds"]) for sample in samples
        ]
        other = [sample["seconds"] - first_batch(sample) - took for sample, took in zip(samples, trained, strict=True)]
        rest.append([name, spread(ready), spread(trained), spread(other)])
    return "\n\n".join(
        [
            markdown(["whole process", "seconds, median (min to max)", "/ script"], whole),
            markdown(["epochs, trained and evaluated", "seconds, median (min to max)", "/ script"], phases),
            markdown(["seconds of", "start-up, without the base's epochs", "adaptation epochs", "all else"], rest),
            markdown(["source test accuracy, %", "script", *_measured(figures)], _accuracies(figures)),
        ]
    )


def goals(figures: Figures) -> list[Goal]:
    """Return the goals of the phases and of whole processes."""
    whole = "run --preset notebook -s full -s head -s lora / script"

    def phase(name: str, phase: str) -> list[float]:
        return _over(_phase(figures, name, phase), _scripts(figures, phase))

    def process(name: str) -> list[float]:
        return _over(column(figures.get(name, [])), column(figures.get("script", [])))

    return [
        Goal("adaptation phase / script: full", phase("fp32", "full"), 0.5),
        Goal("adaptation phase / script: head", phase("fp32", "head"), 0.25),
        Goal("adaptation phase / script: lora", phase("fp32", "lora"), 0.25),
        Goal("base phase / script: fp32", phase("fp32", "base"), 0.55),
        Goal("base phase / script: bf16", phase("bf16", "base"), 0.35),
        Goal(f"{whole}, first time", process("fp32"), 0.5),
        Goal(f"{whole}, second time", process("fp32, second time"), 0.2),
        Goal("all twenty runs, tracked and compared / script: fp32", process("twenty runs, fp32"), 1.2),
        Goal("all twenty runs, tracked and compared / script: bf16", process("twenty runs, bf16"), 1.0),
    ]


def _measured(figures: Figures) -> list[str]:
    return [name for name in TWICE if name in figures]


def _phase(figures: Figures, name: str, phase: str) -> list[float]:
    samples = figures.get(name, [])
    return [sample["base"]["seconds"] for sample in samples] if phase == "base" else total(samples, phase)


def _scripts(figures: Figures, phase: str) -> list[float]:
    return [sample["phases"][phase] for sample in figures.get("script", [])]


def _over(ours: list[float], theirs: list[float]) -> list[float]:
    return ratios(ours, theirs) if theirs else []


def _row(name: str, ours: list[float], theirs: list[float]) -> list[str]:
    return [name, spread(ours, 1), spread(ratios(ours, theirs)) if theirs and theirs is not ours else ""]


def _accuracies(figures: Figures) -> list[list[str]]:
    """Return the source accuracy of the adapted models."""
    rows = []
    for strategy in STRATEGIES:
        script = [100 * sample["clean"][strategy] for sample in figures.get("script", [])]
        ours = [[100 * value for value in total(figures[name], strategy, "clean")] for name in _measured(figures)]
        rows.append([strategy, spread(script), *map(spread, ours)])
    return rows
