"""The table of a run's predictions: its columns, odd names, and tables of earlier versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import pandas
import pytest

from adaptkit.events import Predictions, RunResult
from adaptkit.tracking.predictions import classes_of, read_predictions, read_table, write_predictions

CLASSES = ("accuracy", 'a,\n"b"', "truth", "ünï ☃")
SHARES = numpy.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [1e-9, 0, 1 - 1e-9, 0]], dtype=numpy.float32)
SHIFTED = Predictions(
    image=numpy.array([5, 3, 9]),
    truth=numpy.array([3, 0, 1]),
    predicted=SHARES.argmax(1),
    confidence=SHARES.max(1),
    base_predicted=numpy.array([1, 0, 1]),
    probabilities=SHARES,
    ids=("x/1.png", "x/\udcff, 2.jpg", "y/3.tiff"),
    groups=("p1", "p1", ""),
    fold=numpy.array([0, 1, 0]),
)
CLEAN = Predictions(
    image=numpy.array([0]),
    truth=numpy.array([2]),
    predicted=numpy.array([2]),
    confidence=numpy.array([1.0]),
    probabilities=SHARES[2:],
)
ALWAYS = ["image", "test_set", "group", "fold", "truth", "prediction", *(f"p_{name}" for name in CLASSES)]


def written(folder: Path, **predictions: Predictions) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Write the predictions; return the CSV and the Parquet file as pandas reads them."""
    write_predictions(folder, RunResult(metrics={}, epochs=(), predictions=predictions, classes=CLASSES, config=""))
    return (
        pandas.read_csv(folder / "predictions.csv", keep_default_na=False),
        pandas.read_parquet(folder / "predictions.parquet"),
    )


def test_columns_of_both_files(tmp_path: Path) -> None:
    table, columns = written(tmp_path, clean=CLEAN, shifted=SHIFTED)
    assert list(table) == list(columns) == ["path", *ALWAYS, "base_prediction"]
    assert columns["path"].fillna("none").tolist() == ["none", "x/1.png", "x/\\udcff, 2.jpg", "y/3.tiff"]
    assert table["truth"].tolist() == columns["truth"].tolist() == ["truth", CLASSES[3], "accuracy", CLASSES[1]]
    assert columns["base_prediction"].fillna("none").tolist() == ["none", CLASSES[1], "accuracy", CLASSES[1]]
    shares = columns[[f"p_{name}" for name in CLASSES]]
    assert (shares.dtypes == "float32").all()
    assert (shares.to_numpy()[1:] == SHARES).all()
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").endswith(',1e-09,0,1,0,"a,\n""b"""\n')


def test_read_equals_written(tmp_path: Path) -> None:
    written(tmp_path, clean=CLEAN, shifted=SHIFTED)
    table = read_table(tmp_path / "predictions.csv")
    assert classes_of(table) == CLASSES
    found = read_predictions(table, CLASSES)
    for name, expected in (("clean", CLEAN), ("shifted", SHIFTED)):
        for key in ("image", "truth", "predicted", "base_predicted", "fold"):
            value = getattr(expected, key)
            assert value is getattr(found[name], key) or (value == getattr(found[name], key)).all(), key
        assert found[name].probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        assert found[name].confidence == pytest.approx(expected.confidence, abs=1e-6)
        assert found[name].groups == expected.groups
    assert found["clean"].ids is None
    assert found["shifted"].ids == ("x/1.png", "x/\\udcff, 2.jpg", "y/3.tiff")


def test_small_probabilities_are_read_as_written(tmp_path: Path) -> None:
    logits = 10 * numpy.random.default_rng(0).normal(size=(300, len(CLASSES)))
    shares = numpy.exp(logits - logits.max(1, keepdims=True))
    shares = (shares / shares.sum(1, keepdims=True)).astype(numpy.float32)
    truth = numpy.arange(300) % len(CLASSES)
    rows = Predictions(
        image=numpy.arange(300), truth=truth, predicted=shares.argmax(1), confidence=shares.max(1), probabilities=shares
    )
    written(tmp_path, shifted=rows)
    (found,) = read_predictions(read_table(tmp_path / "predictions.csv"), CLASSES, ["shifted"]).values()
    assert found.probabilities is not None
    assert (found.probabilities.argmax(1) == rows.predicted).all()
    expected = -numpy.log(shares[numpy.arange(300), truth])
    assert expected.max() > 30
    assert -numpy.log(found.probabilities[numpy.arange(300), truth]) == pytest.approx(expected, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        (("a.png", "b.PNG", "c.fits"), "path"),
        (("a.png", "J12.345", "c.png"), "id"),
        (("1", "2", "3"), "id"),
        (None, None),
    ],
)
def test_name_of_the_column_of_ids(ids: tuple[str, ...] | None, name: str | None, tmp_path: Path) -> None:
    table, _ = written(tmp_path, shifted=replace(SHIFTED, ids=ids))
    assert list(table) == [*([name] if name else []), *ALWAYS, "base_prediction"]


def test_unknown_probabilities_are_empty(tmp_path: Path) -> None:
    table, columns = written(tmp_path, shifted=replace(SHIFTED, probabilities=None))
    assert (table["p_accuracy"] == "").all() and columns["p_accuracy"].isna().all()
    (found,) = read_predictions(read_table(tmp_path / "predictions.csv"), CLASSES, ["shifted"]).values()
    assert found.probabilities is None and (found.predicted == SHIFTED.predicted).all()


def test_table_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(
        "test_set,image,truth,prediction,confidence,base_prediction\nshifted,7,0,1,0.9,\nshifted,8,1,1,0.6,\n"
    )
    found = read_predictions(read_table(path), ["0", "1"], ["shifted"])["shifted"]
    assert (found.image.tolist(), found.truth.tolist(), found.predicted.tolist()) == ([7, 8], [0, 1], [1, 1])
    assert found.confidence == pytest.approx([0.9, 0.6])
    assert found.base_predicted is found.probabilities is found.ids is found.groups is found.fold is None


@pytest.mark.parametrize(
    ("before", "after"),
    [("image,", "number,"), ("p_truth", "p_lies"), ("fold,", "image,"), (",truth,", ",p_truth,"), ("p_", "q_")],
)
def test_altered_heading(before: str, after: str, tmp_path: Path) -> None:
    written(tmp_path, shifted=SHIFTED)
    path = tmp_path / "predictions.csv"
    heading, rest = path.read_text(encoding="utf-8").split("base_prediction", 1)
    path.write_text(f"{heading.replace(before, after)}base_prediction{rest}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"not a table of predictions|columns of probabilities"):
        read_predictions(read_table(path), CLASSES, ["shifted"])
