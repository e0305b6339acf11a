"""Images that occur more than once: none is left out, or has two labels, without a notice."""

from __future__ import annotations

import json
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
    assert 40 < count <= 64
    assert line.startswith(
        f"folder:b: {count} images are left out (exact copies of images of folder:a), {120 - count} remain: x/"
    )
    assert line.endswith(f" and {count - 3} more")


@pytest.mark.usefixtures("own_folder")
def test_one_picture_in_two_class_folders(cli: Cli) -> None:
    pictures("a", "x", range(0, 20))
    pictures("a", "y", range(100, 120))
    shutil.copy("a/x/3.png", "a/y/copy.png")
    found = dry_run(cli, "--dataset", "none", "--target", "folder:a")
    (line,) = (line for line in found if "several labels" in line)
    assert line in (
        "1 image has several labels: x/3.png ('x') = y/copy.png ('y')",
        "1 image has several labels: y/copy.png ('y') = x/3.png ('x')",
    )
