"""Data sets of float images with any number of bands: in memory, or decoded when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import adaptkit
from adaptkit.contracts import Corpus, Images
from adaptkit.data import domains
from adaptkit.data.duplicates import equal_images, near_duplicates
from adaptkit.data.pixels import channel_statistics, converted, decoded
from adaptkit.errors import BadInput
from adaptkit.settings.settings import SplitSettings
from adaptkit.testing import checks

BANDS = 13


@dataclass(frozen=True)
class Stored:
    """Float images that are computed from their index."""

    count: int
    side: int = 8
    dtype: torch.dtype = torch.float32
    faulty: int = -1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.count, BANDS, self.side, self.side

    def __getitem__(self, index: int) -> torch.Tensor:
        image = torch.rand(BANDS, self.side, self.side, generator=torch.Generator().manual_seed(index)) / 2
        image[index % 2] += 0.5 if index != self.faulty else 5
        return image


def images(pixels: Any, count: int) -> Images:
    return Images(pixels, torch.arange(count) % 2, ("even", "odd"))


@dataclass
class Bands:
    """Images of 13 bands in two classes."""

    name = "bands"
    pixels: Any = None
    count: int = 300

    def load(self, data_dir: Path) -> Corpus:
        pixels = Stored(self.count) if self.pixels is None else self.pixels
        return Corpus(images(pixels, self.count))


class Plugin:
    @adaptkit.hookimpl
    def adaptkit_datasets(self) -> list[type]:
        return [Bands]


def in_memory(count: int) -> torch.Tensor:
    return torch.stack([Stored(count)[index] for index in range(count)])


def load(dataset: Bands) -> domains.Domains:
    split = SplitSettings(source=100, pool=80, test=60)  # type: ignore[call-arg]
    return domains.load_domains(dataset, None, (), shift_text="none", split=split, data_dir=Path("unused"))


def test_stored_and_loaded_images_are_the_same_data() -> None:
    stored, loaded = load(Bands()), load(Bands(in_memory(300)))
    assert stored.channels == BANDS and stored.fingerprint == loaded.fingerprint
    assert torch.equal(stored.shifted_test.pixels[:], loaded.shifted_test.pixels[:])
    assert stored.shifted_test.pixels[:].dtype == torch.float32
    (batch,) = decoded(Stored(300), [torch.arange(300)])  # by workers
    assert torch.equal(batch, in_memory(300))


def test_statistics_and_duplicates() -> None:
    pixels = in_memory(40)
    mean, std = channel_statistics(pixels)
    assert torch.allclose(mean, pixels.mean((0, 2, 3))) and torch.allclose(std, pixels.std((0, 2, 3), correction=0))
    twice = torch.cat([pixels, pixels[:2]])
    assert sorted(map(sorted, equal_images([images(twice, 42)]))) == [[(0, 0), (0, 40)], [(0, 1), (0, 41)]]
    twice[40] = (twice[40] + 1e-4).clamp(0, 1)
    assert near_duplicates(images(twice, 42), torch.arange(42)) == [(40, 0), (41, 1)]
    assert equal_images([images(twice, 42)]) == [[(0, 1), (0, 41)]]


def test_conversion_keeps_floats() -> None:
    pixels = in_memory(3)[:, :3]
    grey = converted(pixels, 1, 4)
    assert grey.dtype == torch.float32 and grey.shape == (3, 1, 4, 4) and 0 <= grey.min() <= grey.max() <= 1
    assert torch.allclose(
        converted(pixels, 1, 8)[:, 0], (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    )


def test_values_out_of_range_are_named_when_they_are_decoded() -> None:
    with pytest.raises(BadInput, match=r"data set bands: image \d+: float pixels must be in 0\.\.1, not 0\.\d+ to 5"):
        load(Bands(Stored(300, faulty=7)))
    with pytest.raises(BadInput, match="must be a uint8 tensor of shape"):
        load(Bands(Stored(300, dtype=torch.uint8)))


@pytest.mark.parametrize("check", checks(Bands), ids=str)
def test_conformance(check: Any) -> None:
    if check.name != "validates its options":
        check()


def test_run_with_a_shift(store: Path) -> None:
    outcome = adaptkit.run(
        ["head", "lora"],
        dataset="bands",
        shift="noise=0.1",
        settings={"split.source": 100, "split.pool": 80, "split.test": 60, "base.epochs": 2, "epochs": 1, "shots": 5},
        plugins=[Plugin()],
    )
    assert [run.status for run in outcome.runs] == ["finished", "finished"]
    model = adaptkit.load(str(outcome.runs[0].run_id), plugins=[Plugin()])
    assert model.preprocess(numpy.zeros((BANDS, 8, 8), numpy.float32)).shape == (1, BANDS, 8, 8)
