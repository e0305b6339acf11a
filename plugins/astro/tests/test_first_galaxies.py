"""The images, labels and columns of first-galaxies, compared with those of the package firstgalaxydata."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy
import pytest
from adaptkit_astro import FirstGalaxies
from adaptkit_astro.galaxies import CLASSES, CROP, PICTURE, PIXEL, Galaxy, overlapping
from PIL import Image

from adaptkit import Preprocessing
from adaptkit.contracts import Images, Reading
from adaptkit.testing import checks

MARGIN = (PICTURE - CROP) // 2
CENTRE = slice(MARGIN, MARGIN + CROP)


def package_file(name: str) -> Path:
    spec = importlib.util.find_spec("firstgalaxydata")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], name)


@pytest.fixture(scope="module")
def galaxies() -> Images:
    return FirstGalaxies().load(Path("unused")).train


@pytest.mark.parametrize("check", checks(FirstGalaxies), ids=str)
def test_conformance(check):
    check()


def test_counts_are_those_of_the_publication(galaxies):
    assert galaxies.pixels.shape == (2158, 1, 64, 64)
    counts = Counter(galaxies.classes[label] for label in galaxies.labels.tolist())
    assert counts == {"FRI": 495, "FRII": 924, "Compact": 391, "Bent": 348}
    assert Counter(galaxies.columns["split"]) == {"train": 1758, "valid": 200, "test": 200}
    assert Counter(galaxies.columns["catalogue"]) == {
        **{"Gendre": 810, "MiraBest": 745, "Proctor_Tab1": 281, "Capetti2017a": 165, "Baldi2018": 108},
        "Capetti2017b": 49,
    }
    assert galaxies.columns["domain"] == galaxies.columns["catalogue"]
    assert len(set(galaxies.ids)) == 2158


def test_images_and_labels_equal_those_in_hdf5(galaxies):
    """The package holds the pictures a second time as HDF5. Its smallest file has 400 of them."""
    with zipfile.ZipFile(package_file("galaxy_data_crossvalid_test_h5.zip")) as archive:
        content = archive.read("galaxy_data_crossvalid_test_h5.h5")
    images = FirstGalaxies().at(Reading(CROP)).load(Path("unused")).train
    place = {position: index for index, position in enumerate(images.ids)}
    with h5py.File(io.BytesIO(content)) as stored:
        assert len(stored) == 400
        for entry in stored.values():
            facts = entry["Img"].attrs
            # Some stored coordinates have a rounding error, such as 253.75099999999998.
            index = place[f"{round(facts['RA'], 3)}{round(facts['DEC'], 3):+}"]
            assert numpy.array_equal(images.pixels[index][0], entry["Img"][CENTRE, CENTRE])
            assert images.classes[images.labels[index]] == CLASSES[int(entry["Label_literature"][()])]
            assert images.columns["catalogue"][index] == facts["Source"]


@pytest.mark.parametrize("size", [16, 64, 224])
def test_images_equal_those_that_predict_reads(size):
    images = FirstGalaxies().at(Reading(size)).load(Path("unused")).train
    index = images.ids.index("14.084-9.608")
    with (
        zipfile.ZipFile(package_file("galaxy_data.zip")) as archive,
        archive.open("galaxy_data/all/Bent/14.084_-9.608_3_MiraBest.png") as file,
    ):
        centre = Image.open(file).crop((MARGIN, MARGIN, MARGIN + CROP, MARGIN + CROP))
    ours = images.pixels[index].float() / 255
    assert ours.max() > 0
    assert numpy.array_equal(Preprocessing(channels=1, size=size)(centre)[0], ours)


def test_groups_are_overlapping_images(galaxies):
    ra, dec = (numpy.radians([float(text) for text in galaxies.columns[name]]) for name in ("ra", "dec"))
    cosines = numpy.sin(dec) * numpy.sin(dec)[:, None]
    cosines += numpy.cos(dec) * numpy.cos(dec)[:, None] * numpy.cos(ra - ra[:, None])
    near = numpy.degrees(numpy.arccos(cosines.clip(-1, 1))) * 3600 < CROP * PIXEL
    numpy.fill_diagonal(near, False)
    groups = numpy.array(galaxies.columns["group"])
    assert (groups[:, None] == groups)[near].all()
    sizes = Counter(galaxies.columns["group"])
    assert near.any(axis=1).tolist() == [sizes[group] > 1 for group in groups]
    assert set(sizes) <= set(galaxies.ids)


def test_groups_across_zero_right_ascension():
    def at(ra: str, dec: str) -> Galaxy:
        return Galaxy(ra=ra, dec=dec, label=0, catalogue="MiraBest", split="train")

    found = overlapping([at("359.99", "-1.0"), at("10.0", "-1.0"), at("0.01", "-1.0"), at("0.01", "1.0")])
    assert found == ("359.99-1.0", "10.0-1.0", "359.99-1.0", "0.01+1.0")


def test_light_imports():
    """The package firstgalaxydata imports astropy, h5py and matplotlib; none of them is needed."""
    code = (
        "import sys, adaptkit_astro; assert 'torch' not in sys.modules; adaptkit_astro.FirstGalaxies().load(None); "
        "assert not {'firstgalaxydata', 'astropy', 'h5py', 'matplotlib'} & set(sys.modules)"
    )
    folders = os.pathsep.join(map(str, sys.path))
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": folders}, check=True)
