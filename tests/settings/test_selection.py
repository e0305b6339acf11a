"""`NAME?COLUMN=VALUE`: which part of a name is a selection, and which rows it selects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from adaptkit.contracts import Corpus, Images, Reading
from adaptkit.errors import BadInput
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.settings.selection import Selected, parse_selection, split_name

Cli = Callable[..., Result]

#: a data set of the user with two columns
PLUGIN = """
import torch
from adaptkit import hookimpl
from adaptkit.contracts import Corpus, Images


class Survey:
    name = "survey"

    def load(self, data_dir):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (120, 1, 8, 8), generator=generator, dtype=torch.uint8)
        columns = {
            "site": tuple("AB"[number // 60] for number in range(120)),
            "patient": tuple(str(number // 4) for number in range(120)),
        }
        return Corpus(Images(pixels, torch.arange(120) % 2, ("a", "b"), columns=columns))


@hookimpl
def adaptkit_datasets():
    return [Survey]
"""


@dataclass(frozen=True)
class Given:
    """A data set in memory."""

    corpus: Corpus
    name: str = "given"

    def load(self, data_dir: Path) -> Corpus:
        return self.corpus


def images(*rows: str) -> Images:
    """Return images by rows such as `a A 2020`: class, site and year."""
    values = [row.split() for row in rows]
    classes = ("a", "b", "c")
    return Images(
        torch.arange(len(rows), dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 4, 4),
        torch.tensor([classes.index(label) for label, *_ in values]),
        classes,
        ids=tuple(map(str, range(len(rows)))),
        columns={"site": tuple(row[1] for row in values), "year": tuple(row[2] for row in values)},
    )


TRAIN = images("a A 2020", "b A 2021", "b B 2020", "c B 2020", "c A 2020", "b A 2020")
TEST = images("b A 2020", "c B 2020", "c A 2022")


def select(text: str, test: Images | None = None) -> Corpus:
    name = f"given?{text}"
    return Selected(name, Given(Corpus(TRAIN, test, ("a notice",))), parse_selection(name)).load(Path())


def problems(text: str, test: Images | None = None) -> tuple[str, ...]:
    with pytest.raises(BadInput) as caught:
        select(text, test)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("site=A", "0145"),
        ("site=A&year=2020", "045"),
        ("site=A&site=B", "012345"),
        ("site=B&year=2020", "23"),
        ("s%69te=%41", "0145"),
    ],
)
def test_selected_rows(text: str, ids: str) -> None:
    train = select(text).train
    assert "".join(train.ids or ()) == ids
    for position, number in enumerate(map(int, ids)):
        assert torch.equal(train.pixels[position], TRAIN.pixels[number])
        assert train.classes[int(train.labels[position])] == TRAIN.classes[int(TRAIN.labels[number])]
        assert train.columns["year"][position] == TRAIN.columns["year"][number]
    assert select(text).notices == ("a notice", f"given?{text}: {len(ids)} of 6 images")


def test_names_of_stored_images() -> None:
    @dataclass(frozen=True)
    class Stored:
        shape: tuple[int, int, int, int] = (6, 1, 4, 4)
        names: tuple[str, ...] | None = ("p", "q", "r", "s", "t", "u")

        def __getitem__(self, index: int) -> torch.Tensor:
            return TRAIN.pixels[index]

    def names(stored: Stored) -> object:
        name = "given?site=A"
        train = Selected(name, Given(Corpus(replace(TRAIN, pixels=stored))), parse_selection(name)).load(Path()).train
        return getattr(train.take(torch.tensor([3, 0])).pixels, "names", None)

    assert names(Stored()) == ["u", "p"]
    assert names(Stored(names=None)) is None


def test_classes_of_selected_rows() -> None:
    corpus = select("site=B")
    assert corpus.train.classes == ("b", "c") and corpus.train.labels.tolist() == [0, 1]
    assert problems("year=2021") == ("given?year=2021: there is only one class, 'b'; at least two are needed",)


def test_test_images_are_selected_too() -> None:
    corpus = select("site=A", TEST)
    assert corpus.test is not None and corpus.test.ids == ("0", "2") and corpus.notices[-1].endswith(": 6 of 9 images")
    assert corpus.test.classes == corpus.train.classes
    assert select("year=2020&site=A&site=B", TRAIN).test is not None
    assert select("site=A", images("b B 2020")).test is None  # no test image is left
    assert problems("site=B", images("a B 2020", "b B 2020")) == (
        "given?site=B: the test images have classes without training images: 'a'",
    )


def test_unknown_columns_and_values() -> None:
    assert problems("Sit=A&year=2002&site=C") == (
        "given?Sit=A&year=2002&site=C: there is no column 'Sit'; did you mean 'site'?",
        "given?Sit=A&year=2002&site=C: column year has no value '2002'; did you mean '2021'?",
        "given?Sit=A&year=2002&site=C: column site has no value 'C'; known: A, B",
    )
    assert problems("site=B&year=2021") == ("given?site=B&year=2021: no image has all of these values",)
    name = "digits?site=A"
    plain = Images(TRAIN.pixels, TRAIN.labels, TRAIN.classes)
    with pytest.raises(BadInput) as caught:
        Selected(name, Given(Corpus(plain)), parse_selection(name)).load(Path())
    assert caught.value.problems == ("digits?site=A: the data set has no columns to select rows by",)


def test_many_known_values() -> None:
    many = images(*(f"{'ab'[number % 2]} x {number:03}" for number in range(50)))
    with pytest.raises(BadInput) as caught:
        Selected("many?year=z", Given(Corpus(many)), {"year": ("z",)}).load(Path())
    assert str(caught.value).endswith("known: " + ", ".join(f"{number:03}" for number in range(20)) + " and 30 more")


@pytest.mark.parametrize("name", ["digits?", "digits?site", "digits?=A", "digits?site=A&", "digits?site=A&&year=1"])
def test_malformed_selections(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        resolve([Layer({"strategy": "head", "target": name})], load_plugins())
    assert caught.value.problems == (f"{name}: a selection of rows is written digits?COLUMN=VALUE",)


def test_question_marks_in_paths(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(own_folder))
    for path in ("plain.csv", "what?.csv", "a?b=c.csv"):
        Path(path).write_text("path,label\n")
    for name, expected in (
        ("digits", ("digits", "")),
        ("digits?time=12:30", ("digits", "time=12:30")),
        ("table:plain.csv?a=b", ("table:plain.csv", "a=b")),
        ("table:plain.csv?a=b?c", ("table:plain.csv", "a=b?c")),
        ("table:what?.csv", ("table:what?.csv", "")),
        ("table:what?.csv?a=b", ("table:what?.csv", "a=b")),
        ("table:~/a?b=c.csv", ("table:~/a?b=c.csv", "")),
        ("table:a?b=c.csv?d=e&f=?", ("table:a?b=c.csv", "d=e&f=?")),
        ("table:missing.csv?a=b", ("table:missing.csv", "a=b")),
        (f"table:{'x' * 5000}?a=b", (f"table:{'x' * 5000}", "a=b")),
    ):
        assert split_name(name) == expected
    request = resolve(
        [Layer({"strategy": "head", "dataset": "none", "weights": "none", "target": "table:what?.csv"})], load_plugins()
    )
    assert not isinstance(request.target, Selected)


def test_problems_of_data_sets_below_a_selection(own_folder: Path) -> None:
    Path("labels.csv").write_text("path,label\n")
    with pytest.raises(BadInput) as caught:
        values = {"strategy": "head", "dataset": "digit?a=b", "target": "table:label.csv?a=b"}
        resolve([Layer(values)], load_plugins())
    assert caught.value.problems == (
        "unknown data set 'digit'; did you mean 'digits'?",
        "table:label.csv: there is no such file; did you mean 'labels.csv'?",
    )


def test_configuration_reaches_the_data_set() -> None:
    @dataclass(frozen=True)
    class Sized(Given):
        size: int = 0

        def at(self, reading: Reading) -> Sized:
            return Sized(self.corpus, size=reading.size)

    selected = Selected("sized?site=A", Sized(Corpus(TRAIN)), {"site": ("A",)}).at(Reading(5))
    assert isinstance(selected.dataset, Sized) and selected.dataset.size == 5
    assert Selected("given?site=A", Given(Corpus(TRAIN)), {"site": ("A",)}).at(Reading(5)).load(Path()).train.ids


@pytest.mark.usefixtures("own_folder")
def test_selected_rows_and_groups_of_a_plugin(cli: Cli) -> None:
    Path("survey.py").write_text(PLUGIN)
    common = (
        "run",
        "-s",
        "head",
        "--dataset",
        "none",
        "--weights",
        "none",
        "--no-track",
        "--dry-run",
        "--plugin",
        "survey.py",
    )

    def plan(*arguments: str) -> Any:
        result = cli(*common, *arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    selected = plan("--target", "survey?site=A")
    assert (selected["protocol"], selected["pool_images"]) == ("folds", 60)
    assert "survey?site=A: 60 of 120 images" in selected["notices"]
    grouped = plan("--target", "survey?site=A", "--set", "split.group=patient")
    assert "split.group: column patient has 15 groups" in grouped["notices"]
    result = cli(*common, "--target", "survey?sight=A")
    message = "Error: survey?sight=A: there is no column 'sight'; did you mean 'site'?\n"
    assert (result.exit_code, result.stderr) == (2, message)
