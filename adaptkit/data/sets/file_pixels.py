"""Images that are decoded from their files on access, as in folders and tables of the user."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.contracts import Reading
from adaptkit.data.sets.layout import listed
from adaptkit.errors import BadInput
from adaptkit.system.streams import printable_line

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from adaptkit.contracts import StoredPixels
    from adaptkit.data.raw_values import Conversion
    from adaptkit.data.readers.files import RawFiles

#: default width and height of images in pixels
SIDE = 64


@dataclass(frozen=True)
class FilePixels:
    """Images that are decoded from their files on access; `names` are paths relative to the folder."""

    root: str
    names: tuple[str, ...]
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of all images together."""
        return len(self.names), 3, self.size, self.size

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image."""
        from adaptkit.data.sets.image_files import read_picture

        return read_picture(Path(self.root, self.names[index]), self.size)


@dataclass(frozen=True)
class RawPixels:
    """Images whose raw values are read from files on access, and converted to float32 in 0..1."""

    root: str
    names: tuple[str, ...]
    raw: RawFiles
    channels: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of all images together."""
        size = self.raw.conversion.size
        return len(self.names), self.channels, size, size

    @property
    def dtype(self) -> dtype:
        """Return the type of the images."""
        import torch

        return torch.float32

    def __getitem__(self, index: int) -> Tensor:
        """Read one image."""
        import torch

        from adaptkit.data.sets.read_picture import UnreadableError

        path = Path(self.root, self.names[index])
        try:
            values, _ = self.raw.read(path)
        except UnreadableError as error:
            raise BadInput(f"{printable_line(str(path))}: {error}") from None
        return torch.from_numpy(values)


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a data set: the reasons for `bad` ones, and how to read the others.

    With `raw`, their raw values are converted; without, they are pictures. `missing` are the numbers of missing values.
    """

    root: Path
    size: int
    bad: Mapping[str, str]
    missing: Mapping[str, int]
    raw: RawFiles | None = None
    channels: int = 3

    def pixels(self, names: tuple[str, ...]) -> StoredPixels:
        """Return some of the images, which are read on access."""
        root = os.path.abspath(self.root)  # a worker process can have another current folder
        if self.raw is None:
            return FilePixels(root, names, self.size)
        return RawPixels(root, names, raw=self.raw, channels=self.channels)

    @property
    def conversion(self) -> Conversion | None:
        """Return the conversion of raw values, if there is one."""
        return None if self.raw is None else self.raw.conversion

    def notices(self, title: str) -> tuple[str, ...]:
        """Return notices about the conversion of raw values, and about missing values, if there are any."""
        if self.raw is None:
            return ()
        conversion = self.raw.conversion
        limits = "" if conversion.limits is None else ":{:g},{:g}".format(*conversion.limits)
        bands = "all" if conversion.bands is None else ",".join(map(str, conversion.bands))
        notices = [
            f"{title}: raw values become floats in 0..1: image.bands={bands} "
            f"image.stretch={conversion.stretch}{limits} image.missing={conversion.missing} image.fit={conversion.fit}"
        ]
        if incomplete := [count for count in self.missing.values() if count]:
            become = "the median of their band" if conversion.missing == "median" else "0"
            files = f"{len(incomplete):,} of {len(self.missing):,} images"
            notices.append(f"{title}: {sum(incomplete):,} values in {files} are missing and become {become}")
        return tuple(notices)


def checked_files(title: str, root: Path, names: Sequence[str], reading: Reading) -> ImageFiles:
    """Read each file once as a check; raise BadInput if a package that reads them is not installed.

    The files are pictures, unless one of them has another reader than Pillow, or the user chose how to convert values.
    """
    from adaptkit.data.readers.files import raw_files
    from adaptkit.data.sets.image_files import faults, raw_faults
    from adaptkit.data.sets.read_picture import UnreadableError

    raw = raw_files(reading)
    readers = [raw.readers.find(root / name) for name in names]
    reasons = Counter(getattr(reader, "unavailable", "") for reader in readers)
    if problems := [f"{title}: {count:,} image files: {reason}" for reason, count in reasons.items() if reason]:
        raise BadInput(*problems)
    if not reading.image and all(reader is None for reader in readers):
        return ImageFiles(root, reading.size, bad=faults(root, names, reading.size), missing={})
    channels = 0
    for name in names:
        try:
            channels = len(raw.read(root / name)[0])
            break
        except UnreadableError:
            continue  # it is checked with the others
    bad, missing = raw_faults(root, names, raw, channels)
    return ImageFiles(root, reading.size, bad=bad, missing=missing, raw=raw, channels=channels)


def skipped(title: str, bad: Mapping[str, str]) -> str:
    """Return the notice about files that are left out because they cannot be read."""
    examples = listed([f"{printable_line(name)} ({reason})" for name, reason in bad.items()])
    return f"{title}: {len(bad)} {'file' if len(bad) == 1 else 'files'} skipped: {examples}"


def not_read(names: Sequence[str]) -> str:
    """Return the notice about files of other formats than images."""
    count = "1 file is not an image, and is" if len(names) == 1 else f"{len(names):,} files are not images, and are"
    return f"{count} not read: {listed(list(map(printable_line, names)))}"
