"""Weights of torchvision's models: find or fetch the published ones, and read those of a file."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torchvision.models
from torch import Tensor, nn

from adaptkit.adapters.weight_files import SUFFIXES, few, file_digest, read_weight_file
from adaptkit.backbones.heads import find_head
from adaptkit.errors import BadInput, suggestion
from adaptkit.network import ANSWER_WITHIN, answering, bounded_waits
from adaptkit.plain_files import expanded

#: classifiers that only training uses
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")

#: names in torchvision's older files, and what they became
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"mlp\.linear_1\."), "mlp.0."),
    (re.compile(r"mlp\.linear_2\."), "mlp.3."),
)

POSITIONS = "encoder.pos_embedding"


def check_source(source: str) -> None:
    """Raise BadInput, with the nearest name, for a file that is not there or has another ending."""
    if source in ("default", "none"):
        return
    path = expanded(source)
    if path.suffix not in SUFFIXES and not path.is_file():
        raise BadInput(f"weights: must be default, none or a file ({', '.join(SUFFIXES)}), not {source!r}")
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES)
        hint = suggestion(path.name, there)
        raise BadInput(f"weights: there is no file {source!r}{hint if hint.startswith('; did') else ''}")
    if path.suffix not in SUFFIXES:
        raise BadInput(f"weights: {source} must be a file that ends in {', '.join(SUFFIXES)}")


def weights_file(name: str, source: str) -> Path | None:
    """Return the file that `source` (default, none or a path) stands for, None for none; published ones are fetched.

    Raises BadInput, in one line, when there is none, it cannot be fetched, or is damaged.
    """
    if source == "none":
        return None
    if source != "default":
        check_source(source)
        return expanded(source)
    published = torchvision.models.get_model_weights(name).DEFAULT
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(published.url).path).name).absolute()
    title = f"weights: {published.name} of torchvision:{name}"
    wanted = _digest_in(path.name)
    if not path.is_file():
        _fetch(published.url, path, wanted, title)
    elif not file_digest(path).startswith(wanted):
        raise BadInput(
            f"{title}: {path} is damaged or another file; delete it, or use --weights FILE or --weights none"
        )
    return path


def weights_id(name: str, source: str) -> str:
    """Return what tells these weights from others: the published name and the file's sha256, or none."""
    path = weights_file(name, source)
    if path is None:
        return "none"
    digest = f"sha256:{file_digest(path)[:12]}"
    return f"{torchvision.models.get_model_weights(name).DEFAULT.name} {digest}" if source == "default" else digest


def _digest_in(file: str) -> str:
    """Return the beginning of the sha256 that torchvision writes into its files' names."""
    found = re.search(r"-([a-f0-9]+)\.", file)
    return found[1] if found else ""


def _fetch(url: str, path: Path, digest: str, title: str) -> None:
    """Download a file whole or not at all; torch checks its digest before it is given its name."""
    advice = f"copy the file to {path}, or use --weights FILE or --weights none"
    if not answering([url], ANSWER_WITHIN):
        raise BadInput(f"{title}: no answer from {urlsplit(url).netloc} to download it; {advice}")
    visible = sys.stderr is not None and sys.stderr.isatty()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with bounded_waits(), contextlib.nullcontext() if visible else contextlib.redirect_stderr(io.StringIO()):
            torch.hub.download_url_to_file(url, str(path), digest or None, progress=visible)
    except Exception as error:  # urllib and the system raise many kinds
        raise BadInput(f"{title}: the download failed ({_line(error)}); {advice}") from None


def load_file(model: nn.Module, path: Path, title: str, size: int) -> None:
    """Load a file's weights, but for a classifier of other classes; vision transformers' positions become `size`'s.

    `title` is the model's name. Raises BadInput, in one line, when the file cannot be read or does not fit.
    """
    own = model.state_dict()
    given = {
        _renamed(name): tensor for name, tensor in read_weight_file(path).items() if not name.startswith(AUXILIARY)
    }
    _fit_positions(given, own, getattr(model, "patch_size", 1), size)
    found = find_head(model)
    head = next(name for name, layer in model.named_modules() if layer is found)
    classifier = {f"{head}.weight", f"{head}.bias"}
    theirs, ours = given.get(f"{head}.weight"), own[f"{head}.weight"]
    if theirs is not None and theirs.shape[1:] == ours.shape[1:] and len(theirs) != len(ours):
        given = {name: tensor for name, tensor in given.items() if name not in classifier}
    fresh = classifier if classifier.isdisjoint(given) else set()
    reasons = _differences(given, {name: tensor for name, tensor in own.items() if name not in fresh})
    if reasons:
        raise BadInput(f"weights: {path} does not fit {title}: {'; '.join(reasons)}")
    own.update(given)
    model.load_state_dict(own)


def _differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    # Files of the first years of BatchNorm have no counters.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [
        f"{name} {list(given[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    whole = [
        name for name in wanted if name in given and wanted[name].is_floating_point() > given[name].is_floating_point()
    ]
    told = (
        (missing, "missing"),
        (whole, "of whole numbers"),
        (unexpected, "unexpected"),
        (misshapen, "of another shape"),
    )
    return [f"{len(names)} {word}: {few(names)}" for names, word in told if names]


def _fit_positions(given: dict[str, Tensor], own: Mapping[str, Tensor], patch: Any, size: int) -> None:
    if POSITIONS in given and POSITIONS in own and given[POSITIONS].shape != own[POSITIONS].shape:
        from torchvision.models.vision_transformer import interpolate_embeddings

        with contextlib.suppress(ValueError):  # of another kind altogether: told with what else does not fit
            given[POSITIONS] = interpolate_embeddings(size, patch, {POSITIONS: given[POSITIONS]})[POSITIONS]


def _renamed(name: str) -> str:
    for pattern, now in RENAMED:
        name = pattern.sub(now, name)
    return name


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (error.strerror if isinstance(error, OSError) else None) or text
