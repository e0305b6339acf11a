"""Ids and columns of images: they stay with their images from the data set to the parts of an experiment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from adaptkit.contracts import Corpus, Images
from adaptkit.data.columns import divided_groups, grouped_by
from adaptkit.data.domains import load_domains, relabelled
from adaptkit.data.loading import load_checked
from adaptkit.data.pixels import alike, held, loaded, resized
from adaptkit.errors import BadInput
from adaptkit.settings.settings import SplitSettings

CLASSES = ("a", "b")


@dataclass(frozen=True)
class Given:
    """A data set in memory."""

    corpus: Corpus
    name: str = "given"

    def load(self, data_dir: Path) -> Corpus:
        return self.corpus


@dataclass(frozen=True)
class Stored:
    """Images that are decoded on access."""

    pixels: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        count, channels, height, width = self.pixels.shape
        return count, channels, height, width

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pixels[index]


def some_images(count: int, prefix: str = "", seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    ids = tuple(f"{prefix}{number}" for number in range(count))
    columns = {"group": tuple(f"group of {name}" for name in ids)}
    return Images(pixels, torch.arange(count) % 2, CLASSES, ids=ids, columns=columns)


def assert_joined(images: Images) -> None:
    assert images.ids is not None and len(images.ids) == len(images)
    assert images.columns == {"group": tuple(f"group of {name}" for name in images.ids)}


def test_conversions_keep_ids_and_columns() -> None:
    images = some_images(10)
    stored = replace(images, pixels=Stored(images.pixels))  # type: ignore[arg-type]
    for kept in (
        *(held(stored), loaded(stored), stored.take(torch.tensor([3, 1])), alike(stored, channels=3, size=4)),
        *(alike(images, channels=3, size=8), resized(Corpus(images, images), 4).test),
        relabelled(Corpus(images, images), "x", classes=("b", "a"), source="y").test,
        load_checked(Given(Corpus(stored, stored)), Path()).test,
    ):
        assert kept is not None
        assert_joined(kept)


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("has_test", [False, True])
def test_parts_of_an_experiment_keep_ids_and_columns(is_stored: bool, has_test: bool) -> None:
    source, target, test = (some_images(60, prefix=f"{seed}/", seed=seed) for seed in range(3))
    if is_stored:
        target = replace(target, pixels=Stored(target.pixels))  # type: ignore[arg-type]
    domains = load_domains(
        *(Given(Corpus(source), "here"), Given(Corpus(target, test if has_test else None), "there"), ()),
        shift_text="none",
        split=SplitSettings(),
        data_dir=Path(),
    )
    for images, original in ((domains.source, source), (domains.pool, target)):
        assert_joined(images)
        for name, pixels in zip(images.ids or (), images.pixels, strict=True):  # type: ignore[arg-type, call-overload]
            assert torch.equal(pixels, original.pixels[int(name.partition("/")[2])])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ids": ("a", "b", "a")}, "ids must be 3 different texts, one for each image"),
        ({"ids": ("a", "b")}, "ids must be 3 different texts, one for each image"),
        ({"ids": (0, 1, 2)}, "ids must be 3 different texts, one for each image"),
        ({"columns": {"site": ("a", "b")}}, "column 'site' must be 3 texts, one for each image"),
        ({"columns": {"site": (1, 2, 3)}}, "column 'site' must be 3 texts, one for each image"),
    ],
)
def test_wrong_ids_and_columns_of_a_data_set(wrong: dict[str, object], message: str) -> None:
    images = Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0]), CLASSES)
    with pytest.raises(BadInput) as caught:
        load_checked(Given(Corpus(replace(images, **wrong))), Path())  # type: ignore[arg-type]
    assert caught.value.problems == (f"data set given: {message}",)


def grouped(groups: str, site: str = "") -> Images:
    """Return images whose groups are these letters, and whose sites are those, if any."""
    images = replace(some_images(len(groups)), columns={"group": tuple(groups)})
    return images if not site else replace(images, columns={**images.columns, "site": tuple(site)})


def test_another_column_of_groups() -> None:
    table, folder = Corpus(grouped("xxyy", "ABBC"), notices=("first",)), Corpus(grouped("xxyy"))
    changed, same, absent = grouped_by("site", [table, folder, None])
    assert changed is not None and changed.train.columns == {"group": tuple("ABBC"), "site": tuple("ABBC")}
    assert changed.notices == ("first", "split.group: column site has 3 groups")
    assert same is folder and absent is None
    assert grouped_by(None, [table, None]) == [table, None]
    parted = Corpus(grouped("xx", "AB"), grouped("yz", "BC"))
    assert grouped_by("site", [parted])[0].test.columns["group"] == ("B", "C")  # type: ignore[union-attr]
    for column, hint in (("Sites", "; did you mean 'site'?"), ("z", "; known: group, site")):
        with pytest.raises(BadInput) as caught:
            grouped_by(column, [None, table])
        assert caught.value.problems == (f"split.group: there is no column {column!r}{hint}",)
    # A column that only the training images have cannot be used.
    with pytest.raises(BadInput):
        grouped_by("site", [Corpus(grouped("xx", "AB"), grouped("yz"))])


def test_groups_in_both_parts_of_a_data_set() -> None:
    assert divided_groups("t", Corpus(grouped("xxyy"))) == ()
    assert divided_groups("t", Corpus(grouped("xxyy"), grouped("zz"))) == ()
    assert divided_groups("t", Corpus(grouped("xxyz"), grouped("wz"))) == (
        "t: 1 group has images in the training and in the test part: z",
    )
    assert divided_groups("t", Corpus(grouped("abcd"), grouped("dbca"))) == (
        "t: 4 groups have images in the training and in the test part: a, b, c and 1 more",
    )
