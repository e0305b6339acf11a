"""Decoding of pictures: orientation, colour and size; and the reasons for files that cannot be decoded."""

from __future__ import annotations

import random
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, ImageFile
from support import photos
from torchvision.transforms.v2 import functional as reference

import adaptkit
from adaptkit.data.sets import read_picture as decoder
from adaptkit.data.sets.image_files import fault_of, read_picture
from adaptkit.errors import BadInput

SIZE = 32
FORMATS = ("png", "jpg", "webp", "gif", "tif", "bmp")


@pytest.fixture(scope="module")
def temple() -> Image.Image:
    """Return a photograph of 120x90 pixels."""
    return photos.photographs()[0].resize((120, 90))


def pixels(image: Image.Image, size: int = SIZE) -> torch.Tensor:
    """Return an RGB picture resized and cropped by torchvision."""
    return reference.pil_to_tensor(reference.center_crop(reference.resize(image, [size]), [size, size]))


def apart(first: torch.Tensor, second: torch.Tensor) -> int:
    assert first.dtype == second.dtype == torch.uint8 and first.shape == second.shape
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("shape", [(120, 90), (53, 77), (32, 32), (20, 31), (300, 40)])
def test_resize_and_crop_equal_torchvision(
    suffix: str, shape: tuple[int, int], temple: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / f"temple.{suffix}"
    temple.resize(shape).save(path)
    with Image.open(path) as image:
        expected = pixels(image.convert("RGB"))
    assert apart(read_picture(path, SIZE), expected) <= 1
    with Image.open(path) as image:
        assert apart(read_picture(image, SIZE), expected) <= 1


@pytest.mark.parametrize("size", [24, 64])
def test_large_jpeg(size: int, tmp_path: Path) -> None:
    photo = photos.photographs()[2].resize((1200, 1400))
    photo.save(tmp_path / "large.jpg", quality=95)
    difference = read_picture(tmp_path / "large.jpg", size).int() - pixels(photo, size).int()
    assert difference.abs().float().mean() < 1 and difference.abs().max() < 12


def modes(photo: Image.Image) -> dict[str, tuple[str, Image.Image, Image.Image]]:
    """Return pictures by their special property: a suffix, the picture to save, and the expected RGB picture."""
    grey = photo.convert("L")
    sixteen = Image.fromarray(numpy.asarray(grey).astype(numpy.uint16) * 257)
    mask = Image.linear_gradient("L").resize(photo.size)
    veiled = photo.copy()
    veiled.putalpha(mask)
    on_white = Image.new("RGB", photo.size, "white")
    on_white.paste(photo, mask=mask)
    grey_veiled = grey.convert("LA")
    grey_veiled.putalpha(mask)
    grey_on_white = Image.new("L", photo.size, "white")
    grey_on_white.paste(grey, mask=mask)
    palette = photo.quantize(64)
    holes = palette.copy()
    holes.info["transparency"] = 0
    filled = palette.convert("RGB")
    filled.paste((255, 255, 255), mask=palette.point([255] + [0] * 255, "L"))
    dots = photo.convert("1")
    inks = photo.convert("CMYK")
    floats = Image.fromarray(numpy.asarray(grey).astype(numpy.float32) / 255)
    return {
        "grey": ("png", grey, grey.convert("RGB")),
        "grey JPEG": ("jpg", grey, grey.convert("RGB")),
        "16-bit PNG": ("png", sixteen, grey.convert("RGB")),
        "16-bit TIFF": ("tif", sixteen, grey.convert("RGB")),
        "16-bit big-endian": ("tif", Image.frombytes("I;16B", photo.size, swapped(sixteen)), grey.convert("RGB")),
        "16-bit in 32": ("pgm", sixteen.convert("I"), grey.convert("RGB")),
        "black and white": ("png", dots, dots.convert("RGB")),
        "palette": ("png", palette, palette.convert("RGB")),
        "palette with a hole": ("png", holes, filled),
        "palette GIF": ("gif", palette, palette.convert("RGB")),
        "RGBA": ("png", veiled, on_white),
        "grey with alpha": ("png", grey_veiled, grey_on_white.convert("RGB")),
        "CMYK": ("jpg", inks, inks.convert("RGB")),
        "floats": ("tif", floats, grey.convert("RGB")),
    }


def swapped(image: Image.Image) -> bytes:
    return numpy.asarray(image).byteswap().tobytes()


KINDS = (
    *("grey", "grey JPEG", "16-bit PNG", "16-bit TIFF", "16-bit big-endian", "16-bit in 32", "black and white"),
    *("palette", "palette with a hole", "palette GIF", "RGBA", "grey with alpha", "CMYK", "floats"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_all_modes_become_colour(kind: str, temple: Image.Image, tmp_path: Path) -> None:
    suffix, picture, meant = modes(temple)[kind]
    path = tmp_path / f"picture.{suffix}"
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    picture.save(path, **options)
    tolerance = 12 if suffix == "jpg" else 1
    assert apart(read_picture(path, SIZE), pixels(meant)) <= tolerance
    assert apart(read_picture(picture, SIZE), pixels(meant)) <= 1


def test_transparency_becomes_white(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 40), (10, 20, 30))
    picture.paste((200, 0, 0), (0, 0, 20, 40))
    picture.save(tmp_path / "keyed.png", transparency=(200, 0, 0))
    corners = read_picture(tmp_path / "keyed.png", 40)[:, 0, [0, 39]]
    assert corners.T.tolist() == [[255, 255, 255], [10, 20, 30]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = Image.new("RGB", (32, 32), (0, 0, 0))
    upright.paste((255, 0, 0), (0, 0, 16, 16))
    upright.paste((0, 255, 0), (16, 0, 32, 16))
    undone = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Image.Transpose of a camera
    stored = upright.transpose(Image.Transpose(undone[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"turned.{suffix}", exif=exif, quality=95)
    picture = read_picture(tmp_path / f"turned.{suffix}", 32)
    corners = (picture[:, [4, 4, 28], [4, 28, 4]].T > 128).tolist()
    assert corners == [[True, False, False], [False, True, False], [False, False, False]]


def test_damaged_exif(temple: Image.Image, tmp_path: Path) -> None:
    temple.save(tmp_path / "odd.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_picture(tmp_path / "odd.jpg", SIZE)


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_first_of_several_frames(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    picture = read_picture(tmp_path / f"moving.{suffix}", 40)
    assert picture.flatten(1).float().mean(1).tolist() == pytest.approx([255, 0, 0], abs=2)


def test_input_picture_is_not_changed(temple: Image.Image) -> None:
    given = temple.copy()
    given.getexif()[0x0112] = 6
    read_picture(given, SIZE)
    assert given.size == (120, 90) and given.tobytes() == temple.tobytes()


def reason(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_picture(path, SIZE)
    (line,) = caught.value.problems
    assert line == f"{path}: {fault_of(path, SIZE)}"
    return fault_of(path, SIZE)


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_picture(suffix: str, temple: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / f"temple.{suffix}"
    temple.save(path)
    content = path.read_bytes()
    for kept in (0.5, 0.95):
        path.write_bytes(content[: int(len(content) * kept)])
        assert reason(path).startswith("damaged: ")
    path.write_bytes(content[:6])
    assert reason(path) != ""


def test_files_that_are_not_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.png").write_text("not a picture at all")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    reasons = {path.name: reason(path) for path in sorted(tmp_path.iterdir())}
    assert reasons == {
        "drawing.eps": "not a picture in a known format",
        "empty.jpg": "empty (0 bytes)",
        "folder.png": "not a file",
        "gone.png": "a broken link",
        "notes.png": "not a picture in a known format",
    }
    assert reason(tmp_path / "missing.png") == "there is no such file"


def test_file_name_of_any_bytes(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read_picture(Path("two\nlines\udcff.jpg"), SIZE)
    assert caught.value.problems == (r"two\nlines\udcff.jpg: there is no such file",)


def test_values_without_a_known_white(tmp_path: Path) -> None:
    Image.fromarray(numpy.full((9, 9), 7.5, numpy.float32)).save(tmp_path / "float.tif")
    Image.fromarray(numpy.full((9, 9), numpy.nan, numpy.float32)).save(tmp_path / "nan.tif")
    Image.fromarray(numpy.full((9, 9), 70000, numpy.int32)).save(tmp_path / "whole.tif")
    assert reason(tmp_path / "float.tif") == "its values are floats from 7.5 to 7.5, not from 0 to 1"
    assert reason(tmp_path / "nan.tif") == "its values are floats from nan to nan, not from 0 to 1"
    assert reason(tmp_path / "whole.tif") == (
        "its values are 32-bit integers from 70000 to 70000, and the value of white is unknown"
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(path: Path, side: int) -> Path:
    """Write a PNG of a few bytes with this side in its header."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_decompression_bombs(side: int, tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.png", side)
    expected = f"{side * side:,} pixels, more than the safe maximum of 89,478,485"
    assert reason(path) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert reason(path) == expected


def test_global_settings_of_pillow_have_no_effect(
    temple: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temple.save(tmp_path / "temple.jpg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((tmp_path / "temple.jpg").read_bytes()[:-1500])
    expected = read_picture(tmp_path / "temple.jpg", SIZE)
    for limit in (100, 10_799, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(read_picture(tmp_path / "temple.jpg", SIZE), expected)
            assert reason(cut).startswith("damaged: image file is truncated")
            assert reason(bomb(tmp_path / "bomb.png", 10_000)).startswith("100,000,000 pixels, more than the safe")
        assert limit == Image.MAX_IMAGE_PIXELS and ImageFile.LOAD_TRUNCATED_IMAGES


def test_threads_restore_the_settings_of_pillow(temple: Image.Image, tmp_path: Path) -> None:
    temple.resize((500, 400)).save(tmp_path / "temple.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "temple.png").read_bytes()[:-9000])
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:]
    with ThreadPoolExecutor(4) as pool:
        faults = list(pool.map(lambda path: fault_of(path, SIZE), [tmp_path / "temple.png", cut] * 20))
    assert [bool(fault) for fault in faults] == [False, True] * 20
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:])


def png(path: Path, bits: int, left: Sequence[int], right: Sequence[int]) -> Path:
    """Write a PNG of 16x16 pixels; the pixels of the left half have the value that the file declares transparent."""
    pixels = numpy.array([[left] * 8 + [right] * 8] * 16)
    if bits < 8:
        places = numpy.arange(bits)[::-1]
        rows = numpy.packbits(pixels >> places & 1, axis=None).reshape(16, -1)
    else:
        rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(16, -1).view("u1")
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 16, 16, bits, 0 if len(left) == 1 else 2, 0, 0, 0),
        b"tRNS": struct.pack(f">{len(left)}H", *left),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in chunks.items()))
    return path


@pytest.mark.parametrize(
    ("bits", "clear", "other", "grey"),
    [
        (1, [0], [1], 255),
        (2, [1], [2], 170),
        (4, [3], [10], 170),
        (8, [30], [200], 200),
        (16, [30 * 257], [200 * 257], 200),
        (8, [30, 1, 2], [200, 200, 200], 200),
        (16, [3000, 1, 2], [51400, 51400, 51400], 200),
    ],
)
def test_transparent_value_of_every_depth(
    bits: int, clear: list[int], other: list[int], grey: int, tmp_path: Path
) -> None:
    picture = read_picture(png(tmp_path / "keyed.png", bits, clear, other), 16)
    assert picture[..., :8].unique().tolist() == [255] and picture[..., 8:].unique().tolist() == [grey]


def tiff(path: Path, values: numpy.ndarray, *, bits: int, photometric: int, turned: int = 1) -> Path:
    """Write an uncompressed grey TIFF of 16x16 pixels; `photometric` is 0 if white is zero."""
    short, long = 3, 4
    tags = [(256, short, 16), (257, short, 16), (258, short, bits), (259, short, 1), (262, short, photometric)]
    tags += [(273, long, 8 + 2 + 11 * 12 + 4), (274, short, turned), (277, short, 1), (278, short, 16)]
    tags += [(279, long, values.nbytes), (339, short, 3 if values.dtype.kind == "f" else 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    path.write_bytes(head + entries + struct.pack("<I", 0) + values.tobytes())
    return path


@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize(("bits", "kind", "white"), [(8, "u1", 255), (16, "u2", 65535), (32, "f4", 1.0)])
def test_tiff_where_white_is_zero(bits: int, kind: str, white: float, turned: int, tmp_path: Path) -> None:
    values = numpy.full((16, 16), 0.2 * white).astype(f"<{kind}")
    dark = read_picture(tiff(tmp_path / "dark.tif", values, bits=bits, photometric=1, turned=turned), 16)
    light = read_picture(tiff(tmp_path / "light.tif", values, bits=bits, photometric=0, turned=turned), 16)
    assert (dark.unique().tolist(), light.unique().tolist()) == ([51], [204])


def test_tiff_of_12_bits(tmp_path: Path) -> None:
    packed = numpy.packbits(numpy.full((256, 1), 819) >> numpy.arange(12)[::-1] & 1)
    path = tiff(tmp_path / "twelve.tif", packed, bits=12, photometric=1)
    assert read_picture(path, 16).unique().tolist() == [51]  # 819 of 4095


def test_turned_integers_without_a_known_white(tmp_path: Path) -> None:
    values = numpy.full((16, 16), 700, "<i4")
    path = tiff(tmp_path / "turned.tif", values, bits=32, photometric=1, turned=6)
    assert reason(path).endswith("the value of white is unknown")


def test_grey_equals_the_luminance_of_a_tensor() -> None:
    noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (300, 300, 3), numpy.uint8))
    grey = decoder.read_picture(noise, 300, channels=1)
    expected = adaptkit.Preprocessing(channels=1, size=300)(noise)
    assert grey.shape == (1, 300, 300) and torch.equal(torch.from_numpy(grey) / 255, expected[0])


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_bytes_raise_bad_input(suffix: str, temple: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / f"temple.{suffix}"
    temple.resize((40, 30)).save(path)
    content = path.read_bytes()
    draws = random.Random(suffix)
    reasons: list[str] = []
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(draws.randrange(1, 20)):
            damaged[draws.randrange(len(damaged))] = draws.randrange(256)
        path.write_bytes(damaged)
        reasons.append(fault_of(path, SIZE))
    assert all("\n" not in text for text in reasons) and any(reasons)


def test_argument_of_another_type() -> None:
    wrong: Callable[..., torch.Tensor] = read_picture
    with pytest.raises(BadInput) as caught:
        wrong(5, SIZE)
    assert caught.value.problems == ("the picture: must be a path or a PIL image, not int",)
