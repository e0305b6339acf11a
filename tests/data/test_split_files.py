"""split.json: write and read it, and report damaged files and missing images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptkit.data.split_files import Split, SplitPart, positions, read_split, split_text
from adaptkit.errors import BadInput

CLASSES = ("a, b", 'ein "großer" Hund', "猫")
PARTS = {
    "source": SplitPart("folder:photos", ("猫/1.jpg", "a, b/ü 2.png", "a, b/\udcff.png")),
    "clean_test": SplitPart("folder:photos", ("猫/3.jpg",)),
    "pool": SplitPart("digits", (7, 0, 1796)),
    "shifted_test": SplitPart("digits", (1, 2)),
}


def lines(path: Path) -> list[str]:
    with pytest.raises(BadInput) as caught:
        read_split(path)
    return [problem.removeprefix(f"split.file {path}: ") for problem in caught.value.problems]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(split_text(CLASSES, PARTS), encoding="utf-8")
    assert read_split(path) == Split(path, CLASSES, PARTS)
    assert path.read_text(encoding="utf-8").count("folder:photos") == 2
    without_source = {title: PARTS[title] for title in ("pool", "shifted_test")}
    path.write_text(split_text(CLASSES, without_source), encoding="utf-8")
    split = read_split(path)
    assert split.parts == without_source and split.part("pool") == PARTS["pool"]
    with pytest.raises(BadInput, match=r"split.json: it has no source; known: pool, shifted_test$"):
        split.part("source")


@pytest.mark.parametrize("member", ["1.5", "null", "true", '["a"]', "{}"])
def test_damaged_file(member: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    text = split_text(CLASSES, PARTS)
    damaged = [text[:80], "", "[]", "null", '{"classes": [], "parts": []}', '{"classes": "ab", "parts": 1}', "[" * 9999]
    damaged += [text.replace("1796", member), text.replace('"classes": [', '"classes": [1, '), "\ud800"]
    for content in damaged:
        path.write_bytes(content.encode(errors="surrogatepass"))
        assert lines(path) == ["it is not a split.json of a run"], content
    assert lines(tmp_path / "none.json") == ["No such file or directory"]
    assert lines(tmp_path) == ["Is a directory"]


def test_shared_training_and_test_images(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    content = json.loads(split_text(CLASSES, PARTS))
    del content["sha256"]  # as the error message advises
    content["parts"]["shifted_test"]["images"] = [7, 0, 0]
    content["parts"]["sauce"] = content["parts"]["source"]
    path.write_text(json.dumps(content))
    assert lines(path) == [
        "unknown part 'sauce'; did you mean 'source'?",
        "its shifted_test has 1 image more than once",
        "its pool and its shifted_test share 2 images",
    ]


def test_positions_with_new_and_missing_images() -> None:
    part = SplitPart("folder:photos", ("b/2.png", "a/1.png"))
    assert positions(part, ["a/0.png", "a/1.png", "b/2.png"], "folder:p") == [2, 1]
    assert positions(SplitPart("digits", (7, 0)), range(8), "digits") == [7, 0]
    with pytest.raises(BadInput) as caught:
        positions(part, ["a/1.png"], "folder:p")
    assert caught.value.problems == ("split.file: these images are not in folder:p: b/2.png",)
    with pytest.raises(BadInput) as caught:
        positions(SplitPart("digits", tuple(range(-1, 10))), range(3), "digits")
    assert caught.value.problems == ("split.file: these images are not in digits: -1, 3, 4, 5, 6 and 3 more",)
