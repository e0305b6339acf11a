"""Many short runs in one process: memory, files and threads do not grow."""

from __future__ import annotations

import sys
from pathlib import Path

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
    # The first hundred runs warm up caches and the allocator (0.1 to 0.6); a leaked model would be 1.7 MB.
    assert found["memory MB"][0] < 1.0, found
    assert found["Python objects, thousands"][0] < 0.2, found
