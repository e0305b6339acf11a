"""The commands of docs/scientific_images.md run on small FITS files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy
from astropy.io import fits
from click.testing import Result

TEXT = (Path(__file__).parents[2] / "docs" / "scientific_images.md").read_text(encoding="utf-8")
(COMMAND,) = (shlex.split(line) for line in TEXT.splitlines() if line.startswith("adaptkit run"))


def test_command_and_its_notices(cli: Callable[..., Result], own_folder: Path, store: Path) -> None:
    rows = ["file,class"]
    for number in range(24):
        values = numpy.random.default_rng(number).normal(number % 2, 1, (96, 96)).astype(numpy.float32)
        values[:1] = numpy.nan
        fits.writeto(f"{number}.fits", values)
        rows.append(f"{number}.fits,{'ab'[number % 2]}")
    Path("labels.csv").write_text("\n".join(rows))
    result = cli(*COMMAND[1:], "--image-size", "16", "--epochs", "1", "--set", "min_steps=none", "--folds", "2")
    assert result.exit_code == 0, result.stderr
    notices = re.findall(r"^Note: table:labels.csv: (?:raw|2,304).*$", TEXT, re.MULTILINE)
    assert len(notices) == 2 and set(notices) <= set((result.stdout + result.stderr).splitlines())
