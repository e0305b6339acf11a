"""Images that occur more than once: none is left out, or has two labels, without a notice."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from click.testing import Result
from PIL import Image
from support.photos import crop

from adaptkit.contracts import Corpus, Images
from adaptkit.data import domains, duplicates
from adaptkit.errors import BadInput
from adaptkit.settings.settings import SplitSettings

Cli = Callable[..., Result]


@dataclass(frozen=True)
class Arrays:
    """A data set of a plugin, in memory."""

    name: str
    corpus: Corpus

    def load(self, data_dir: Path) -> Corpus:
        return self.corpus


@pytest.mark.parametrize("keys", ["own", "all equal"])
@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_duplicates(size: int, keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if keys == "all equal":
        monkeypatch.setattr(duplicates, "_keys", lambda images: numpy.zeros(len(images), dtype=numpy.uint64))
    generator = torch.Generator().manual_seed(size)
    # Few grey levels, so that small images have random duplicates.
    pixels = [torch.randint(0, 2, (600, 1, size, size), generator=generator).to(torch.uint8) * 128 for _ in range(3)]
    first, *others = (Images(each, torch.zeros(600, dtype=torch.int64), ("a",)) for each in pixels)
    known = {image.tobytes() for each in pixels[1:] for image in each.numpy()}
    expected = [image.tobytes() in known for image in pixels[0].numpy()]
    assert duplicates.occurring(first, others).tolist() == expected
    assert any(expected) == (size < 5)


def grey(levels: list[int], labels: list[int]) -> Images:
    """Return images of one grey level each; half of the pixels are black, so that no two levels look alike."""
    pixels = torch.zeros(len(levels), 1, 8, 8, dtype=torch.uint8)
    pixels[..., :4] = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Images(pixels, torch.tensor(labels), ("a", "b"))


def notices(source: Images | None, target: Corpus) -> tuple[str, ...]:
    dataset: Any = None if source is None else Arrays("clean", Corpus(source))
    new: Any = Arrays("new", target)
    split: Any = SplitSettings(source=10, pool=15, test=15)
    made = domains.load_domains(dataset, new, (), shift_text="", split=split, data_dir=Path("unused"))
    return made.notices


SOURCE = grey(list(range(40)), [0, 1] * 20)
NEW = list(range(100, 130))


def test_target_images_that_are_source_images() -> None:
    """The source and its test set have 10 and 15 of the 40 images of SOURCE."""
    (line,) = notices(SOURCE, Corpus(grey([*NEW, *range(40)], [0, 1] * 35)))
    start = "new: 25 images are left out (exact copies of images of clean), 30 remain: image "
    assert line.startswith(start) and line.endswith(" and 22 more")
    lines = notices(SOURCE, Corpus(grey([*NEW, *range(40)], [0, 1] * 15 + [1, 0] * 20)))
    assert lines[0] == line
    assert lines[1] == line.replace(
        "images are left out (exact copies of images of clean), 30 remain", "of these have another label in clean"
    )
    assert notices(SOURCE, Corpus(grey(NEW, [0, 1] * 15))) == ()


def test_official_test_images_that_are_source_images() -> None:
    lines = notices(
        grey([3] * 20, [0, 1] * 10), Corpus(grey(NEW, [0, 1] * 15), grey([*range(200, 215), 3], [0, 1] * 8))
    )
    assert "new: 1 image is left out (exact copy of an image of clean), 30 remain: image 45" in lines


def test_too_few_images_after_copies_are_left_out() -> None:
    few = SOURCE.take(torch.arange(20))
    with pytest.raises(BadInput) as caught:
        notices(few, Corpus(few))
    assert caught.value.problems[0].startswith("data set new: too few images: ")
    assert caught.value.problems[1].startswith(
        "new: 16 images are left out (exact copies of images of clean), 3 remain"
    )


def test_images_with_several_labels() -> None:
    train = grey([*range(100, 113), 7, 7], [0, 1] * 6 + [0, 1, 0])
    test = grey([*range(200, 213), 7, 101], [0, 1] * 6 + [0, 0, 1])
    copies, labels = notices(None, Corpus(train, test))
    assert copies == "2 of 15 images of the test set are exact copies of images in the pool: image 28, image 29"
    assert labels.startswith("1 image has several labels: ") and labels.endswith("('b')")


def pictures(folder: str, label: str, levels: range) -> None:
    for level in levels:
        Path(folder, label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (level, 0, 0)).save(Path(folder, label, f"{level}.png"))


def dry_run(cli: Cli, *arguments: str) -> Any:
    common = ("run", "-s", "head", "--backbone", "small_cnn", "--image-size", "16", "--no-track", "--dry-run", "--json")
    result = cli(*common, *arguments)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["notices"]


@pytest.mark.usefixtures("own_folder")
def test_pictures_of_the_source_in_the_target(cli: Cli) -> None:
    pictures("a", "x", range(0, 40))
    pictures("a", "y", range(100, 140))
    shutil.copytree("a", "b")
    pictures("b", "x", range(200, 220))
    pictures("b", "y", range(220, 240))
    found = dry_run(cli, "--dataset", "folder:a", "--target", "folder:b", "--set", "split.pool=60")
    (line,) = (line for line in found if line.startswith("folder:b"))
    count = int(line.split(" ")[1])
    assert count == 80  # without a pool, all images of the source train or test the base
    assert line.startswith(
        f"folder:b: {count} images are left out (exact copies of images of folder:a), {120 - count} remain: x/"
    )
    assert line.endswith(f" and {count - 3} more")


@pytest.mark.usefixtures("own_folder")
def test_one_picture_in_two_class_folders(cli: Cli) -> None:
    pictures("a", "x", range(0, 20))
    pictures("a", "y", range(100, 120))
    shutil.copy("a/x/3.png", "a/y/copy.png")
    found = dry_run(cli, "--dataset", "none", "--weights", "none", "--target", "folder:a")
    (line,) = (line for line in found if "several labels" in line)
    assert line in (
        "1 image has several labels: x/3.png ('x') = y/copy.png ('y')",
        "1 image has several labels: y/copy.png ('y') = x/3.png ('x')",
    )


def photographs(count: int) -> list[Image.Image]:
    draws = random.Random(0)
    return [crop(number % 8, 64, draws).resize((64, 64)) for number in range(count)]


def compressed(picture: Image.Image) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=75)
    return Image.open(content).convert("RGB")


def as_images(*pictures: Image.Image) -> Images:
    pixels = torch.stack([torch.from_numpy(numpy.array(picture)).permute(2, 0, 1) for picture in pictures])
    return Images(
        pixels, torch.arange(len(pictures)) % 2, ("a", "b"), ids=tuple(f"{n}.png" for n in range(len(pictures)))
    )


def test_near_duplicates_of_photographs() -> None:
    first = photographs(100)
    copies = [compressed(picture) for picture in first[:30]]
    copies += [picture.resize((48, 48)).resize((64, 64)) for picture in first[30:60]]
    images = as_images(*first, *copies)
    # Of different photographs, none looks like another.
    assert duplicates.near_duplicates(as_images(*first), torch.arange(100)) == []
    pairs = duplicates.near_duplicates(images, torch.arange(160))
    assert len(pairs) >= 55 and all(image == other + 100 for image, other in pairs)
    # Copies in the same part are no fault.
    assert duplicates.near_duplicates(images, torch.arange(160) % 100) == []


def test_near_duplicates_in_exact_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "ROWS", 2)  # rows of one block are compared with each other and with earlier ones
    images = grey([200, 10, 200, 203, 10, 90, 200], [0] * 7)
    parts = torch.tensor([0, 0, 1, 0, 0, 1, 1])
    assert duplicates.near_duplicates(images, parts) == [(2, 0), (3, 2), (6, 0)]
    black = grey([0] * 5, [0] * 5)
    assert duplicates.near_duplicates(black, torch.arange(5)) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    monkeypatch.setattr(duplicates, "COMPARED", 4)
    assert duplicates.near_duplicates(black, torch.arange(5)) == []


def test_notice_about_near_duplicates() -> None:
    images = as_images(*(picture for picture in photographs(5) for _ in range(2)))
    parts = torch.tensor([0, 1] * 5)
    assert duplicates.near_duplicate_notices("folder:p", images, parts, kind="fold") == (
        "folder:p: 5 images look like an image of another fold: 1.png = 0.png, 3.png = 2.png, 5.png = 4.png and 2 more",
    )
    one = images.take(torch.arange(3))
    unnamed = dataclasses.replace(one, ids=None)
    assert duplicates.near_duplicate_notices("x", unnamed, torch.tensor([0, 1, 1]), kind="group") == (
        "x: 1 image looks like an image of another group: image 1 = image 0",
    )
    assert duplicates.near_duplicate_notices("x", one, torch.tensor([0, 0, 0]), kind="group") == ()


@pytest.mark.usefixtures("own_folder")
def test_near_duplicates_in_two_groups_are_named_in_the_plan(cli: Cli) -> None:
    for number, picture in enumerate(photographs(40)):
        Path("p", "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        picture.save(Path("p", "ab"[number % 2], f"{number}-x.png"))
        if number == 7:
            picture.save("p/b/99-y.jpg", quality=90)
            picture.save("p/b/7-z.jpg", quality=90)
    found = dry_run(
        cli, "--dataset", "none", "--weights", "none", "--target", "folder:p", "--set", r"folder.group=^\d+"
    )
    (line,) = (line for line in found if "looks like" in line)
    assert line == "folder:p: 1 image looks like an image of another group: b/99-y.jpg = b/7-x.png"


def test_near_duplicates_in_training_and_test_images() -> None:
    one, other, another, last = photographs(4)
    columns = {"group": ("g", "h")}
    train = dataclasses.replace(as_images(one, other), columns=columns)
    test = dataclasses.replace(as_images(another, compressed(one)), ids=("2.png", "3.png"), columns=columns)
    assert duplicates.across_groups("x", Corpus(train, test)) == (
        "x: 1 image looks like an image of another group: 3.png = 0.png",
    )
    same = dataclasses.replace(test, columns={"group": ("h", "g")})
    assert duplicates.across_groups("x", Corpus(train, same)) == ()
    assert duplicates.across_groups("x", Corpus(dataclasses.replace(train, columns={}), test)) == ()
    assert duplicates.across_groups("x", Corpus(as_images(one, other, last, compressed(last)))) == ()


@pytest.mark.usefixtures("own_folder")
def test_near_duplicates_in_two_folds_are_named_in_the_plan(cli: Cli) -> None:
    for number, picture in enumerate(photographs(40)):
        Path("p", "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        picture.save(Path("p", "ab"[number % 2], f"{number}.png"))
        if number < 8:
            picture.save(Path("p", "ab"[number % 2], f"copy{number}.jpg"), quality=90)
    found = dry_run(cli, "--dataset", "none", "--weights", "none", "--target", "folder:p", "--folds", "4")
    (line,) = (line for line in found if "of another fold" in line)
    assert line.startswith("folder:p: ") and "b/copy" in line
    assert not [line for line in dry_run(cli, "--target", "digits") if "of another fold" in line]
