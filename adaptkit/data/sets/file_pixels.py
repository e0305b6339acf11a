"""Images that are decoded from their files on access, as in folders and tables of the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.data.sets.layout import listed
from adaptkit.system.streams import printable_line

if TYPE_CHECKING:
    from torch import Tensor

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


def skipped(title: str, bad: Mapping[str, str]) -> str:
    """Return the notice about files that are left out because they cannot be read."""
    examples = listed([f"{printable_line(name)} ({reason})" for name, reason in bad.items()])
    return f"{title}: {len(bad)} {'file' if len(bad) == 1 else 'files'} skipped: {examples}"
