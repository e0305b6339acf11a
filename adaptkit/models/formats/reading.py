"""How the READMEs of exports read a picture of 8 bits a channel: as adaptkit does, but without it."""

from __future__ import annotations


def reading(*modules: str) -> str:
    """Return Python lines that define `card` and `read(path)`, after imports of these modules and what they need."""
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
