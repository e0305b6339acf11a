"""Images with raw values from files to predictions: FITS, TIFF of many bands, and arrays of NumPy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import tifffile
import torch
from astropy.io import fits
from click.testing import Result
from mlflow import MlflowClient
from PIL import Image
from support.experiments import TINY

import adaptkit
from adaptkit.data.readers.fits import Fits

Cli = Callable[..., Result]
SIDE = 16
SMALL = (
    *("-s", "scratch", "--image-size", str(SIDE), "--epochs", "1", "--set", "min_steps=none", "--set", "seed=0"),
    *("--target", "folder:sky", "--batch-size", "8", "-q", "--json"),
)


def write_npy(path: Path, values: numpy.ndarray) -> None:
    numpy.save(path, values.astype(numpy.float32))


def write_npz(path: Path, values: numpy.ndarray) -> None:
    bands = {f"band{number}": band for number, band in enumerate(values)}
    numpy.savez(path, **bands, missing=numpy.isnan(values))  # type: ignore[arg-type]


def write_fits(path: Path, values: numpy.ndarray) -> None:
    fits.writeto(path, values.astype(">f4"), checksum=True)


def write_tiff(path: Path, values: numpy.ndarray) -> None:
    whole = (numpy.nan_to_num(values) * 1000 + 1).astype(numpy.uint16)
    tifffile.imwrite(path, numpy.moveaxis(whole, 0, -1), photometric="minisblack", planarconfig="contig")


WRITERS: dict[str, Callable[[Path, numpy.ndarray], None]] = {
    ".npy": write_npy,
    ".npz": write_npz,
    ".fits": write_fits,
    ".fits.gz": write_fits,
    ".tif": write_tiff,
}


def sky(number: int, bands: int) -> numpy.ndarray:
    """Return an image of one of two classes: a bright spot on the left or on the right, and a missing value."""
    values = numpy.random.default_rng(number).normal(10, 1, (bands, SIDE, SIDE))
    values[:, 4:12, 2 + 6 * (number % 2) : 8 + 6 * (number % 2)] += 20
    values[0, 0, 0] = numpy.nan
    return values


def make_images(folder: Path, suffix: str, bands: int, count: int = 16) -> list[Path]:
    """Write images of both classes to the training and the test part of a folder."""
    paths = []
    for number in range(count):
        path = folder / ("train", "test")[number // 2 % 2] / "ab"[number % 2] / f"{number:02}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[suffix](path, sky(number, bands))
        paths.append(path)
    return paths


def run_id_of(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    (run,) = json.loads(result.stdout)["runs"]
    return str(run["run_id"])


def independent(path: Path) -> numpy.ndarray:
    """Return the input of the model for an image of the right size, computed without adaptkit."""
    if path.suffix == ".tif":
        values = numpy.moveaxis(tifffile.imread(path), -1, 0).astype(numpy.float64)
        return (values / 65535).astype(numpy.float32)
    if path.suffix == ".npy":
        values = numpy.load(path)
    elif path.suffix == ".npz":
        arrays = numpy.load(path)
        values = numpy.stack([arrays[name] for name in arrays.files if name != "missing"])
    else:
        values = numpy.asarray(fits.getdata(path))
    values = values.astype(numpy.float64)
    low, high = numpy.nanmin(values), numpy.nanmax(values)
    return numpy.nan_to_num((values - low) / (high - low)).astype(numpy.float32)


@pytest.mark.parametrize(
    ("suffix", "bands"),
    [
        pytest.param(".npy", 1, marks=pytest.mark.slow),
        pytest.param(".npz", 4, marks=pytest.mark.slow),
        pytest.param(".fits.gz", 3, marks=pytest.mark.slow),
        (".fits", 1),
        (".tif", 13),
    ],
)
def test_folder_from_files_to_predictions(suffix: str, bands: int, cli: Cli, own_folder: Path, store: Path) -> None:
    paths = make_images(own_folder / "sky", suffix, bands)
    result = cli("run", *SMALL)
    run_id = run_id_of(result)
    notices = json.loads(result.stdout)["plan"]["notices"]
    assert (
        "folder:sky: raw values become floats in 0..1: image.bands=all image.stretch=linear image.missing=zero "
        "image.fit=crop"
    ) in notices
    missing = "folder:sky: 16 values in 16 of 16 images are missing and become 0"
    assert (missing in notices) is (suffix != ".tif")
    params = MlflowClient(f"sqlite:///{store}").get_run(run_id).data.params
    assert {key: value for key, value in params.items() if key.startswith("image.")} == {
        **{"image.bands": "all", "image.stretch": "linear", "image.missing": "zero", "image.fit": "crop"},
    }
    model = adaptkit.load(run_id)
    images = torch.from_numpy(numpy.stack([independent(path) for path in paths]))
    assert images.shape == (16, bands, SIDE, SIDE)
    assert torch.equal(model.preprocess(paths), images)
    predictions = adaptkit.predict(run_id, own_folder / "sky")
    assert [prediction.path for prediction in predictions] == sorted(paths)
    by_path = {prediction.path: list(prediction.probabilities.values()) for prediction in predictions}
    expected = model(images).softmax(1)
    assert torch.allclose(torch.tensor([by_path[path] for path in paths]), expected, atol=1e-5)


def readme_logits(folder: Path, picture: Path) -> list[float]:
    """Run the Python code in the README of an exported model on an image file, without adaptkit."""
    code = "\n".join(json.loads((folder / "model.json").read_text())["how_to_load"])
    code = code.replace("picture.png", picture.as_posix())
    script = f"import sys; sys.modules['adaptkit'] = None\n{code}\nprint(torch.as_tensor(logits).flatten().tolist())"
    result = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torch-export", "onnx"])
@pytest.mark.parametrize(("suffix", "bands"), [(".fits", 1), (".tif", 13)])
def test_exported_model_reads_the_same_values(
    to: str, suffix: str, bands: int, cli: Cli, own_folder: Path, store: Path
) -> None:
    paths = make_images(own_folder / "sky", suffix, bands)
    options = ("--set", "image.stretch=asinh", "--set", "fits.extension=0") if suffix == ".fits" else ()
    run_id = run_id_of(cli("run", *SMALL, *options))
    model = adaptkit.load(run_id)
    result = cli("export", run_id, "--to", to, "-o", "model", "--images", str(own_folder / "sky"))
    assert result.exit_code == 0, result.stderr
    assert "Raw values of image files become floats in 0..1: " in Path("model/README.md").read_text()
    expected = model(model.preprocess(paths[5])).flatten().tolist()
    assert readme_logits(own_folder / "model", paths[5]) == pytest.approx(expected, abs=1e-5)
    merged = cli("export", run_id, "--to", "merged", "-o", "merged")
    assert merged.exit_code == 0, merged.stderr
    loaded = adaptkit.load("merged")
    assert torch.equal(loaded.preprocess(paths), model.preprocess(paths))
    assert loaded(loaded.preprocess(paths[5])).flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_model_of_mlflow_records_the_conversion(cli: Cli, own_folder: Path, store: Path) -> None:
    import mlflow

    paths = make_images(own_folder / "sky", ".fits", 1)
    run_id = run_id_of(cli("run", *SMALL, "--set", "image.missing=median"))
    assert cli("export", run_id, "--to", "mlflow", "-o", "model").exit_code == 0
    model = mlflow.pyfunc.load_model((own_folder / "model").as_uri())
    described = model.metadata.metadata["preprocessing"]["raw_values"]
    assert (described["missing"], described["stretch"], described["size"]) == ("median", "linear", SIDE)
    images = adaptkit.load(run_id).preprocess(paths)
    assert numpy.allclose(model.predict(images.numpy()), adaptkit.load(run_id)(images).numpy(), atol=1e-5)


def table_of(folder: Path, paths: list[Path]) -> None:
    rows = (f"{path.relative_to(folder).as_posix()},{path.parent.name},{path.parts[-3]}" for path in paths)
    (folder / "sky.csv").write_text("\n".join(["file,class,split", *rows]))


@pytest.mark.slow
def test_table_with_settings_of_raw_values(cli: Cli, own_folder: Path, store: Path) -> None:
    paths = make_images(own_folder / "sky", ".tif", 13)
    table_of(own_folder, paths)
    chosen = {"bands": "13,2", "stretch": "percentile:1,99", "missing": "median", "fit": "pad"}
    options = [part for key, value in chosen.items() for part in ("--set", f"image.{key}={value}")]
    result = cli("run", *SMALL, "--target", "table:sky.csv", *options)
    run_id = run_id_of(result)
    params = MlflowClient(f"sqlite:///{store}").get_run(run_id).data.params
    assert {key: params[f"image.{key}"] for key in chosen} == chosen
    images = adaptkit.load(run_id).preprocess(paths)
    assert images.shape == (16, 2, SIDE, SIDE)
    values = tifffile.imread(paths[0])[..., [12, 1]].astype(numpy.float64)
    low, high = numpy.percentile(values, [1, 99])
    expected = ((values - low) / (high - low)).clip(0, 1).astype(numpy.float32)
    assert numpy.array_equal(images[0], numpy.moveaxis(expected, -1, 0))
    again = cli("reproduce", run_id, "--json")
    assert again.exit_code == 0, again.stderr


def test_settings_of_raw_values_read_pictures_as_they_are_stored(cli: Cli, own_folder: Path, store: Path) -> None:
    sixteen = numpy.random.default_rng(0).integers(0, 65536, (16, SIDE, SIDE)).astype(numpy.uint16)
    for number, values in enumerate(sixteen):
        path = own_folder / "sky" / ("train", "test")[number // 2 % 2] / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    run_id = run_id_of(cli("run", *SMALL, "--set", "image.stretch=sqrt"))
    ((values,),) = adaptkit.load(run_id).preprocess(own_folder / "sky/train/a/00.png").numpy()
    low, high = int(sixteen[0].min()), int(sixteen[0].max())
    assert numpy.array_equal(values, numpy.sqrt((sixteen[0] - low) / (high - low)).astype(numpy.float32))


@pytest.mark.slow
def test_pictures_are_converted_like_the_raw_values_of_the_other_domain(
    cli: Cli, own_folder: Path, store: Path
) -> None:
    for path in make_images(own_folder / "sky", ".fits", 1):
        values = numpy.nan_to_num(fits.getdata(path)[0]) * 5
        picture = own_folder / "lab" / path.parent.name / f"{path.stem}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(numpy.uint8)).save(picture)
    options = ("--dataset", "folder:lab", "--set", "base.epochs=1", "-s", "head")
    result = cli("run", *(part for part in SMALL if part not in ("-s", "scratch")), *options)
    run_id = run_id_of(result)
    assert json.loads(result.stdout)["plan"]["channels"] == 1  # not 3, as in pictures of a domain of pictures
    assert adaptkit.load(run_id).preprocess(own_folder / "lab/a/00.png").shape == (1, 1, SIDE, SIDE)
    assert cli("reproduce", run_id, "--json").exit_code == 0
    assert cli("export", run_id, "--to", "merged", "-o", "model").exit_code == 0


def test_raw_settings_without_raw_images(cli: Cli, store: Path) -> None:
    result = cli("run", "-s", "head", *TINY, "--set", "image.fit=pad", "--dry-run")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: image.fit: the target has no image files with raw values; use folder:PATH or table:FILE\n",
    )
    for setting, message in (
        ("bands=1,1", "image.bands: band 1 appears twice"),
        ("bands=0,1", "image.bands: bands are numbered from 1, so there is no band 0"),
        ("stretch=asin", "image.stretch: must be linear, asinh, log, sqrt, percentile:LOW,HIGH, zscale or none, not"),
        ("stretch=percentile:99,1", "image.stretch: the first number of percentile must be less than the second"),
        ("stretch=percentile", "image.stretch: percentile needs two numbers, as in percentile:1,99"),
        ("stretch=linear:0", "image.stretch: linear takes two numbers, as in linear:1,99, not '0'"),
        ("missing=mean", "image.missing: must be zero, median or error, not"),
    ):
        result = cli("run", "-s", "head", *TINY, "--set", f"image.{setting}", "--dry-run")
        assert result.exit_code == 2 and result.stderr.startswith(f"Error: {message}"), result.stderr


def lines(cli: Cli, *options: str) -> list[str]:
    result = cli("run", *SMALL, *options)
    assert result.exit_code == 2, result.stdout
    return [line.removeprefix("Error: ") for line in result.stderr.splitlines()]


def test_files_that_cannot_be_used_are_refused_in_one_line_each(cli: Cli, own_folder: Path) -> None:
    paths = make_images(own_folder / "sky", ".fits", 1)
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[2].read_bytes()[:3000])
    paths[2].unlink()
    fits.writeto(paths[2], numpy.zeros((3, SIDE, SIDE), "float32"))
    fits.BinTableHDU.from_columns([fits.Column("x", "J", array=[1])]).writeto(paths[3], overwrite=True)
    fits.writeto(paths[4], numpy.full((SIDE, SIDE), numpy.nan), overwrite=True)
    bad = dict(line.split(": ", 1) for line in lines(cli)[:-1])
    shown = {path.rpartition("/")[2]: text for path, text in bad.items()}
    assert shown["00.fits"] == "Empty or corrupt FITS file"
    assert len(shown) == 5 and len(bad) == 5
    assert shown["02.fits"] == "3 bands, not 1 as the first image"
    assert shown["03.fits"] == "it has no image, only tables or empty extensions"
    assert shown["04.fits"] == "all its values are missing"
    assert "3 bands" not in " ".join(lines(cli, "--set", "fits.plane=1")[:-1])
    text = " ".join(lines(cli, "--set", "fits.extension=SCI"))
    assert "it has no image in extension SCI; its images: 0 (PRIMARY)" in text


def test_missing_package_is_named(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(own_folder / "sky", ".fits", 1, count=8)
    monkeypatch.setattr(Fits, "unavailable", "FITS files need astropy: pip install astropy")
    assert lines(cli) == ["folder:sky: 8 image files: FITS files need astropy: pip install astropy"]


READER = """
import numpy
from adaptkit import hookimpl
from adaptkit.contracts import Raster

class Text:
    name = "text"
    suffixes = (".grid",)

    def read(self, path):
        return Raster(numpy.loadtxt(path)[None])

@hookimpl
def adaptkit_readers():
    return [Text]
"""


def test_reader_of_a_plugin(cli: Cli, own_folder: Path, store: Path) -> None:
    (own_folder / "text.py").write_text(READER)
    for path in make_images(own_folder / "sky", ".npy", 1):
        numpy.savetxt(path.with_suffix(".grid"), numpy.load(path)[0])
        path.unlink()
    assert lines(cli)[0].startswith("folder:sky: ")
    run_id = run_id_of(cli("run", *SMALL, "--plugin", "text.py"))
    predictions = adaptkit.predict(run_id, "sky", plugins=["text.py"])
    assert len(predictions) == 16
    assert cli("plugins", "check", "text.py", "--data-dir", "sky").exit_code == 0
    (own_folder / "text.py").write_text(READER.replace('(".grid",)', '"grid"'))
    assert "Text.suffixes must be ends of file names in lower case" in cli("run", *SMALL, "--plugin", "text.py").stderr
