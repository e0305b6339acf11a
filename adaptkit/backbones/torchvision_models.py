"""Build the classification models of torchvision: architecture, weights and normalisation."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torchvision.models
from torch import Tensor, nn

from adaptkit.adapters.weights import SUFFIXES, few, file_digest, read_weight_file
from adaptkit.backbones.structure import find_head, replace_layer, start_near_zero
from adaptkit.errors import BadInput, suggestion
from adaptkit.system.files import expanded
from adaptkit.system.network import ANSWER_WITHIN, answering, bounded_waits


def normalising(model: nn.Module, mean: Sequence[float], std: Sequence[float], *, used: int | None = None) -> nn.Module:
    """Make a model normalise its input, and return the same model.

    The model subtracts the mean and divides by the standard deviation of each channel. Grey images are expanded to one
    channel for each mean. Only the first `used` channels of images are used, all if it is None. If the model has no
    `head`, this property is added.
    """
    for name, values in (("input_mean", mean), ("input_std", std)):
        # Not persistent, so that the keys in files of weights do not change.
        model.register_buffer(name, torch.tensor(tuple(values)).view(1, -1, 1, 1), persistent=False)
    model.__class__ = _normalising(type(model), headed=not hasattr(model, "head"), used=used)  # type: ignore[arg-type]
    return model


@functools.cache
def _normalising(cls: type[nn.Module], headed: bool, used: int | None) -> type[nn.Module]:
    # Use a subclass, because a wrapper around the model would add a prefix to each key.
    def forward(self: Any, x: Tensor) -> Any:
        images = x if used is None else x[:, :used]
        return cls.forward(self, (images - self.input_mean) / self.input_std)

    def extra_repr(self: Any) -> str:
        # Part of the recipe of a base, because other normalisation with the same weights is a different model.
        mean, std = (buffer.flatten().tolist() for buffer in (self.input_mean, self.input_std))
        taken = "" if used is None else f"bands={used}"
        return ", ".join(filter(None, [cls.extra_repr(self), f"mean={mean}, std={std}", taken]))

    def load(self: Any, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        # Treat files without a version as current, because torchvision's MNASNet requires a version.
        cls._load_from_state_dict(self, state, prefix, {"version": self._version} | metadata, *rest)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _rebuild, (cls, headed, used), self.__dict__

    members: dict[str, Any] = {
        "forward": forward,
        "extra_repr": extra_repr,
        "_load_from_state_dict": load,
        "__reduce_ex__": reduce,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    if headed:
        members["head"] = property(find_head)
    return type(cls.__name__, (cls,), members)


def _rebuild(cls: type[nn.Module], headed: bool, used: int | None = None) -> nn.Module:
    subclass = _normalising(cls, headed, used)  # type: ignore[arg-type]  # classes are hashable
    return subclass.__new__(subclass)


#: auxiliary classifiers, which are only used in training
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")

#: names in older files of torchvision, and their replacements
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"mlp\.linear_1\."), "mlp.0."),
    (re.compile(r"mlp\.linear_2\."), "mlp.3."),
)

POSITIONS = "encoder.pos_embedding"


def check_source(source: str) -> None:
    """Raise BadInput for a file that does not exist (with the nearest name) or has an unknown suffix."""
    if source in ("default", "none"):
        return
    path = expanded(source)
    if path.suffix not in SUFFIXES and not path.is_file():
        raise BadInput(f"weights: must be default, none or a file ({', '.join(SUFFIXES)}), not {source!r}")
    if not path.is_file():
        siblings = sorted(file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES)
        hint = suggestion(path.name, siblings)
        raise BadInput(f"weights: there is no file {source!r}{hint if hint.startswith('; did') else ''}")
    if path.suffix not in SUFFIXES:
        raise BadInput(f"weights: {source} must be a file that ends in {', '.join(SUFFIXES)}")


def weights_file(name: str, source: str) -> Path | None:
    """Return the path of the weights `source` (default, none or a path), or None for none.

    Published weights are downloaded if needed. Raises BadInput if the file is missing, damaged or cannot be downloaded.
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
        _fetch(published.url, path, digest=wanted, title=title)
    elif not file_digest(path).startswith(wanted):
        raise BadInput(
            f"{title}: {path} is damaged or a different file; delete it, or use --weights FILE or --weights none"
        )
    return path


def weights_id(name: str, source: str) -> str:
    """Return an id of these weights: the published name and the beginning of the file's sha256, or none."""
    path = weights_file(name, source)
    if path is None:
        return "none"
    digest = f"sha256:{file_digest(path)[:12]}"
    return f"{torchvision.models.get_model_weights(name).DEFAULT.name} {digest}" if source == "default" else digest


def _digest_in(file: str) -> str:
    """Return the beginning of the sha256 that is part of torchvision's file names."""
    match = re.search(r"-([a-f0-9]+)\.", file)
    return match[1] if match else ""


def _fetch(url: str, path: Path, *, digest: str, title: str) -> None:
    """Download a file; it appears at `path` only after torch has checked its digest."""
    advice = f"copy the file to {path}, or use --weights FILE or --weights none"
    if not answering([url], ANSWER_WITHIN):
        raise BadInput(f"{title} cannot be downloaded: {urlsplit(url).netloc} does not answer; {advice}")
    visible = sys.stderr is not None and sys.stderr.isatty()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with bounded_waits(), contextlib.nullcontext() if visible else contextlib.redirect_stderr(io.StringIO()):
            torch.hub.download_url_to_file(url, str(path), digest or None, progress=visible)
    except Exception as error:  # urllib and the system raise many kinds of errors
        raise BadInput(f"{title}: the download failed ({_line(error)}); {advice}") from None


def load_file(model: nn.Module, path: Path, *, title: str, size: int) -> None:
    """Load weights from a file into a model.

    A classifier for another number of classes is not loaded. Position embeddings of vision transformers are
    interpolated to images of `size` pixels. `title` is the model's name. Raises BadInput if the file cannot be read or
    does not fit.
    """
    state = model.state_dict()
    loaded = {
        _renamed(name): tensor for name, tensor in read_weight_file(path).items() if not name.startswith(AUXILIARY)
    }
    _fit_positions(loaded, state, patch=getattr(model, "patch_size", 1), size=size)
    classifier_layer = find_head(model)
    head = next(name for name, layer in model.named_modules() if layer is classifier_layer)
    classifier = {f"{head}.weight", f"{head}.bias"}
    theirs, ours = loaded.get(f"{head}.weight"), state[f"{head}.weight"]
    if theirs is not None and theirs.shape[1:] == ours.shape[1:] and len(theirs) != len(ours):
        loaded = {name: tensor for name, tensor in loaded.items() if name not in classifier}
    fresh = classifier if classifier.isdisjoint(loaded) else set()
    reasons = _differences(loaded, {name: tensor for name, tensor in state.items() if name not in fresh})
    if reasons:
        raise BadInput(f"weights: {path} does not fit {title}: {'; '.join(reasons)}")
    state.update(loaded)
    model.load_state_dict(state)


def _differences(loaded: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    # Old files do not contain counters of batches.
    missing = [name for name in wanted if name not in loaded and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in loaded if name not in wanted]
    misshapen = [
        f"{name} {list(loaded[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in loaded and loaded[name].shape != wanted[name].shape
    ]
    whole = [
        name
        for name in wanted
        if name in loaded and wanted[name].is_floating_point() > loaded[name].is_floating_point()
    ]
    problems = (
        (missing, "missing"),
        (whole, "of whole numbers"),
        (unexpected, "unexpected"),
        (misshapen, "of another shape"),
    )
    return [f"{len(names)} {word}: {few(names)}" for names, word in problems if names]


def _fit_positions(loaded: dict[str, Tensor], state: Mapping[str, Tensor], *, patch: Any, size: int) -> None:
    if POSITIONS in loaded and POSITIONS in state and loaded[POSITIONS].shape != state[POSITIONS].shape:
        from torchvision.models.vision_transformer import interpolate_embeddings

        with contextlib.suppress(ValueError):  # not interpolable: reported together with other differences
            loaded[POSITIONS] = interpolate_embeddings(size, patch, {POSITIONS: loaded[POSITIONS]})[POSITIONS]


def _renamed(name: str) -> str:
    for pattern, now in RENAMED:
        name = pattern.sub(now, name)
    return name


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (error.strerror if isinstance(error, OSError) else None) or text


#: number of image channels of all weights of torchvision
COLOURS = 3


def check_name(name: str) -> None:
    """Raise BadInput, with the nearest name, unless torchvision has a classification model of that name."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        hint = suggestion(name, names)
        # Without a similar name the hint would list 80 names.
        hint = hint if hint.startswith("; did") else "; it has, among others, resnet18, mobilenet_v3_small and vit_b_16"
        raise BadInput(f"backbone torchvision:{name}: torchvision has no classification model {name!r}{hint}")


def published_size(name: str) -> int:
    """Return the size in pixels at which torchvision uses its published weights."""
    return int(_transforms(name).crop_size[0])


def statistics(name: str, channels: int) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel.

    From the fourth channel on, the three values are repeated. They belong to the published weights, but are used with
    all weights, because files of weights do not contain them.
    """
    transforms = _transforms(name)
    count = COLOURS if channels == 1 else channels
    mean, std = (
        [float(values[place % COLOURS]) for place in range(count)] for values in (transforms.mean, transforms.std)
    )
    return mean, std


def used_channels(channels: int, bands: str) -> int:
    """Return how many channels of images a model uses; `bands` is none, first3 or fresh."""
    return COLOURS if bands == "first3" and channels > COLOURS else channels


def build_model(name: str, weights: str, *, channels: int, size: int, classes: int, bands: str = "none") -> nn.Module:
    """Return a model with these weights that normalises its images; raise BadInput if that fails.

    `bands` is how pretrained weights serve images of more than three channels: "first3" uses the first three, "fresh"
    makes a first convolution for all of them. Its weights are the mean of the old ones over the colours, scaled so that
    equal channels give the old output.
    """
    title = f"backbone torchvision:{name}"
    if channels not in (1, COLOURS) and weights != "none":
        _require_bands(title, channels, bands)
    _require_fit(name, size)
    path = weights_file(name, weights)
    model = _architecture(name, size, classes)
    head = find_head(model)
    assert isinstance(head, nn.Linear)
    initial = head.weight.detach().clone()
    if path is not None:
        load_file(model, path, title=f"torchvision:{name}", size=size)
    if torch.equal(head.weight, initial):  # the file has no head for these classes
        start_near_zero(head)
    used = used_channels(channels, bands)
    if used not in (1, COLOURS):
        _rebuild_first(model, used, is_pretrained=path is not None)
    return normalising(model, *statistics(name, used), used=used if used != channels else None)


def _require_bands(title: str, channels: int, bands: str) -> None:
    """Raise BadInput unless it is said how pretrained weights serve images of this number of channels."""
    if bands == "none":
        first = "--set backbone.bands=first3 (the first three), " if channels > COLOURS else ""
        raise BadInput(
            f"{title}: pretrained weights are for images of {COLOURS} channels, or of 1, which are expanded, not of "
            f"{channels}; write {first}--set backbone.bands=fresh (a new first layer), or --weights none"
        )
    if bands == "first3" and channels < COLOURS:
        raise BadInput(f"{title}: backbone.bands=first3 needs images of {COLOURS} channels or more, not of {channels}")


def _transforms(name: str) -> Any:
    # This only creates an object with the settings of the transforms; it does not read weights.
    return torchvision.models.get_model_weights(name).DEFAULT.transforms()


def _architecture(name: str, size: int, classes: int) -> nn.Module:
    settings: dict[str, Any] = {"num_classes": classes}
    if name.startswith("vit_"):
        settings["image_size"] = size
    elif name.startswith("maxvit_"):
        settings["input_size"] = (size, size)
    elif name in ("googlenet", "inception_v3"):
        # Disable auxiliary logits. Published weights are for another normalisation. With `transform_input`, the models
        # convert their input, as in torchvision.
        settings |= {"aux_logits": False, "init_weights": True, "transform_input": True}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return model


@functools.cache
def _require_fit(name: str, size: int) -> None:
    """Raise BadInput unless the model has a linear head and works on images of this size.

    The check runs the model on the meta device, without computation.
    """
    title = f"backbone torchvision:{name}"
    advice = f"set another, such as --image-size {published_size(name)}"
    patch = int(name.rpartition("_")[2]) if name.startswith("vit_") else 1
    if size % patch:
        raise BadInput(f"{title}: the image size must be a multiple of {patch}, not {size}; {advice}")
    try:
        model = _meta_model(name, size).eval()
        find_head(model)
        with torch.no_grad():
            model(torch.zeros(1, COLOURS, size, size, device="meta"))
    except BadInput as error:
        raise BadInput(f"{title}: {error}") from None
    except Exception as error:  # layers raise many kinds of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{title}: it does not work on images of {size}x{size} pixels ({reason}); {advice}") from None


def _meta_model(name: str, size: int) -> nn.Module:
    """Return the model on the meta device, without memory for its weights."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _architecture(name, size, 2)
        except NotImplementedError:  # RegNet computes its widths with tensors
            return _architecture(name, size, 2).to("meta")


def _rebuild_first(model: nn.Module, channels: int, *, is_pretrained: bool) -> None:
    """Replace the first convolution by one for another number of channels, with the mean of pretrained weights."""
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    fresh = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        first.dilation,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    if is_pretrained:
        with torch.no_grad():
            mean = first.weight.mean(dim=1, keepdim=True) * (first.in_channels / channels)
            fresh.weight.copy_(mean.expand_as(fresh.weight))
            if first.bias is not None and fresh.bias is not None:
                fresh.bias.copy_(first.bias)
    replace_layer(model, first, fresh)
    if hasattr(model, "transform_input"):
        model.transform_input = False  # type: ignore[assignment]  # it is for red, green and blue
