"""Code for the READMEs of exports that reads an image file without adaptkit (8 bits for each channel)."""

from __future__ import annotations


def reading(*modules: str) -> str:
    """Return Python code that imports `modules` and defines `card` and `read(path)`."""
    others = "\n".join(f"import {name}" for name in sorted({"numpy", "torch", *modules}))
    return f"""\
import json

{others}
from PIL import Image, ImageOps

card = json.load(open("model.json"))


def read(path):
    channels, size = card["channels"], card["size"]
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB" if channels == 3 else "L")
    picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return torch.tensor(numpy.array(picture)).view(size, size, channels).permute(2, 0, 1) / 255
"""
