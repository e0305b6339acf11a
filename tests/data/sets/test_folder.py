"""The data set `folder:PATH`: layouts, bad files, and the record of readable files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from support import photos
from support.photos import CLASSES, make_photos

from adaptkit.contracts import Corpus, Reading
from adaptkit.data import pixels as stored
from adaptkit.data.sets import image_files as verdicts
from adaptkit.data.sets.folder import Folder
from adaptkit.data.sets.image_files import read_picture
from adaptkit.errors import BadInput
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.system.folders import CacheWarning, cache_folder

Cli = Callable[..., Result]
UNUSED = Path("unused")


@pytest.fixture(autouse=True)
def own_verdicts(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty record of readable files."""
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))


def load(path: str = "photos", size: int = 24, skip_bad: bool = False) -> Corpus:
    return Folder(path).at(Reading(size, skip_bad)).load(UNUSED)


def lines(path: str = "photos", **reading: Any) -> list[str]:
    with pytest.raises(BadInput) as caught:
        load(path, **reading)
    return list(caught.value.problems)


def names(corpus: Corpus) -> list[str]:
    return list(corpus.train.pixels.names)  # type: ignore[union-attr]


def fill(*paths: str) -> None:
    """Write a small picture to each of these paths."""
    for number, path in enumerate(paths):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(path, "PNG")


def test_folder_of_photographs(own_folder: Path) -> None:
    make_photos(own_folder / "photos", per_class=5)
    corpus = load(size=24)
    assert corpus.train.classes == tuple(sorted(CLASSES)) and corpus.test is None and corpus.notices == ()
    assert corpus.train.labels.tolist() == [label for label in range(4) for _ in range(5)]
    pixels = corpus.train.pixels
    assert not isinstance(pixels, torch.Tensor) and pixels.shape == (20, 3, 24, 24)
    assert names(corpus)[:3] == ["china/0000.jpg", "china/0001.jpg", "china/0002.png"]
    assert corpus.train.ids == tuple(names(corpus)) and corpus.train.columns == {}
    for index in (0, 7, 19):
        expected = read_picture(own_folder / "photos" / names(corpus)[index], 24)
        assert torch.equal(pixels[index], expected)
    copy = pickle.loads(pickle.dumps(pixels))
    os.chdir("/")
    assert torch.equal(copy[3], pixels[3])


def test_default_size(own_folder: Path) -> None:
    make_photos(own_folder / "photos", per_class=1)
    assert Folder("photos").load(UNUSED).train.pixels.shape == (4, 3, 64, 64)


def test_folder_from_its_name(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = load_plugins()
    Path("a b, ü:c").mkdir()
    monkeypatch.setenv("HOME", str(own_folder))
    Path("t").mkdir()
    assert plugins.components["dataset"]["folder"].shown == "folder:PATH"
    values = {"strategy": "head", "dataset": "folder:a b, ü:c/", "target": "folder:~/t"}
    request = resolve([Layer(values)], plugins)
    assert (request.dataset, request.target) == (Folder("a b, ü:c/"), Folder("~/t"))
    with pytest.raises(BadInput) as caught:
        resolve([Layer({"strategy": "head", "dataset": "folder"})], plugins)
    assert caught.value.problems == ("data set folder needs an argument after a colon: folder:PATH",)
    with pytest.raises(BadInput) as caught:
        resolve([Layer({"strategy": "hed", "dataset": "folder:tt", "target": "t"})], plugins)
    assert caught.value.problems == (
        "unknown strategy 'hed'; did you mean 'head'?",
        "folder:tt: there is no such folder; did you mean 't'?",
        "unknown data set 't'; did you mean 'folder:t'?",
    )


def test_relative_and_home_paths(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(own_folder / "home"))
    fill("home/photos/a/1.png", "home/photos/b/1.png", "here/x/1.png", "here/y/1.png")
    assert load("~/photos").train.classes == ("a", "b")
    assert load("here/../here/").train.classes == ("x", "y")
    assert load(str(own_folder / "here")).train.classes == ("x", "y")


def test_unusual_names_and_system_files() -> None:
    kept = (
        "p/a, b/x y.png",
        "p/a, b/ü/z.png",
        "p/Z/1",
        "p/großer Hund/=.png",
        "p/猫/'\".png",
        "p/e\u0301t\u00e9/1.png",
    )
    fill(*kept, "p/.hidden/1.png", "p/__MACOSX/Z/1.png", "p/Z/.2.png", "p/Z/.trash/3.png", "p/Z/__MACOSX/4.png")
    for name in ("p/Z/Thumbs.db", "p/Z/desktop.ini", "p/.DS_Store", "p/README.txt", "p/labels.csv"):
        Path(name).write_text("no picture")
    corpus = load("p")
    assert corpus.train.classes == ("Z", "a, b", "großer Hund", "\u00e9t\u00e9", "猫")
    assert sorted(names(corpus)) == sorted(name.removeprefix("p/") for name in kept)
    assert corpus.notices == ()


def test_links_and_cycles_of_links(own_folder: Path) -> None:
    fill("elsewhere/1.png", "elsewhere/deep/2.png", "p/b/1.png")
    (own_folder / "p/a").symlink_to(own_folder / "elsewhere")
    (own_folder / "p/b/same.png").symlink_to(own_folder / "p/b/1.png")
    (own_folder / "p/b/up").symlink_to("..")
    (own_folder / "p/b/self").symlink_to(".")
    (own_folder / "p/all").symlink_to(".")
    assert names(load("p")) == ["a/1.png", "a/deep/2.png", "b/1.png", "b/same.png"]


def test_broken_links_and_pipes(own_folder: Path) -> None:
    fill("p/a/1.png", "p/b/1.png")
    (own_folder / "p/a/circle.png").symlink_to("circle.png")
    (own_folder / "p/a/gone.png").symlink_to("nowhere.png")
    os.mkfifo(own_folder / "p/b/pipe.png")  # opening it would block
    assert lines("p")[:-1] == [
        *("p/a/circle.png: a broken link", "p/a/gone.png: a broken link", "p/b/pipe.png: not a file"),
    ]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "valid"),
        ("Training", "Testing"),
        ("TRAIN", "Test"),
        ("train", "validation"),
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("TrainData", "ValData"),
        ("train2017", "val2017"),
        ("cats-train", "cats-eval"),
    ],
)
def test_training_and_test_folders(train: str, test: str) -> None:
    fill(*(f"p/{part}/{label}/{number}.png" for part in (train, test) for label in "ab" for number in range(2)))
    fill(f"p/__MACOSX/{train}/a/1.png", "p/.ipynb_checkpoints/a/1.png", f"p/{train}/.ipynb_checkpoints/1.png")
    corpus = load("p")
    assert corpus.test is not None and corpus.train.classes == corpus.test.classes == ("a", "b")
    assert names(corpus) == [f"{train}/a/0.png", f"{train}/a/1.png", f"{train}/b/0.png", f"{train}/b/1.png"]
    assert corpus.test.pixels.names == tuple(name.replace(train, test) for name in names(corpus))  # type: ignore
    assert corpus.notices == (
        f"folder:p: reads {train} (4 images) as training images, {test} (4 images) as test images",
    )


def test_validation_folder_next_to_a_test_folder() -> None:
    fill(*(f"p/{part}/{label}/{part}.png" for part in ("train", "val", "test") for label in "ab"), "p/loose.png")
    shutil.rmtree("p/val/b")
    corpus = load("p")
    assert names(corpus) == ["train/a/train.png", "val/a/val.png", "train/b/train.png"]
    assert corpus.train.labels.tolist() == [0, 0, 1]
    assert corpus.test is not None and corpus.test.pixels.names == ("test/a/test.png", "test/b/test.png")  # type: ignore
    assert corpus.notices == (
        "folder:p: reads train (2 images) and val (1 image) as training images, test (2 images) as test images",
        "folder:p: the pictures next to train, val and test are not used: loose.png",
    )
    Path("p/test/a").rename("p/test/c")
    assert lines("p") == [
        "folder:p: the classes in test differ from those in train and val: missing 'a'; additional 'c'"
    ]


def test_test_folder_without_labels() -> None:
    fill(*(f"p/{part}/{label}/1.png" for part in ("train", "val") for label in "ab"), "p/test/1.png")
    corpus = load("p")
    assert corpus.test is not None and corpus.test.pixels.names == ("val/a/1.png", "val/b/1.png")  # type: ignore
    assert corpus.notices[1:] == ("folder:p: test is not used, because it has no class folders",)
    shutil.rmtree("p/val")
    assert lines("p") == [
        "folder:p: train and test are names of parts of a data set, but there are no class folders in test; put the "
        "pictures of each class into a subfolder with the name of the class, or use folder:p/train"
    ]


def test_parts_in_the_folders_of_classes() -> None:
    fill(*(f"p/{label}/{part}/1.png" for part in ("train", "val", "test") for label in "ab"))
    corpus = load("p")
    assert names(corpus) == ["a/train/1.png", "a/val/1.png", "b/train/1.png", "b/val/1.png"]
    assert corpus.train.classes == ("a", "b") and corpus.train.labels.tolist() == [0, 0, 1, 1]
    assert corpus.test is not None and corpus.test.pixels.names == ("a/test/1.png", "b/test/1.png")  # type: ignore


def test_classes_with_names_of_parts() -> None:
    fill("p/test/1.png", "p/control/1.png", "q/train/a/1.png", "q/train/b/2.png", "q/bus/a/3.png")
    assert load("p").train.classes == ("control", "test")
    assert load("q").train.classes == ("bus", "train")
    fill(*(f"r/{label}/pictures/1.png" for label in "abc"))
    assert load("r").train.classes == ("a", "b", "c")


def test_thousand_classes() -> None:
    fill(*(f"p/class {number:03}/1.png" for number in range(1000)))
    corpus = load("p", size=8)
    assert len(corpus.train.classes) == 1000 and corpus.train.labels.tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("made", "path", "line"),
    [
        ("photos/a/1.png", "photso", "there is no such folder; did you mean 'photos'?"),
        ("data/photos/a/1.png", "data/photo/a", "there is no such folder; did you mean 'photos'?"),
        ("photos/a/1.png", "xyz", "there is no such folder"),
        ("photos/a/1.png", "photos/a/1.png", "it is a file, not a folder"),
        ("photos/.keep", "photos", "it is empty; put the pictures of each class into a subfolder with the name of the "
         "class"),
        ("photos/a/1.png", "photos", "there is only one class, 'a'; at least two are needed"),
        ("photos/a/b/1.png photos/a/c/1.png", "photos", "there is only one class, 'a'; at least two are needed; "
         "are the classes in folder:photos/a?"),
        ("photos/a/1.png photos/b/.keep", "photos", "class 'b' has no pictures"),
        ("photos/1.png photos/2.jpg photos/3.JPG photos/4.gif photos/a/1.png", "photos", "there are pictures next "
         "to the class folders (1.png, 2.jpg, 3.JPG and 1 more); put the pictures of each class into a subfolder with "
         "the name of the class"),
        ("photos/1.png", "photos", "there are pictures and no class folders (1.png); put the pictures of each class "
         "into a subfolder with the name of the class"),
        ("photos/a\tb/1.png photos/c/1.png", "photos", r"'a\tb' cannot be the name of a class; rename the folder to "
         "printable characters"),
        ("photos/\u00e9/1.png photos/e\u0301/1.png", "photos", "two class folders have the name '\u00e9' in "
         "different Unicode forms; rename one"),
        ("photos/train/a/1.png photos/test/a/1.png photos/new/1.png", "photos", "next to train and test there is new; "
         "move or remove it"),
        ("p/cats_train/1.png p/dogs_train/1.png p/cats_test/1.png p/dogs_test/1.png", "p", "cats_train, dogs_train, "
         "cats_test and dogs_test are names of parts of a data set, but there are no class folders in cats_train, "
         "dogs_train, cats_test and dogs_test; put the pictures of each class into a subfolder with the name of the "
         "class"),
        ("p/val/a/1.png p/val/b/1.png p/test/a/1.png p/test/b/1.png", "p", "val and test are names of parts of a data "
         "set, but there is none for training; rename one of them to train"),
        ("p/fold1/a/1.png p/fold1/b/1.png p/fold2/a/1.png p/fold2/b/1.png p/fold2/c/1.png", "p", "fold1, fold2 hold "
         "the same subfolders (a, b), so they are not classes; use one of them, such as folder:p/fold1, or rename them "
         "to train and test; if they are classes, move their pictures out of the subfolders"),
        ("p/raw/train/a/1.png p/raw/test/a/1.png p/new/train/a/1.png p/new/test/a/1.png", "p", "new, raw hold "
         "the same subfolders (test, train), so they are not classes; use one of them, such as folder:p/new, or rename "
         "them to train and test; if they are classes, move their pictures out of the subfolders"),
        ("p/train/a/1.png p/val/a/1.png", "p", "there is only one class, 'a', in train and val; add another one"),
        ("p/images/train/a/1.png p/images/test/a/1.png", "p", "there is only one class, 'images'; at least two are "
         "needed; are the classes in folder:p/images?"),
    ],
)  # fmt: skip
def test_wrong_layouts(made: str, path: str, line: str) -> None:
    fill(*made.split(" "))
    assert lines(path) == [f"folder:{path}: {line}"]


def test_unreadable_folders(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill("p/a/1.png", "p/b/1.png")
    scandir = os.scandir

    def forbidding(path: Path) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)  # root can read everything
    assert lines("p") == ["folder:p: p/b: Permission denied"]
    assert lines("x" * 300) == [f"folder:{'x' * 300}: File name too long"]


@pytest.fixture
def damaged(own_folder: Path) -> Path:
    """Write photographs and three files that are not pictures."""
    folder = make_photos(own_folder / "photos", per_class=4)
    (folder / "china" / "0001.jpg").write_bytes((folder / "china" / "0000.jpg").read_bytes()[:500])
    (folder / "flower" / "notes.jpg").write_text("these are dahlias")
    (folder / "hopper" / "0000.jpg").write_bytes(b"")
    return folder


def test_bad_files_are_listed(damaged: Path) -> None:
    truncated, *others = lines()
    assert truncated.startswith("photos/china/0001.jpg: damaged: ")
    assert others == [
        "photos/flower/notes.jpg: not a picture in a known format",
        "photos/hopper/0000.jpg: empty (0 bytes)",
        "folder:photos: 3 of 17 files cannot be read; fix or remove them, or skip them with --skip-bad-images",
    ]


def test_bad_files_are_skipped_with_a_notice(damaged: Path) -> None:
    corpus = load(skip_bad=True)
    assert len(corpus.train) == 14
    assert not {"china/0001.jpg", "flower/notes.jpg", "hopper/0000.jpg"} & set(names(corpus))
    (notice,) = corpus.notices
    assert notice.startswith("folder:photos: 3 files skipped: china/0001.jpg (damaged: ")
    assert notice.endswith("), flower/notes.jpg (not a picture in a known format), hopper/0000.jpg (empty (0 bytes))")
    for path in (damaged / "china").glob("*"):
        path.write_bytes(b"")
    assert lines(skip_bad=True) == ["folder:photos: all pictures of class 'china' are skipped; add readable pictures"]


def test_files_of_other_formats_are_named_and_not_read(own_folder: Path) -> None:
    fill("photos/a/1.png", "photos/a/noend", "photos/b/1.png")
    Path("photos/a/notes.txt").write_text("these are dahlias")
    Path("photos/b/table.CSV").write_text("file")
    corpus = load()
    assert names(corpus) == ["a/1.png", "a/noend", "b/1.png"]
    assert corpus.notices == ("folder:photos: 2 files are not images, and are not read: a/notes.txt, b/table.CSV",)
    Path("photos/c").mkdir()
    Path("photos/c/data.hdf5").write_text("")
    assert lines() == ["folder:photos: all pictures of class 'c' are files of other formats; add readable pictures"]


def test_many_bad_files(own_folder: Path) -> None:
    fill("photos/a/1.png", "photos/b/1.png")
    for number in range(120):
        (own_folder / "photos/a" / f"{number:03}.jpg").touch()
    *listed, last = lines()
    assert listed == [f"photos/a/{number:03}.jpg: empty (0 bytes)" for number in range(50)]
    assert last == (
        "folder:photos: 70 more files; 120 of 122 files cannot be read; fix or remove them, or skip them "
        "with --skip-bad-images"
    )


def test_readable_files_are_remembered(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    fault_of = verdicts.fault_of

    def watched(path: Path, size: int) -> str:
        checked.append(path.name)
        return fault_of(path, size)

    monkeypatch.setattr(verdicts, "fault_of", watched)
    lines()
    assert len(checked) == 17
    checked.clear()
    before = lines()
    assert checked == ["0001.jpg", "notes.jpg", "0000.jpg"]  # bad files are not remembered
    shutil.copy(damaged / "hopper" / "0001.jpg", damaged / "hopper" / "0000.jpg")
    (damaged / "gift" / "0000.jpg").write_bytes(b"broken since")
    after = lines()
    assert [line.partition(":")[0] for line in after] == [
        *("photos/china/0001.jpg", "photos/flower/notes.jpg", "photos/gift/0000.jpg", "folder")
    ]
    assert after[:2] == before[:2]


def test_damaged_or_unwritable_record(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(own_folder / "photos", per_class=2)
    load()
    (record,) = (cache_folder() / "pictures").iterdir()
    sound = json.loads(record.read_text())
    for content in ("", "[]", "{}", '{"circumstances": 1}', "null", json.dumps(sound | {"sound": [1]}), "[" * 99999):
        record.write_text(content)
        with pytest.warns(CacheWarning, match="is damaged and is computed again"):
            assert len(load().train) == 8
        assert json.loads(record.read_text()) == sound
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "photos" / "china" / "0000.jpg"))
    assert len(load().train) == 8


def test_number_of_remembered_folders(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "KEPT_FOLDERS", 3)
    for number in range(6):
        fill(f"p{number}/a/1.png", f"p{number}/b/1.png")
        load(f"p{number}")
    assert len(list((cache_folder() / "pictures").iterdir())) == 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worker_processes_report_the_same_problems(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = lines()
    monkeypatch.setattr(stored, "worker_count", lambda images, piece_bytes: 2)
    assert lines() == alone


def test_picture_deleted_after_the_check(own_folder: Path) -> None:
    make_photos(own_folder / "photos", per_class=2)
    corpus = load()
    (own_folder / "photos" / "gift" / "0001.jpg").unlink()
    with pytest.raises(BadInput) as caught:
        stored.loaded(corpus.train)
    assert caught.value.problems == (f"{own_folder}/photos/gift/0001.jpg: there is no such file",)


@pytest.mark.slow
def test_run_with_two_folders(own_folder: Path, cli: Cli) -> None:
    make_photos(own_folder / "photos", per_class=40)
    make_photos(own_folder / "dark ones", per_class=30, seed=1, shifted=True)
    (own_folder / "dark ones" / "gift" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = [
        *("run", "-s", "head", "--dataset", "folder:photos", "--target", "folder:dark ones", "--image-size", "32"),
        *("--augment", "flip=0.5,crop=0.7", "--set", "base.epochs=3", "--epochs", "2", "--no-track", "--json"),
    ]
    refused = cli(*arguments)
    assert refused.exit_code == 2
    assert refused.stderr.splitlines() == [
        "Error: dark ones/gift/broken.jpg: not a picture in a known format",
        "Error: folder:dark ones: 1 of 121 files cannot be read; fix or remove them, or skip them with "
        "--skip-bad-images",
    ]
    done = cli(*arguments, "--skip-bad-images")
    assert done.exit_code == 0, done.stderr
    assert "folder:dark ones: 1 file skipped: gift/broken.jpg" in done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert (plan["dataset"], plan["target"]) == ("folder:photos", "folder:dark ones")
    assert plan["classes"] == sorted(CLASSES)


def test_photographs_of_tests_repeat(own_folder: Path) -> None:
    one, other = (make_photos(own_folder / name, per_class=2, classes=tuple("abcdef")) for name in ("one", "other"))
    files = sorted(path.relative_to(one) for path in one.rglob("*.*"))
    assert len(files) == 12 and all((one / file).read_bytes() == (other / file).read_bytes() for file in files)
    assert len({(one / file).read_bytes() for file in files}) == 12
    assert len(photos.photographs()) == len(CLASSES)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"p\d+", ("p1", "p1", "p2", "p2")),
        (r"p(\d+)_", ("1", "1", "2", "2")),
        (r"^(?:x|(p\d))", ("p1", "p1", "p2", "p2")),
        (r"([ab])/", ("a", "a", "b", "b")),
    ],
)
def test_groups_in_file_names(pattern: str, expected: tuple[str, ...]) -> None:
    fill("p/a/p1_x.png", "p/a/p1_y.png", "p/b/p2_x.png", "p/b/p2_y.png")
    corpus = Folder("p").at(Reading(8, group=pattern)).load(UNUSED)
    assert corpus.train.columns == {"group": expected}
    assert corpus.notices == ("folder:p: 2 groups in the names of 4 files",)


def test_names_without_a_group() -> None:
    fill("p/train/a/p1.png", "p/train/b/2.png", "p/test/a/p3.png", "p/test/b/x.png")
    for pattern, count in ((r"p\d", 2), (r"p(\d)?", 2), (r"p(x)?", 4)):
        with pytest.raises(BadInput) as caught:
            Folder("p").at(Reading(8, group=pattern)).load(UNUSED)
        (line,) = caught.value.problems
        assert line.startswith(f"folder.group: {pattern!r} finds no group in {count} of 4 file names of folder:p: ")
    assert line.endswith(": train/a/p1.png, train/b/2.png, test/a/p3.png and 1 more")
    corpus = Folder("p").at(Reading(8, group=".")).load(UNUSED)
    assert corpus.test is not None and corpus.test.columns == {"group": ("p", "x")}
    Path("p/train/a/notes.png").write_text("no picture")
    assert load_grouped("[p2x]", skip_bad=True).train.columns == {"group": ("p", "2")}


def load_grouped(pattern: str, skip_bad: bool = False) -> Corpus:
    return Folder("p").at(Reading(8, skip_bad, group=pattern)).load(UNUSED)


def test_group_setting(cli: Cli) -> None:
    for number in range(40):
        fill(f"p/{'ab'[number % 2]}/{number // 4}-{number}.png")
    common = (
        "run",
        "-s",
        "head",
        "--dataset",
        "none",
        "--weights",
        "none",
        "--target",
        "folder:p",
        "--no-track",
        "--dry-run",
        "--set",
    )
    result = cli(*common, "folder.group=^[^-]+")
    assert result.exit_code == 0 and "Note: folder:p: 10 groups in the names of 40 files" in result.output
    result = cli(*common, "folder.group=(")
    message = "Error: folder.group: not a regular expression: missing ), unterminated subpattern at position 0\n"
    assert (result.exit_code, result.stderr) == (2, message)
