"""Create folders of photographs: crops of those that ship with scikit-learn and matplotlib."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_sample_images

#: names of the photographs, by class
CLASSES = ("china", "flower", "hopper", "gift")


@cache
def photographs() -> tuple[Image.Image, ...]:
    """Return a temple, a dahlia, a portrait and a drawing of a gift, in colour, in the order of the classes."""
    temple, dahlia = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    samples = Path(matplotlib.get_data_path(), "sample_data")
    with Image.open(samples / "grace_hopper.jpg") as image:
        portrait = image.convert("RGB")
    with Image.open(samples / "Minduka_Present_Blue_Pack.png") as image:
        gift = Image.new("RGB", image.size, "white")
        gift.paste(image, mask=image.getchannel("A"))
    return temple, dahlia, portrait, gift.resize((512, 512))


def crop(number: int, size: int, draws: random.Random) -> Image.Image:
    """Return a crop of the photograph of this class, `size` pixels high and up to a quarter wider.

    From the fifth class on, photographs come again in other colours.
    """
    photos = photographs()
    photo = photos[number % len(photos)]
    width = size + draws.randrange(size // 4 + 1)
    high = draws.uniform(0.35, 0.6) * min(photo.size)
    wide = high * width / size
    left, top = draws.uniform(0, photo.width - wide), draws.uniform(0, photo.height - high)
    picture = photo.resize((width, size), Image.Resampling.BILINEAR, (left, top, left + wide, top + high))
    turn = number // len(photos)
    if turn:
        bands = picture.split()
        picture = Image.merge("RGB", [bands[(turn + band) % 3] for band in range(3)])
    return picture


def worn(picture: Image.Image) -> Image.Image:
    """Return a darker and blurred version of an image, as from another camera."""
    return ImageEnhance.Brightness(picture).enhance(0.55).filter(ImageFilter.GaussianBlur(picture.height / 40))


def make_photos(
    folder: Path,
    per_class: int = 12,
    size: int = 40,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
    *,
    shifted: bool = False,
) -> Path:
    """Write a folder with one subfolder a class, mostly JPEG, every third picture PNG, and return it.

    Shifted ones are dark, blurred and strongly compressed. The same arguments give the same files.
    """
    draws = random.Random(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            picture = crop(number, size, draws)
            picture = worn(picture) if shifted else picture
            if index % 3 == 2:
                picture.save(folder / name / f"{index:04}.png", compress_level=1)
            else:
                picture.save(folder / name / f"{index:04}.jpg", quality=30 if shifted else 90)
    return folder


if __name__ == "__main__":
    # Two domains of 1,600 pictures of 64 pixels each, below the folder that is named: good ones and worn ones.
    make_photos(Path(sys.argv[1], "good"), per_class=400, size=64)
    make_photos(Path(sys.argv[1], "worn"), per_class=400, size=64, seed=1, shifted=True)
