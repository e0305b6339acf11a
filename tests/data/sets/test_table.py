"""The data set `table:FILE`: formats, columns, splits, and what is wrong with rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
import torch
from click.testing import Result
from PIL import Image
from pyarrow import parquet

from adaptkit.contracts import Corpus, Reading
from adaptkit.data.sets.table import Table
from adaptkit.errors import BadInput

Cli = Callable[..., Result]
UNUSED = Path("unused")


@pytest.fixture(autouse=True)
def own_verdicts(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty record of readable files."""
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))


def picture(path: str, level: int = 0) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (8, 8), (level, 0, 0))
    image.putpixel((level % 8, level // 8 % 8), (0, 255, level))
    image.save(path, "PNG")


def table(*lines: str, name: str = "x.csv", pictures: Sequence[str] = ("1.png", "2.png", "3.png", "4.png")) -> str:
    """Write a table and small pictures next to it."""
    for level, path in enumerate(pictures):
        picture(path, level)
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def load(path: str = "x.csv", *, skip_bad: bool = False, **columns: str) -> Corpus:
    return Table(path).at(Reading(8, skip_bad, columns=columns)).load(UNUSED)


def problems(path: str = "x.csv", **options: Any) -> list[str]:
    with pytest.raises(BadInput) as caught:
        load(path, **options)
    return list(caught.value.problems)


def labels(corpus: Corpus) -> dict[str, str]:
    """Return the label of each training image by its id."""
    train = corpus.train
    return {name: train.classes[label] for name, label in zip(train.ids or (), train.labels.tolist(), strict=True)}


def test_images_labels_groups_and_domains(own_folder: Path) -> None:
    lines = ("path,class,patient,site,age", "2.png,b,p1,A,30", "1.png,a,p2,B,40", "3.png,a,p1,A,50", "4.png,b,p3,A,60")
    corpus = load(table(*lines))
    assert corpus.train.classes == ("a", "b") and corpus.test is None
    assert corpus.train.ids == ("1.png", "3.png", "2.png", "4.png")
    assert corpus.train.labels.tolist() == [0, 0, 1, 1]
    assert corpus.train.columns == {
        "patient": ("p2", "p1", "p1", "p3"),
        "group": ("p2", "p1", "p1", "p3"),
        "site": ("B", "A", "A", "A"),
        "domain": ("B", "A", "A", "A"),
        "age": ("40", "50", "30", "60"),
    }
    assert corpus.notices == (
        "table:x.csv: image=path, label=class, group=patient, domain=site; 4 images, 2 classes, 3 groups, 2 domains",
    )
    shuffled = load(table(lines[0], *reversed(lines[1:]), name="y.csv"))
    assert (shuffled.train.ids, shuffled.train.columns) == (corpus.train.ids, corpus.train.columns)
    os.chdir("/")  # workers can have another folder
    assert torch.equal(
        corpus.train.pixels[2][1], torch.eye(8, dtype=torch.uint8)[1][None] * 255 * torch.eye(8)[0][:, None]
    )


def test_paths_are_relative_to_the_file(own_folder: Path) -> None:
    files = ("data/in/a.png", "elsewhere/b.png", "data/c d,é.png")
    rows = ("in/a.png,x", f"{own_folder}/elsewhere/b.png,y", '"c d,é.png",y', "./in/../in\\a.png,x")
    corpus = load(table("file,label", *rows, name="data/x.csv", pictures=files))
    assert labels(corpus) == {"in/a.png": "x", f"{own_folder}/elsewhere/b.png": "y", "c d,é.png": "y"}
    assert corpus.notices[1] == "table:data/x.csv: rows that repeat an image are left out: line 5"


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.parquet"])
def test_labels_stay_text(name: str) -> None:
    values = ["007", "NA", "nan", "true", "1.0", "None", "null", "1e5"]
    paths = [f"{number}.png" for number in range(len(values))]
    for level, path in enumerate(paths):
        picture(path, level)
    frame = pandas.DataFrame({"path": paths, "label": values, "split": "train"})
    if name.endswith("parquet"):
        frame.to_parquet(name)
    else:
        frame.to_csv(name, index=False, sep="\t" if name.endswith("tsv") else ",")
    corpus = load(name)
    assert labels(corpus) == dict(zip(paths, values, strict=True))
    assert corpus.test is None and len(corpus.notices) == 1


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([0, 1, 10], ("0", "1", "10")),
        ([0.0, 1.0, 10.0], ("0", "1", "10")),
        ([True, False, True], ("False", "True")),
        (pandas.Categorical(["b", "a", "b"]), ("a", "b")),
        (pandas.array([2**60 + 1, 1, 1], dtype="Int64"), ("1", "1152921504606846977")),
        (
            pandas.to_datetime(["2020-01-01", "2021-01-01", "2021-01-01"]),
            ("2020-01-01 00:00:00", "2021-01-01 00:00:00"),
        ),
    ],
)
def test_labels_in_parquet(column: Any, expected: tuple[str, ...]) -> None:
    for level in range(3):
        picture(f"{level}.png", level)
    pandas.DataFrame({"Image": ["0.png", "1.png", "2.png"], "TARGET": column}, index=[5, 6, 7]).to_parquet("x.parquet")
    corpus = load("x.parquet")
    assert corpus.train.classes == expected
    assert corpus.train.columns == {}


def test_parquet_with_missing_values_and_images_inside() -> None:
    picture("0.png")
    columns = {"path": ["0.png", None, "2.png"], "label": [1.0, 2.0, float("nan")]}
    pandas.DataFrame(columns).to_parquet("x.parquet")
    assert problems("x.parquet") == [
        "table:x.parquet, row 2: path is empty",
        "table:x.parquet, row 3: label is empty",
    ]
    inside = pyarrow.table({"image": [{"bytes": b"x", "path": "0.png"}], "label": ["a"]})
    parquet.write_table(inside, "y.parquet")
    kind = "struct<bytes: binary, path: string>"
    assert problems("y.parquet") == [
        f"table:y.parquet: column 'image' holds {kind}, not text; images must be files of their own"
    ]
    Path("z.parquet").write_bytes(b"path,label\n")
    assert problems("z.parquet")[0].startswith("table:z.parquet: it cannot be read as Parquet: ")


@pytest.mark.parametrize(
    "content",
    [
        "path;label\n1.png;a\n2.png;b,c\n",
        '\ufeffpath,label\r\n1.png,a\r\n2.png,"b,c"\r\n',
        "path\tlabel\n1.png\ta\n2.png\tb,c\n",
        "path|label\n\n1.png|a\n  \n2.png|b,c",
        ' path , label \n 1.png , a\n2.png, "b,c"\n,\n',
        "path;label;;\n1.png;a;;\n2.png;b,c;;\n;;;\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_separators_quotes_and_encodings(content: str, encoding: str) -> None:
    table()
    Path("x.csv").write_bytes(content.encode(encoding))
    corpus = load()
    assert labels(corpus) == {"1.png": "a", "2.png": "b,c"} and corpus.train.columns == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": it is empty"),
        (b"\n \n", ": it is empty"),
        (b"path,label\n", ": it has no rows below its header"),
        (b"path,label\n1.png,a\n2.png,\xe9\n", ", line 3: it is not UTF-8 text; save the table as CSV in UTF-8"),
        (b"PK\x03\x04\0\0", ": it is not a text file; save the table as CSV in UTF-8"),
        (b'path,label\n1.png,a\n"2.png,b\n', ", line 3: unexpected end of data"),
        (b"path,label,x,x\n1.png,a,,\n", ": several columns have the name 'x'; rename them"),
        (b"path,label\n1.png\n2.png,a,b\n", ", line 2: the row has 1 cells, but the header has 2"),
        (
            b"name,kind\n1.png,a\n",
            ": no column is named path, file, image or filename; name the column of the images with "
            "--set table.image=COLUMN; columns: name, kind",
        ),
        (
            b"path,file,label\n1.png,1.png,a\n",
            ": columns 'path' and 'file' may both be the image; choose one with --set table.image=path",
        ),
        (
            b"path,label,Patient,SOURCE\n1.png,a,,\n",
            ": columns 'Patient' and 'SOURCE' may both be the group; choose one with --set table.group=Patient",
        ),
        (b"path,label\n1.png,a\n2.png,a\n", ": there is only one class, 'a'; at least two are needed"),
    ],
)
def test_files_that_are_no_tables(content: bytes, message: str) -> None:
    table()
    Path("x.csv").write_bytes(content)
    assert problems()[0] == f"table:x.csv{message}"


def test_chosen_columns() -> None:
    header = "path,thumb,class,kind,source,none"
    table(header, "1.png,x,a,k,s,1", "2.png,y,b,l,s,2", "3.png,z,b,k,t,3")
    corpus = load(label="kind", id="thumb", group="none")
    assert labels(corpus) == {"x": "k", "y": "l", "z": "k"}
    assert corpus.train.columns["group"] == ("1", "3", "2")
    assert (
        corpus.notices[0] == "table:x.csv: image=path, label=kind, group=none, id=thumb; 3 images, 2 classes, 3 groups"
    )
    # A column that the user chose for one purpose is not taken for another one.
    assert "group" not in load(label="source").train.columns
    assert problems(image="pth", split="knd") == [
        "table.image: table:x.csv has no column 'pth'; did you mean 'path'?",
        "table.split: table:x.csv has no column 'knd'; did you mean 'kind'?",
    ]
    table("path,label,group", "1.png,a,g", "2.png,b,g", name="y.csv")
    assert load("y.csv", group="none").train.columns == {"group": ("g", "g")}
    assert load("y.csv", group="none").notices == ("table:y.csv: image=path, label=label; 2 images, 2 classes",)
    assert problems("y.csv", image="none") == ["table.image: table:y.csv needs a column for it"]


def test_all_wrong_rows_at_once() -> None:
    table(
        "path,label,split,group,id",
        *("1.png,a,train,g,1", "missing.png,a,train,g,2", "2.png,,train,g,3", ",b,train,g,4", "3.png,b,trian,g,5"),
        *("1.png,b,train,g,6", "4.png,b,train,,7", "1.png,a,test,g,1", "2.png,b,test,g,1", "3.png,b,,g,8"),
        *("4.png,b,train,h", "5.png,a,train,g,9", "./1.png,a,train,h,1"),
        pictures=("1.png", "2.png", "3.png", "4.png"),
    )
    Path("5.png").write_text("no picture")
    assert problems() == [
        "table:x.csv, line 3: missing.png: there is no such file",
        "table:x.csv, line 4: label is empty",
        "table:x.csv, line 5: path is empty",
        "table:x.csv, line 6: split is 'trian', not train, val or test",
        "table:x.csv, line 7: image 1.png has two labels: 'b' here, 'a' in line 2",
        "table:x.csv, line 8: group is empty; --set table.group=none ignores the column",
        "table:x.csv, line 9: image 1.png is in test here and in train in line 2",
        "table:x.csv, line 10: id '1' is also in line 2; an id stands for one image",
        "table:x.csv, line 11: split is '', not train, val or test",
        "table:x.csv, line 12: the row has 4 cells, but the header has 5",
        "table:x.csv, line 13: 5.png: not a picture in a known format",
        "table:x.csv, line 14: image 1.png has another group than in line 2",
        "table:x.csv: 12 problems; --skip-bad-images leaves out only the 2 files that cannot be read",
    ]


def test_many_wrong_rows() -> None:
    table("path,label", *(f"{number}.png," for number in range(100)))
    lines = problems()
    assert len(lines) == 21 and lines[0] == "table:x.csv, line 2: label is empty"
    assert lines[-1] == "table:x.csv: 80 more problems, 100 in all"


def test_unreadable_images_are_skipped_on_request() -> None:
    table("path,label", "1.png,a", "2.png,b", "gone.png,a", "3.png,b", "4.png,a")
    Path("3.png").write_bytes(b"")
    corpus = load(skip_bad=True)
    assert labels(corpus) == {"1.png": "a", "2.png": "b", "4.png": "a"}
    assert corpus.notices[1:] == (
        "table:x.csv: 2 files skipped: gone.png (there is no such file), 3.png (empty (0 bytes))",
    )
    assert problems()[-1] == "table:x.csv: 2 problems; --skip-bad-images leaves out files that cannot be read"
    table("path,label", "1.png,a", "3.png,b")
    Path("3.png").write_bytes(b"")
    assert problems(skip_bad=True) == ["table:x.csv: all pictures of class 'b' are skipped; add readable pictures"]
    table("path,label", "1.png,a", "3.png,b", "2.png,")
    Path("3.png").write_bytes(b"")
    assert problems(skip_bad=True) == ["table:x.csv, line 4: label is empty"]
    assert problems()[-1] == "table:x.csv: 2 problems; --skip-bad-images leaves out only the 1 file that cannot be read"


@pytest.mark.parametrize(
    ("values", "test", "notice"),
    [
        (["train", "train", "test", "test"], "34", "train (2 images) as training images, test (2 images)"),
        (
            ["Training", "Training", "VAL", "val"],
            "34",
            "Training (2 images) as training images, VAL (1 image) and val (1 image)",
        ),
        (
            ["trainset", "val", "evaluation", "Test"],
            "34",
            "trainset (1 image) and val (1 image) as training images, Test (1 image) and evaluation (1 image)",
        ),
        (["train"] * 4, "", ""),
    ],
)
def test_split(values: list[str], test: str, notice: str) -> None:
    rows = (f"{number}.png,{'ab'[number % 2]},{value}" for number, value in enumerate(values, 1))
    corpus = load(table("path,label,set", *rows))
    tested = "" if corpus.test is None else "".join(sorted(name[0] for name in corpus.test.ids or ()))
    assert tested == test
    assert sorted(corpus.train.ids or ()) == [f"{number}.png" for number in range(1, 5) if str(number) not in test]
    assert corpus.notices[1:] == ((f"table:x.csv: reads {notice} as test images",) if notice else ())


def test_wrong_splits() -> None:
    table("path,label,set", "1.png,a,north", "2.png,b,south")
    assert problems() == [
        "table:x.csv: column 'set' has no value train, so no images to train on; rename its values to train, val and "
        "test, or ignore it with --set table.split=none"
    ]
    assert load(split="none").train.columns == {"set": ("north", "south")}
    table("path,label,set", "1.png,a,train", "2.png,b,train", "3.png,a,test", "4.png,c,test")
    assert problems() == [
        "table:x.csv: the classes in test differ from those in train: missing 'b'; additional 'c'",
    ]


def test_missing_files() -> None:
    table(name="labels.csv")
    Path("folder.csv").mkdir()
    for path, message in (
        ("label.csv", "there is no such file; did you mean 'labels.csv'?"),
        ("nowhere/label.csv", "there is no such file"),
        ("folder.csv", "it is a folder; folder:PATH reads pictures in class folders"),
        ("1.png", "a table is a file .csv, .tsv or .parquet; save it in one of these formats"),
    ):
        with pytest.raises(BadInput) as caught:
            Table(path)
        assert caught.value.problems == (f"table:{path}: {message}",)


COMMON = ("run", "-s", "head", "--backbone", "small_cnn", "--image-size", "16", "--no-track", "--dry-run")


def survey(name: str = "survey.csv") -> None:
    """Write a table of 48 images of two classes at two sites, in groups of four."""
    rows = []
    for number in range(48):
        picture(f"images/{number}.png", number)
        rows.append(f"images/{number}.png,{'ab'[number % 2]},{number // 4},{'AB'[number // 24]}")
    Path(name).write_text("\n".join(["Path,Class,Patient,Site", *rows]))


def notices(cli: Cli, *arguments: str) -> list[str]:
    result = cli(*COMMON, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: list[str] = json.loads(result.stdout)["notices"]
    return found


@pytest.mark.usefixtures("own_folder")
def test_plan_of_a_table(cli: Cli) -> None:
    survey()
    shown = "image=Path, label=Class, group=Patient, domain=Site; 48 images, 2 classes, 12 groups, 2 domains"
    assert f"table:survey.csv: {shown}" in notices(
        cli, "--dataset", "none", "--weights", "none", "--target", "table:survey.csv"
    )
    chosen = notices(
        *(cli, "--dataset", "none", "--weights", "none", "--target", "table:survey.csv", "--set", "table.group=none"),
        *("--set", "table.label=Site", "--set", "split.group=Patient"),
    )
    assert "table:survey.csv: image=Path, label=Site; 48 images, 2 classes" in chosen
    assert "split.group: column Patient has 12 groups" in chosen
    text = cli(*COMMON, "--dataset", "none", "--weights", "none", "--target", "table:survey.csv").output
    assert "Note: table:survey.csv: image=Path, label=Class" in text


@pytest.mark.usefixtures("own_folder")
def test_from_one_site_to_another(cli: Cli) -> None:
    survey()
    found = notices(cli, "--dataset", "table:survey.csv?Site=A", "--target", "table:survey.csv?Site=B")
    assert "table:survey.csv?Site=A: 24 of 48 images" in found and "table:survey.csv?Site=B: 24 of 48 images" in found
    assert sum(line.startswith("table:survey.csv: image=Path") for line in found) == 1


@pytest.mark.usefixtures("own_folder")
def test_errors_of_a_table(cli: Cli) -> None:
    survey()
    for arguments, lines in (
        (("--target", "survey.csv"), ["unknown data set 'survey.csv'; did you mean 'table:survey.csv'?"]),
        (("--target", "table"), ["data set table needs an argument after a colon: table:FILE"]),
        (
            ("--target", "table:survey.csv", "--set", "table.grup=Site"),
            ["unknown key 'table.grup'; did you mean 'table.group'?"],
        ),
        (
            ("--target", "table:survey.csv", "--set", "split.group=Sit"),
            ["split.group: there is no column 'Sit'; did you mean 'Site'?"],
        ),
        (
            ("--target", "digits", "--set", "table.image=Path", "--set", "folder.group=x"),
            [
                "table.image: no data set is a table; it needs --dataset or --target table:FILE",
                "folder.group: no data set is a folder; it needs --dataset or --target folder:PATH",
            ],
        ),
    ):
        result = cli(*COMMON, "--dataset", "none", "--weights", "none", *arguments)
        assert (result.exit_code, result.stderr.splitlines()) == (2, [f"Error: {line}" for line in lines])


@pytest.mark.usefixtures("own_folder")
def test_params_hold_the_chosen_columns(cli: Cli) -> None:
    from adaptkit.plugins.loading import load_plugins
    from adaptkit.settings.resolve import Layer, resolve

    survey()
    values = {"strategy": "head", "dataset": "none", "weights": "none", "target": "table:survey.csv"}
    plugins = load_plugins()
    plain = resolve([Layer(values)], plugins)
    assert not [
        key for key in plain.run_params(plain.arms[0], 0) if key.startswith(("table.", "folder.", "split.group"))
    ]
    chosen = resolve([Layer(values | {"table.group": "Site", "split.group": "Patient"})], plugins)
    params = chosen.run_params(chosen.arms[0], 0)
    assert (params["table.group"], params["split.group"]) == ("Site", "Patient")
    again = resolve([Layer(chosen.config(params) | {"strategy": "head"})], plugins)
    assert (again.settings.table, again.settings.split) == (chosen.settings.table, chosen.settings.split)
