"""Export the model of a finished run, and verify the exported files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.comparison.numbers import counted
from adaptkit.data.raw_values import RAW_VALUES
from adaptkit.data.readers.files import suffixes_of
from adaptkit.errors import BadInput, RunFailed
from adaptkit.models.formats.format import Exported, Format, Logits, find_format
from adaptkit.models.run_images import check_images, own_images
from adaptkit.models.trained import TEMPERATURE, TrainedRun, find_trained, given_plugins
from adaptkit.training.evaluation import CPU_BATCH, predict_logits
from adaptkit.training.objective import accuracy, predict_classes
from adaptkit.version import __version__


@dataclass(frozen=True)
class Verification:
    """Difference between the logits of an export and of the run's model, on `images` images of `source`.

    `by` names the library that read the export. `agreement` is the fraction of equal predictions.
    """

    by: str
    images: int
    source: str
    max_difference: float
    tolerance: float
    agreement: float

    @property
    def holds(self) -> bool:
        """Return whether the difference is within the tolerance; NaN is not."""
        return self.max_difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"largest difference of logits {self.max_difference:.2g} (tolerance {self.tolerance:.2g}), "
            f"{self.agreement:.2%} equal predictions on {self.images} images of {self.source}; read with {self.by}"
        )


def verify(
    logits: dict[str, Logits], expected: Tensor, images: Tensor, source: str, written: Format
) -> tuple[Verification, ...]:
    """Compare the logits of each model with the expected ones; raise RunFailed if one exceeds the tolerance."""
    largest = max(1.0, float(expected.abs().max()))
    verifications = []
    for name, model in logits.items():
        try:
            exported = _in_batches(model, images)
        except Exception as error:  # any error of another library
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RunFailed(f"the exported files cannot be read ({name}): {reason}") from error
        gap, agreement = float("nan"), 0.0
        if exported.shape == expected.shape:
            gap = float((exported - expected).abs().max())
            agreement = accuracy(exported, predict_classes(expected))
        verifications.append(
            Verification(
                by=name,
                images=len(images),
                source=source,
                max_difference=gap,
                tolerance=written.tolerance * largest,
                agreement=agreement,
            )
        )
    if failed := [verification for verification in verifications if not verification.holds]:
        raise RunFailed(*(f"the export was removed, since it is inaccurate: {verification}" for verification in failed))
    return tuple(verifications)


@torch.inference_mode()
def _in_batches(model: Logits, images: Tensor) -> Tensor:
    """Return logits; the first image is a batch of its own, so that a model with a fixed batch size fails the check."""
    parts = [images[:1], *images[1:].split(CPU_BATCH)] if len(images) > 1 else [images]
    return torch.cat([torch.as_tensor(model(part)).float() for part in parts])


@dataclass(frozen=True)
class ExportRecord:
    """Result of `adaptkit.export`.

    Attributes
    ----------
    run_id, format, folder : str
        The exported run, the format and the new folder.
    files : tuple of str
        Files in the folder.
    verifications : tuple of Verification
        For each library that read the export: its largest difference to the logits of the run's model.

    Examples
    --------
    >>> record = adaptkit.export(run_id, to="torch-export", output="program")
    >>> record.files
    ('README.md', 'model.json', 'model.pt2', 'read_picture.py')
    """

    run_id: str
    format: str
    folder: str
    files: tuple[str, ...]
    verifications: tuple[Verification, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return dataclasses.asdict(self)


def export(
    run_id: str,
    to: str,
    output: str | Path,
    *,
    images: Sequence[str | Path] = (),
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    notice: Callable[[str], None] = lambda line: None,
) -> ExportRecord:
    """Write the model of a run to a folder, and verify that the files give the same logits.

    This is the Python form of `adaptkit export`.

    Parameters
    ----------
    run_id : str
        A finished run.
    to : {"merged", "peft", "torch-export", "onnx", "mlflow"}
        Format of the files.
    output : path
        A new or empty folder.
    images : sequence of path, optional
        Image files or folders for the verification. Default: target test images of the run.
    tracking_uri : str, optional
        MLflow store. Default: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.
    plugins : iterable of path or object, optional
        Plugin files, or objects with hooks.
    backbone : torch.nn.Module, optional
        The model that `adaptkit.run` received as `backbone`, if it did.
    notice : callable, optional
        Called with each message for the user.

    Returns
    -------
    ExportRecord
        The files, and the result of the verification.

    Raises
    ------
    BadInput
        If the run has no model, or if the format cannot hold it.
    RunFailed
        If the files do not give the logits of the run's model. The folder is removed.

    Examples
    --------
    >>> record = adaptkit.export(run_id, to="merged", output="model")
    >>> record.verifications[0].agreement
    1.0
    >>> model = adaptkit.load("model")
    """
    written = find_format(to)
    folder = Path(output)
    _require_empty(folder)
    loaded = given_plugins(plugins, backbone)
    trained = find_trained(run_id, tracking_uri, loaded)
    written.require(trained)
    if images:
        checked = own_images(
            [Path(path) for path in images], trained.preprocessing, suffixes_of(trained.readers.values())
        )
    else:
        checked = check_images(trained.stored, trained.preprocessing, loaded)
    for line in checked.notices:
        notice(line)
    expected = predict_logits(trained.adapted, checked.pixels)
    # Two images, since tracing a batch of one would fix the batch size.
    example = checked.pixels[:2] if len(checked.pixels) > 1 else checked.pixels[[0, 0]]
    with _staged(folder) as stage:
        written.write(stage, Exported(trained, trained.merged(), example.contiguous()))
        _write_card(stage, trained, written)
        verifications = verify(
            written.read(stage, trained), expected, images=checked.pixels, source=checked.source, written=written
        )
        _write_readme(stage, trained, written=written, verifications=verifications)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return ExportRecord(
        run_id=trained.stored.run_id, format=to, folder=str(folder), files=tuple(files), verifications=verifications
    )


def _require_empty(folder: Path) -> None:
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise BadInput(f"{folder} is not empty; choose a new folder with -o")
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"{folder} is a file; choose a new folder with -o")
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror or error}") from None


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Create a temporary folder that is renamed to `folder` at the end of the block, or removed after an error."""
    place = folder.absolute()
    new_parents = [parent for parent in place.parents if not parent.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=place.parent, prefix=".export-"))
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        yield stage
        stage.chmod(0o755)
        _require_empty(folder)  # another process may have written to it meanwhile
        if place.is_dir() and (place == Path.cwd() or place.is_mount()):  # this folder cannot be replaced
            for path in stage.iterdir():
                shutil.move(path, place / path.name)
        else:
            stage.rename(place)  # replaces an empty folder, but no other
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process uses the folder
            for parent in new_parents:
                parent.rmdir()
        if isinstance(error, OSError):
            raise BadInput(f"{folder} cannot be written: {error.strerror or error}") from None
        raise
    shutil.rmtree(stage, ignore_errors=True)


def _write_card(stage: Path, trained: TrainedRun, written: Format) -> None:
    lines = re.findall(r"```python\n(.*?)```", written.usage(trained), flags=re.DOTALL)
    card = {
        "adaptkit_version": __version__,
        "format": written.name,
        "run_id": trained.stored.run_id,
        "run": trained.stored.name,
        "strategy": trained.card.get("strategy"),
        "options": trained.card.get("options"),
        "base_fingerprint": trained.base_fingerprint,
        "preprocessing": dict(trained.described_preprocessing),
        "how_to_load": "\n".join(lines).splitlines(),
        **{key: trained.card[key] for key in ("backbone", "backbone_options", "channels", "size", "classes")},
    }
    if trained.temperature is not None and not written.scaled:
        card[TEMPERATURE] = trained.temperature
    (stage / "model.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _calibration(trained: TrainedRun, written: Format) -> str:
    """Return the README's line on the probabilities of a calibrated model, or an empty text."""
    if trained.temperature is None:
        return ""
    where = (
        "The exported model contains it"
        if written.scaled
        else f"The files do not contain it, but the code below applies it: `{TEMPERATURE}` in `model.json`"
    )
    return (
        "- Probabilities: the softmax of the logits. To calibrate them, the logits are divided by the temperature "
        f"{trained.temperature:.4g}. {where}.\n"
    )


def _sizing(preprocessing: Mapping[str, Any]) -> str:
    """Return the README's line on how image files become the input of the model."""
    raw = preprocessing.get(RAW_VALUES)
    if raw is None:
        return "Pictures: resize the shorter side bilinearly, then crop the centre."
    chosen = ", ".join(f"{key} {value}" for key, value in raw.items() if value is not None and key != "size")
    return f"Raw values of image files become floats in 0..1: {chosen}. `raw_values.py` of adaptkit is the definition."


def _write_readme(stage: Path, trained: TrainedRun, written: Format, verifications: Sequence[Verification]) -> None:
    preprocessing = trained.described_preprocessing
    normalised = "; the model normalises them" if preprocessing.get("mean") else ""
    images = (
        f"{counted(preprocessing['channels'], 'channel')}, {preprocessing['size']} x {preprocessing['size']} pixels"
    )
    text = f"""\
# {trained.stored.name}

A `{trained.card["backbone"]}` for {len(trained.classes)} classes, exported in the format `{written.name}` from run
`{trained.stored.run_id}` by adaptkit {__version__}.

- Images: {images}, floats in 0..1{normalised}.
- {_sizing(preprocessing)}
- `model.json` holds this information for programs, and the classes in the order of the logits.
{_calibration(trained, written)}
## Use

{written.usage(trained)}
## Verified

{chr(10).join(f"- {verification}" for verification in verifications)}
"""
    (stage / "README.md").write_text(text, encoding="utf-8")
