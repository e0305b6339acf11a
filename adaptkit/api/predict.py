"""Classify images with the model of a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import nn

from adaptkit.adapters.files import read_card
from adaptkit.data.readers.files import suffixes_of
from adaptkit.data.sets.file_pixels import not_read
from adaptkit.errors import BadInput, PlanNotice
from adaptkit.models.preprocessing import Prediction, find_pictures, predict_pictures
from adaptkit.models.trained import EXPORT_CARD, LoadedModel, find_trained, given_plugins, read_export
from adaptkit.plugins.manager import Plugins
from adaptkit.system.hardware import find_device


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """The images to classify, and how to load the model and compute."""

    run: str | Path
    images: Sequence[Path]
    top_k: int = 1
    batch_size: int = 64
    device: str = "auto"
    tracking_uri: str | None = None
    plugins: Iterable[str | Path | object] = ()
    backbone: nn.Module | None = None


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    top_k: int = 1,
    batch_size: int = 64,
    device: str = "auto",
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    skip_bad_images: bool = False,
) -> list[Prediction]:
    """Classify image files with the model of a finished run.

    This is the Python form of `adaptkit predict`. For tensors or PIL images use `adaptkit.load`.

    Parameters
    ----------
    run : str or path
        Run id, or a folder that `adaptkit.export` wrote in the format "merged".
    images : path or sequence of path
        Image files. A folder stands for the files in it, at any depth.
    top_k : int, optional
        Number of classes in `ranked` of each prediction; `probabilities` holds all classes. Default: 1.
    batch_size : int, optional
        Images in one forward pass. Default: 64.
    device : {"auto", "cpu", "cuda", "mps"}, optional
        Device that computes. Default: "auto".
    tracking_uri : str, optional
        MLflow store. Default: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.
    plugins : iterable of path or object, optional
        Plugin files, or objects with hooks.
    backbone : torch.nn.Module, optional
        The model that `adaptkit.run` received as `backbone`, if it did.
    skip_bad_images : bool, optional
        Leave out files that are not images, instead of stopping.

    Returns
    -------
    list of Prediction
        One prediction for each image, in order.

    Raises
    ------
    BadInput
        If the run has no model, or if files are missing or are not images.

    Examples
    --------
    >>> for prediction in adaptkit.predict(run_id, "photos", top_k=2):
    ...     print(prediction.path, prediction.label, f"{prediction.confidence:.0%}")
    photos/0.png ...
    """
    paths = [images] if isinstance(images, str | Path) else images
    request = PredictRequest(
        run=run,
        images=[Path(path) for path in paths],
        top_k=top_k,
        batch_size=batch_size,
        device=device,
        tracking_uri=tracking_uri,
        plugins=plugins,
        backbone=backbone,
    )
    problems: list[str] = []
    others: list[Path] = []
    _, predictions = stream_predictions(request, problems.append, others.append)
    results = list(predictions)
    if others:
        warnings.warn(not_read(list(map(str, others))), PlanNotice, stacklevel=2)
    if problems and not skip_bad_images:
        raise BadInput(*problems)
    return results


@dataclass(frozen=True)
class UsedModel:
    """The model that classifies the images: its run (or the folder of an export), its strategy and its classes.

    `run_id` differs from the requested run if that is a comparison, or a run with folds, which its refit stands for.
    `strategy` is None for a base.
    """

    run_id: str
    title: str
    strategy: str | None
    classes: tuple[str, ...]


def stream_predictions(
    request: PredictRequest, bad_image: Callable[[str], None], other: Callable[[Path], None] = lambda path: None
) -> tuple[UsedModel, Iterator[Prediction]]:
    """Return what is known of the model, and an iterator that classifies one image at a time.

    The iterator calls `bad_image(problem)` for an image that cannot be read, and `other(path)` for a file in a folder
    that has another format, and continues. Raises BadInput at once if there are no files, or if the run has no model.
    """
    device = find_device(request.device)
    plugins = given_plugins(request.plugins, request.backbone)
    pictures = find_pictures(request.images, suffixes_of(plugins.readers.values()), other)
    first = next(pictures, None)
    if first is None:
        raise BadInput(f"no files found in {', '.join(map(str, request.images))}")
    loaded, used = _load(request, plugins)
    predictions = predict_pictures(
        loaded.model.to(device),
        loaded.preprocessing,
        classes=loaded.classes,
        paths=chain([first], pictures),
        top_k=request.top_k,
        batch_size=request.batch_size,
        broken=bad_image,
    )
    return used, predictions


def _load(request: PredictRequest, plugins: Plugins) -> tuple[LoadedModel, UsedModel]:
    exported = read_export(request.run, plugins)
    if exported is not None:
        folder = str(request.run)
        card = read_card(Path(folder) / EXPORT_CARD, {})
        return exported, UsedModel(folder, folder, card.get("strategy"), exported.classes)
    trained = find_trained(str(request.run), request.tracking_uri, plugins)
    if trained.strategy is None and trained.card.get("new_head"):
        raise BadInput(f"{trained.stored.title} is a base with an untrained head; name an adaptation run of this base")
    stored, loaded = trained.stored, trained.loaded()
    return loaded, UsedModel(stored.run_id, stored.title, trained.card.get("strategy"), loaded.classes)
