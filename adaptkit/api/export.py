"""Export a finished run's model, from Python or from the command line, and verify at once what was written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.errors import BadInput, RunFailed
from adaptkit.models.formats.format import Exported, Format, Logits, find_format
from adaptkit.models.run_images import check_images, own_images
from adaptkit.models.trained import TrainedRun, find_trained, given_plugins
from adaptkit.training.evaluation import CPU_BATCH, predict_logits
from adaptkit.version import __version__


@dataclass(frozen=True)
class Verification:
    """How far an export's logits are from the run's model's, on how many images of what; `agreement` is a share."""

    by: str
    images: int
    source: str
    max_difference: float
    tolerance: float
    agreement: float

    @property
    def holds(self) -> bool:
        """Tell whether the export is within tolerance; logits that are no numbers are not."""
        return self.max_difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"max logit difference {self.max_difference:.2g} (tolerance {self.tolerance:.2g}), prediction agreement "
            f"{self.agreement:.2%} on {self.images} images of {self.source}, by {self.by}"
        )


def verify(
    logits: dict[str, Logits], expected: Tensor, images: Tensor, source: str, written: Format
) -> tuple[Verification, ...]:
    """Compare logits, each by its name, with those expected; raise RunFailed when one is out of tolerance."""
    largest = max(1.0, float(expected.abs().max()))
    found = []
    for name, model in logits.items():
        try:
            ours = _in_batches(model, images)
        except Exception as error:  # another library's, whatever it raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RunFailed(f"the exported files cannot be used ({name}): {reason}") from error
        gap, agreement = float("nan"), 0.0
        if ours.shape == expected.shape:
            gap = float((ours - expected).abs().max())
            agreement = float((ours.argmax(1) == expected.argmax(1)).float().mean())
        found.append(Verification(name, len(images), source, gap, written.tolerance * largest, agreement))
    if failed := [verification for verification in found if not verification.holds]:
        raise RunFailed(*(f"the export was given up: {verification}" for verification in failed))
    return tuple(found)


@torch.inference_mode()
def _in_batches(model: Logits, images: Tensor) -> Tensor:
    """Return the logits of the first image, alone, and of the others in larger batches: a fixed size is found out."""
    parts = [images[:1], *images[1:].split(CPU_BATCH)] if len(images) > 1 else [images]
    return torch.cat([torch.as_tensor(model(part)).float() for part in parts])


@dataclass(frozen=True)
class ExportRecord:
    """What was exported where, and how far it is from the run's model."""

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
    """Write a run's model into a new or empty folder, as `adaptkit export` does, and verify what was written.

    `to` is merged, peft, torch-export, onnx or mlflow. Verified is on `images`, or on the run's own shifted test set.
    Raises BadInput, and RunFailed for files that do not give the run's logits: then nothing is left behind.
    """
    written = find_format(to)
    folder = Path(output)
    _require_empty(folder)
    loaded = given_plugins(plugins, backbone)
    trained = find_trained(run_id, tracking_uri, loaded)
    written.require(trained)
    if images:
        checked = own_images([Path(path) for path in images], trained.preprocessing)
    else:
        checked = check_images(trained.stored, trained.preprocessing, loaded)
    for line in checked.notices:
        notice(line)
    expected = predict_logits(trained.adapted, checked.pixels)
    # Of two images: a batch of one would be taken for a batch that can only be one.
    example = checked.pixels[:2] if len(checked.pixels) > 1 else checked.pixels[[0, 0]]
    with _staged(folder) as stage:
        written.write(stage, Exported(trained, trained.merged(), example.contiguous()))
        _write_card(stage, trained, written)
        found = verify(written.read(stage, trained), expected, checked.pixels, checked.source, written)
        _write_readme(stage, trained, written, found)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return ExportRecord(trained.stored.run_id, to, str(folder), tuple(files), found)


def _require_empty(folder: Path) -> None:
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise BadInput(f"{folder} is not empty; name a new folder with -o")
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"{folder} is a file; name a new folder with -o")
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror or error}") from None


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Lend a temporary neighbour of the folder, which takes its name when the block is done; else nothing is left."""
    place = folder.absolute()
    made = [parent for parent in place.parents if not parent.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        yield stage
        stage.chmod(0o755)
        _require_empty(folder)  # others may have been here in the meantime
        if place.is_dir() and (place == Path.cwd() or place.is_mount()):  # it must stay
            for path in stage.iterdir():
                shutil.move(path, place / path.name)
        else:
            stage.rename(place)  # over an empty folder, but over no other
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):  # of folders that others use by now
            for parent in made:
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
    (stage / "model.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_readme(stage: Path, trained: TrainedRun, written: Format, found: Sequence[Verification]) -> None:
    preprocessing = trained.described_preprocessing
    normalised = "; the model normalises them itself" if preprocessing.get("mean") else ""
    images = f"{preprocessing['channels']} channels, {preprocessing['size']} x {preprocessing['size']} pixels"
    text = f"""\
# {trained.stored.name}

A `{trained.card["backbone"]}` for {len(trained.classes)} classes, exported as `{written.name}` from run
`{trained.stored.run_id}` by adaptkit {__version__}.

- Images: {images}, floats in 0..1{normalised}.
- Pictures: the shorter side is resized bilinearly, then the centre is cut out.
- Classes, in the order of the logits, and all of this for programs: `model.json`.

## Use

{written.usage(trained)}
## Verified

{chr(10).join(f"- {verification}" for verification in found)}
"""
    (stage / "README.md").write_text(text, encoding="utf-8")
