"""Many short runs in one process: memory, files and threads do not grow."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from soak import FIGURES, growth, soak

pytestmark = pytest.mark.slow


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux gives it back")
@pytest.mark.parametrize("how", ["run", "sweep"])
def test_memory_and_files_do_not_grow(how: str) -> None:
    samples = soak(how, 24, samples=12)
    first, last = samples[len(samples) // 3], samples[-1]
    assert last[0] == 24
    found = {name: (growth(samples, place), last[place] - first[place]) for place, name in enumerate(FIGURES, start=1)}
    for name in ("open files", "of the database", "threads", "temporary files"):
        assert found[name][1] <= 0, (name, [row[FIGURES.index(name) + 1] for row in samples])
    # A leak grows with every run; the allocator grows in jumps, most of them at first. A leaked model would be 1.7 MB.
    place = 1 + FIGURES.index("memory MB")
    later = pairwise((row[0], row[place]) for row in samples[len(samples) // 2 :])
    steps = [(after - before) / (last - first) for (first, before), (last, after) in later]
    assert median(steps) < 0.3, (steps, found)
    assert found["Python objects, thousands"][0] < 0.2, found
