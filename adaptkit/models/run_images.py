"""Make the images of a finished run again, from the config that it left in the store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptkit.data.domains import Domains
from adaptkit.errors import BadInput
from adaptkit.experiment.prepare import load_data
from adaptkit.models.preprocessing import Preprocessing, find_pictures
from adaptkit.names import CONFIG_FILE, DATA_FINGERPRINT_TAG, SPLIT_FILE
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.files import read_config
from adaptkit.settings.request import Request
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.tracking.runs import StoredRun

#: images that an export is verified on, at most
CHECKED = 256


@dataclass(frozen=True)
class CheckedImages:
    """Images for a check: float `[n, c, h, w]`, what they are, and lines to tell the user."""

    pixels: Tensor
    source: str
    notices: tuple[str, ...] = ()


@contextmanager
def rebuilt_request(found: StoredRun, plugins: Plugins, changed: Mapping[str, Any] | None = None) -> Iterator[Request]:
    """Lend the request of a run as its config has it, but for what is `changed`; raise BadInput.

    A split that was read from a file is the one that the run kept, whose copy exists as long.
    """
    with ExitStack() as stack:
        config = read_config(stack.enter_context(found.file(CONFIG_FILE)))
        if config.get("split.file") not in (None, "none") and found.has(SPLIT_FILE):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptkit-"))
            # The file that was named then may be gone; the run's own says the same.
            config["split.file"] = shutil.copy(stack.enter_context(found.file(SPLIT_FILE)), folder)
        config.setdefault("strategy", "head")  # a base run's names none, and data do not depend on it
        if found.kind == "base":
            config["shift"] = "none"
            if config.get("dataset") in (None, "none"):
                if (was := found.params.get("dataset", "none")) != "none":
                    raise BadInput(f"its config.yaml was altered: dataset is none there, and was {was}")
                raise BadInput(f"{found.title} is a base without a source, and has no test images of its own")
        yield resolve([Layer(config | dict(changed or {}), CONFIG_FILE)], plugins)


def run_data(found: StoredRun, plugins: Plugins) -> tuple[Request, Domains]:
    """Return the run's request and its data; raise BadInput when they cannot be had here."""
    with rebuilt_request(found, plugins) as request:
        return request, load_data(request)


def check_images(found: StoredRun, preprocessing: Preprocessing, plugins: Plugins) -> CheckedImages:
    """Return the first images of the run's shifted test set; raise BadInput when they cannot be had here."""
    try:
        _, domains = run_data(found, plugins)
        pixels = domains.shifted_test.pixels[:CHECKED]
    except Exception as error:  # a data set's own: it may not be there, or not be downloaded
        reasons = error.problems if isinstance(error, BadInput) else (f"{type(error).__name__}: {error}",)
        raise BadInput(
            *(f"the run's test images cannot be had here: {reason}" for reason in reasons),
            "give pictures of your own to verify the export on: --images PATH",
        ) from error
    shape = (preprocessing.channels, preprocessing.size, preprocessing.size)
    if tuple(pixels.shape[1:]) != shape:
        raise BadInput(
            f"the run's data are images {list(pixels.shape[1:])} now, and the model takes {list(shape)}; "
            "give pictures of your own to verify the export on: --images PATH"
        )
    recorded = found.tags.get(DATA_FINGERPRINT_TAG)
    notices = []
    if recorded is not None and recorded != domains.fingerprint:
        notices.append(
            f"the data is not the run's any more: its fingerprint is {domains.fingerprint[:12]}, and was "
            f"{recorded[:12]}; what follows is about the images that are there now"
        )
    return CheckedImages(pixels, _named(found), tuple(notices))


def own_images(paths: Sequence[Path], preprocessing: Preprocessing) -> CheckedImages:
    """Return the user's own pictures, at most so many, as the model sees them; raise BadInput for broken ones."""
    pixels: list[Tensor] = []
    broken: list[str] = []
    for path in islice(find_pictures(paths), CHECKED):
        try:
            pixels.append(preprocessing(path))
        except BadInput as error:
            broken.extend(error.problems)
    if broken:
        raise BadInput(*broken)
    if not pixels:
        raise BadInput(f"--images: there are no pictures in {', '.join(map(str, paths))}")
    return CheckedImages(torch.cat(pixels), ", ".join(map(str, paths)))


def _named(found: StoredRun) -> str:
    """Return what the shifted test set is called."""
    params = found.params
    target, shift = params.get("target", "none"), params.get("shift", "none")
    if found.kind == "base":
        return f"the clean test set ({params.get('dataset')})"
    if params.get("dataset") == "none":
        return f"the target's test set ({target})"
    name = target if target != "none" else params.get("dataset", "")
    return f"the shifted test set ({name}{'' if shift == 'none' else f' under {shift}'})"
