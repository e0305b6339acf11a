"""Measure time and memory of experiments for several numbers of seeds and of test images."""

from __future__ import annotations

from experiments import PLAIN, copied_folder, embedded, experiment, fresh_folder, runs_alone, strategies
from measuring import Figures, Goal, Sample, Setting, column, interleaved, markdown, spread

TITLE = "Scaling of `run -s lora --no-track`"
SEEDS = (1, 2, 4, 8)
TESTS = (375, 750, 1500)
SMALL_TESTS = (100, 200, 400)
WAYS = {"": (), ", plain path": (PLAIN,)}


def measure(setting: Setting) -> Figures:
    """Run each size in turn, with and without cached features. The base is cached, features are not."""
    untracked = [*embedded(setting), *strategies(["lora"]), "--no-track"]
    sizes = {f"seeds: {count}": ["--seeds", f"0-{count - 1}"] for count in (SEEDS[:2] if setting.quick else SEEDS)}
    for count in SMALL_TESTS if setting.quick else TESTS:
        sizes[f"test images: {count}"] = ["--set", f"split.test={count}"]
    with fresh_folder() as prepared:
        for count in SMALL_TESTS if setting.quick else TESTS:  # sizes can have different bases
            experiment(prepared, *untracked, PLAIN, "--epochs", "1", "--set", f"split.test={count}")

        def case(size: str, way: str) -> dict[str, Sample]:
            with copied_folder(prepared) as folder:
                return {f"{size}{way}": experiment(folder, *untracked, *sizes[size], *WAYS[way])}

        cases = {f"{size}{way}": lambda size=size, way=way: case(size, way) for size in sizes for way in WAYS}
        return interleaved(cases, setting.repeats, setting.keep)


def tables(figures: Figures) -> str:
    """Return seconds and peak memory of the process for each size, with and without cached features."""
    rows = []
    for size in (name for name in figures if not name.endswith(", plain path")):
        cells = [size]
        for way in WAYS:
            samples = figures[f"{size}{way}"]
            cells += [
                spread(column(samples), 1),
                spread([runs_alone(sample) for sample in samples], 1),
                spread([sample["peak_bytes"] / 2**20 for sample in samples], 0),
            ]
        rows.append(cells)
    header = ["process, seconds", "runs alone, seconds", "peak MiB"]
    return markdown(["", *header, *(f"{name}, plain path" for name in header)], rows)


def goals(figures: Figures) -> list[Goal]:
    """Return an empty list: scaling has no goals."""
    return []
