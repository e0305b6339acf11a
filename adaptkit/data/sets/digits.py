"""The handwritten digits of scikit-learn in the size of MNIST: a real shift of MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.contracts import Corpus, Dataset

SIDE = 28
BRIGHTEST = 16


class Digits:
    """1,797 digits of scikit-learn, 28x28 grey; needs no network.

    The images have 8x8 pixels and are enlarged to the size of MNIST.
    """

    name: ClassVar[str] = "digits"

    def load(self, data_dir: Path) -> Corpus:
        """Return the images in the order of scikit-learn; `data_dir` is not used."""
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise BadInput(
                "data set digits: its images are part of scikit-learn; install it: pip install scikit-learn"
            ) from None
        import torch
        from torch.nn.functional import interpolate

        from adaptkit.contracts import Corpus, Images

        published = load_digits()
        small = torch.from_numpy(published.images).float().unsqueeze(1)
        large = interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        pixels = (large * (255 / BRIGHTEST)).round().to(torch.uint8)
        labels = torch.from_numpy(published.target).long()
        return Corpus(Images(pixels, labels, tuple("0123456789")))


@hookimpl
def adaptkit_datasets() -> list[type[Dataset]]:
    """Return the data set `digits`."""
    return [Digits]
