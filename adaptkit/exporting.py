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

from torch import nn

from adaptkit import __version__
from adaptkit.errors import BadInput
from adaptkit.exports import find_format
from adaptkit.exports.formats import Exported, Format
from adaptkit.exports.verification import Verification, verify
from adaptkit.run_data import check_images, own_images
from adaptkit.trained import TrainedRun, find_trained, given_plugins
from adaptkit.training.evaluation import predict_logits


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
        checked = check_images(trained.found, trained.preprocessing, loaded)
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
    return ExportRecord(trained.found.run_id, to, str(folder), tuple(files), found)


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
        "run_id": trained.found.run_id,
        "run": trained.found.name,
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
# {trained.found.name}

A `{trained.card["backbone"]}` for {len(trained.classes)} classes, exported as `{written.name}` from run
`{trained.found.run_id}` by adaptkit {__version__}.

- Images: {images}, floats in 0..1{normalised}.
- Pictures: the shorter side is resized bilinearly, then the centre is cut out.
- Classes, in the order of the logits, and all of this for programs: `model.json`.

## Use

{written.usage(trained)}
## Verified

{chr(10).join(f"- {verification}" for verification in found)}
"""
    (stage / "README.md").write_text(text, encoding="utf-8")
