"""Rebuild the images of a finished run from its config, to check its model."""

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
from adaptkit.settings.request import PROTOCOL, SCHEDULE, Request, recorded
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.tracking.runs import StoredRun

#: maximum number of images that verify an export
CHECKED = 256


@dataclass(frozen=True)
class CheckedImages:
    """Images for a check (floats `[n, c, h, w]`), the name of their `source`, and messages for the user."""

    pixels: Tensor
    source: str
    notices: tuple[str, ...] = ()


@contextmanager
def rebuilt_request(stored: StoredRun, plugins: Plugins, changed: Mapping[str, Any] | None = None) -> Iterator[Request]:
    """Resolve the config of a run, with the settings in `changed`, into a request; raise BadInput if that fails.

    A split file is replaced by a copy of split.json of the run, which exists during the block.
    """
    with ExitStack() as stack:
        config = read_config(stack.enter_context(stored.file(CONFIG_FILE)))
        if config.get("split.file") not in (None, "none") and stored.has(SPLIT_FILE):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptkit-"))
            # The original file may be gone; the artifact has the same content.
            config["split.file"] = shutil.copy(stack.enter_context(stored.file(SPLIT_FILE)), folder)
        config.setdefault("strategy", "head")  # a base run has no strategy, and its data do not depend on one
        if stored.kind == "base":
            config["shift"] = "none"
            if config.get("dataset") in (None, "none"):
                if (was := stored.params.get("dataset", "none")) != "none":
                    raise BadInput(f"its config.yaml was altered: dataset is none, but was {was}")
                raise BadInput(f"{stored.title} is a base without a source, so it has no test images")
        if PROTOCOL in stored.params:
            config.setdefault(PROTOCOL, "none")  # its config was altered: it is not a run of adaptkit 0.1
        if SCHEDULE in stored.params:
            config.setdefault(SCHEDULE, stored.params[SCHEDULE])  # likewise
        yield resolve([Layer(recorded(config) | dict(changed or {}), CONFIG_FILE)], plugins)


def run_data(stored: StoredRun, plugins: Plugins) -> tuple[Request, Domains]:
    """Return the request of a run and its data; raise BadInput if the data are not available."""
    with rebuilt_request(stored, plugins) as request:
        return request, load_data(request)


def check_images(stored: StoredRun, preprocessing: Preprocessing, plugins: Plugins) -> CheckedImages:
    """Return the first target test images of a run; raise BadInput if they are not available."""
    try:
        _, domains = run_data(stored, plugins)
        pixels = domains.shifted_test.pixels[:CHECKED]
    except Exception as error:  # any error of a data set that is missing or cannot be downloaded
        reasons = error.problems if isinstance(error, BadInput) else (f"{type(error).__name__}: {error}",)
        raise BadInput(
            *(f"the test images of the run are not available: {reason}" for reason in reasons),
            "verify the export on other images: --images PATH",
        ) from error
    shape = (preprocessing.channels, preprocessing.size, preprocessing.size)
    if tuple(pixels.shape[1:]) != shape:
        raise BadInput(
            f"the images of the run now have the shape {list(pixels.shape[1:])}, but the model takes {list(shape)}; "
            "verify the export on other images: --images PATH"
        )
    recorded = stored.tags.get(DATA_FINGERPRINT_TAG)
    notices = []
    if recorded is not None and recorded != domains.fingerprint:
        notices.append(
            f"the data of the run have changed: their fingerprint is {domains.fingerprint[:12]}, and was "
            f"{recorded[:12]}; the current images are used"
        )
    return CheckedImages(pixels, _named(stored), tuple(notices))


def own_images(paths: Sequence[Path], preprocessing: Preprocessing, suffixes: tuple[str, ...]) -> CheckedImages:
    """Read at most CHECKED image files, which end in `suffixes`; raise BadInput if any cannot be read."""
    pixels: list[Tensor] = []
    broken: list[str] = []
    for path in islice(find_pictures(paths, suffixes), CHECKED):
        try:
            pixels.append(preprocessing(path))
        except BadInput as error:
            broken.extend(error.problems)
    if broken:
        raise BadInput(*broken)
    if not pixels:
        raise BadInput(f"--images: no images in {', '.join(map(str, paths))}")
    return CheckedImages(torch.cat(pixels), ", ".join(map(str, paths)))


def _named(stored: StoredRun) -> str:
    """Return the name of the test set that `check_images` uses."""
    params = stored.params
    target, shift = params.get("target", "none"), params.get("shift", "none")
    if stored.kind == "base":
        return f"the source test set ({params.get('dataset')})"
    if params.get("dataset") == "none":
        return f"the target test set ({target})"
    name = target if target != "none" else params.get("dataset", "")
    return f"the target test set ({name}{'' if shift == 'none' else f' under {shift}'})"
