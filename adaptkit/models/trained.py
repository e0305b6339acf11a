"""Load the model of a finished run from its artifacts, or from an exported folder."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from adaptkit.adapters.files import card_digest, load_adapter, read_card, read_weights
from adaptkit.adapters.weights import fingerprint
from adaptkit.backbones.structure import with_head
from adaptkit.contracts import Backbone, Strategy
from adaptkit.data.raw_values import RAW_VALUES, READERS, Conversion
from adaptkit.data.readers.files import RawFiles, readers_of
from adaptkit.errors import BadInput, located
from adaptkit.experiment.base_cache import stored_base
from adaptkit.experiment.forward import are_same_logits, sample_logits
from adaptkit.models.preprocessing import Preprocessing
from adaptkit.names import (
    ADAPTER_CARD_FILE,
    ADAPTER_CARD_PATH,
    ADAPTER_FOLDER,
    ADAPTER_SHA256_TAG,
    ADAPTER_WEIGHTS_FILE,
    BASE_CARD_FILE,
    BASE_FINGERPRINT_TAG,
    BASE_FOLDER,
    BASE_WEIGHTS_FILE,
    BASE_WEIGHTS_PATH,
    RECIPE_KEY_TAG,
)
from adaptkit.plugins.components import is_fitted, make_checked, options_of
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.request import WEIGHTS as WEIGHTS_OPTION
from adaptkit.system.files import sha256_of
from adaptkit.tracking.runs import StoredRun, open_runs
from adaptkit.training.objective import calibrate
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt, freeze

#: files of a model exported as "merged"
EXPORT_CARD, EXPORT_WEIGHTS = "model.json", "model.safetensors"

#: key of the temperature in the cards of calibrated models
TEMPERATURE = "temperature"

MODEL_TYPES = {
    **{"backbone": str, "backbone_options": dict, "preprocessing": dict},
    **{"channels": int, "size": int, "classes": list},
}
ADAPTER_TYPES = {"strategy": str, "options": dict, "init_seed": int, "base_fingerprint": str, "sha256": str}


if TYPE_CHECKING:

    class LoadedModule(nn.Module):
        """The type of a loaded model, for type checkers."""

        classes: tuple[str, ...]
        preprocess: Preprocessing


def load(
    run: str | Path,
    *,
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    merged: bool = True,
    device: str | torch.device = "cpu",
) -> LoadedModule:
    """Load the model of a finished run, in evaluation mode.

    Parameters
    ----------
    run : str or path
        Run id, or a folder that `adaptkit.export` wrote in the format "merged". The id of a base run loads the base.
    tracking_uri : str, optional
        MLflow store. Default: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.
    plugins : iterable of path or object, optional
        Plugin files, or objects with hooks.
    backbone : torch.nn.Module, optional
        The model, if `adaptkit.run` received a model as `backbone`.
    merged : bool, optional
        Fold the adapter into the weights of the plain backbone, if the strategy supports that. Default: True.
    device : str or torch.device, optional
        Device of the model. Default: "cpu".

    Returns
    -------
    torch.nn.Module
        Maps images `[n, channels, size, size]` to logits `[n, classes]`. `model.classes` holds the names of the
        classes. `model.preprocess` makes such images from a path, a PIL image, a tensor or a list of them.

    Raises
    ------
    BadInput
        If the run has no model, or if its files are damaged.

    Examples
    --------
    >>> model = adaptkit.load(run_id)
    >>> logits = model(model.preprocess("photos/0.png"))
    >>> logits.shape
    torch.Size([1, 10])
    >>> model.classes[logits.argmax()]
    '...'
    """
    chosen = given_plugins(plugins, backbone)
    loaded = read_export(run, chosen)
    if loaded is None:
        loaded = find_trained(str(run), tracking_uri, chosen).loaded(merged=merged)
    model = loaded.model
    for name, value in (("classes", loaded.classes), ("preprocess", loaded.preprocessing)):
        if not hasattr(model, name):  # a model may use an attribute of this name in its forward pass
            setattr(model, name, value)
    return cast("LoadedModule", model.to(device))


@dataclass(frozen=True)
class LoadedModel:
    """A model on the CPU, the names of its classes, and the preprocessing of its images."""

    model: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing


@dataclass(frozen=True)
class TrainedRun:
    """The model of a run, rebuilt on the CPU: the weights of the base, and the adapted model.

    `card` is the content of adapter.json, or of base.json for a base run, which has no strategy.
    """

    stored: StoredRun
    card: Mapping[str, Any]
    backbone: Backbone
    base_state: Mapping[str, Tensor]
    strategy: Strategy | None
    adapted: nn.Module
    adapter_names: tuple[str, ...] = ()
    #: classes of readers by name
    readers: Mapping[str, type[Any]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the logits."""
        return tuple(self.card["classes"])

    @property
    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing that converts images to the input of the model."""
        return preprocessing_of(self.card, self.readers)

    @property
    def described_preprocessing(self) -> Mapping[str, Any]:
        """Describe the preprocessing, including the part inside the model, for use without adaptkit."""
        described: Mapping[str, Any] = self.card["preprocessing"]
        return described

    @property
    def temperature(self) -> float | None:
        """Return the number by which the model divides its logits; None if it is not calibrated."""
        return read_temperature(self.card)

    @functools.cached_property
    def base_fingerprint(self) -> str:
        """Return the sha256 of the weights of the base."""
        return fingerprint(self.base_state)

    @property
    def adapter(self) -> dict[str, Tensor]:
        """Return the adapter's tensors by name."""
        state = self.adapted.state_dict()
        return {name: state[name] for name in self.adapter_names}

    def base(self) -> nn.Module:
        """Return a fresh plain backbone with the base's weights."""
        return _base_model(self.backbone, self.card, state=self.base_state, title=self.stored.title)

    def merged(self) -> nn.Module:
        """Return a copy of the model with the adapter folded into the weights, if the strategy supports that."""
        model = copy.deepcopy(self.adapted)
        if self.strategy is not None and hasattr(self.strategy, "merge"):
            try:
                self.strategy.merge(model)
            except Exception as error:
                raise BadInput(f"strategy {self.card['strategy']} cannot be merged: {located(error)}") from error
        freeze(model)
        return model.eval()

    def loaded(self, *, merged: bool = True) -> LoadedModel:
        """Return the merged or the adapted model with its classes and preprocessing."""
        return LoadedModel(self.merged() if merged else self.adapted, self.classes, self.preprocessing)

    def is_plain(self, model: nn.Module) -> bool:
        """Return whether a model has the layout of the plain backbone."""
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return shapes == {name: tensor.shape for name, tensor in self.base_state.items()}


def given_plugins(plugins: Iterable[str | Path | object], backbone: nn.Module | None = None) -> Plugins:
    """Load plugins from files and objects, and a plugin that provides the model `backbone`."""
    listed = list(plugins)
    if backbone is not None:
        from adaptkit.backbones.python_model import python_backbone

        listed.append(python_backbone(backbone))
    files = [plugin for plugin in listed if isinstance(plugin, str | Path)]
    loaded = load_plugins(files, [plugin for plugin in listed if not isinstance(plugin, str | Path)])
    loaded.require_sound()
    return loaded


def read_export(folder: str | Path, plugins: Plugins) -> LoadedModel | None:
    """Load a folder that was exported as "merged"; return None if the path is not an exported folder.

    Raises BadInput for an export in another format, or a damaged export.
    """
    path = Path(folder)
    if not (path / EXPORT_CARD).is_file():
        return None
    card = read_card(path / EXPORT_CARD, {"format": str} | MODEL_TYPES)
    if card["format"] != "merged":
        raise BadInput(
            f"{path} holds a model in the format {card['format']}; only merged exports can be loaded: see its README.md"
        )
    return exported_model(path, _find_backbone(card, plugins, str(path)), plugins.readers)


def exported_model(folder: Path, backbone: Backbone, readers: Mapping[str, type[Any]]) -> LoadedModel:
    """Build the backbone for a merged export and load its weights; `readers` are the classes of readers by name."""
    card = read_card(folder / EXPORT_CARD, MODEL_TYPES)
    model = _base_model(backbone, card, state=read_weights(folder / EXPORT_WEIGHTS), title=str(folder))
    freeze(model)
    try:
        calibrate(model, read_temperature(card))
    except BadInput as error:
        raise BadInput(*(f"{folder / EXPORT_CARD}: {line}" for line in error.problems)) from None
    return LoadedModel(model, tuple(card["classes"]), preprocessing_of(card, readers))


def preprocessing_of(card: Mapping[str, Any], readers: Mapping[str, type[Any]]) -> Preprocessing:
    """Return the preprocessing that a card describes; `readers` are the classes of readers by name."""
    described = card["preprocessing"]
    if RAW_VALUES not in described:
        return Preprocessing(card["channels"], card["size"])
    options = described.get(READERS, {})
    if missing := [name for name in options if name not in readers]:
        raise BadInput(f"reader {missing[0]} is not loaded; name its plugin with --plugin PATH")
    made = tuple(make_checked(name, cls, options.get(name, {}))[0] for name, cls in readers.items())
    raw = RawFiles(readers_of(made), Conversion.of(described[RAW_VALUES]))
    return Preprocessing(card["channels"], card["size"], raw)


def read_temperature(card: Mapping[str, Any]) -> float | None:
    """Return the temperature of a calibrated model from its card; None for other models."""
    value = card.get(TEMPERATURE)
    if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
        raise BadInput(f"the {TEMPERATURE} must be a positive number, got {value!r}")
    return value


def find_trained(run_id: str, tracking_uri: str | None, plugins: Plugins) -> TrainedRun:
    """Find a finished run and rebuild its model; raise BadInput if that is not possible."""
    stored = open_runs(tracking_uri).find(run_id)
    if stored.kind == "base":
        return _rebuilt_base(stored, plugins)
    with stored.folder(ADAPTER_FOLDER, ADAPTER_WEIGHTS_FILE, ADAPTER_CARD_FILE) as folder:
        card = read_card(folder / ADAPTER_CARD_FILE, ADAPTER_TYPES | MODEL_TYPES)
        signed = stored.tags.get(ADAPTER_SHA256_TAG)
        if signed is None:
            raise BadInput(
                f"{stored.title} was recorded by an old version, without a signature of its adapter; repeat the run"
            )
        if sha256_of(folder / ADAPTER_CARD_FILE) != signed:
            raise BadInput(
                f"{stored.title}: its {ADAPTER_CARD_PATH} was altered or belongs to another run: its sha256 "
                "differs from the tag of the run"
            )
        state, logits = find_base(stored, card["base_fingerprint"])
        backbone = _find_backbone(card, plugins, stored.title)
        model = _base_model(backbone, card, state=state, title=stored.title)
        _require_same_outputs(model, card, logits, stored.title)
        try:
            offer = plugins.find("strategy", card["strategy"])
            strategy, _ = make_checked(card["strategy"], offer.cls, card["options"])
            adapt(model, strategy, init_seed=card["init_seed"], new_head=bool(card.get("new_head")))
        except BadInput as error:
            raise BadInput(*(f"{stored.title}: {line}" for line in error.problems)) from None
        except Exception as error:
            raise BadInput(f"{stored.title}: strategy {card['strategy']} fails: {located(error)}") from error
        try:
            names = load_adapter(folder, model, fingerprint(state), free_rows=is_fitted(strategy))
            calibrate(model, read_temperature(card))
        except BadInput as error:
            raise BadInput(*(f"{stored.title}: {line}" for line in error.problems)) from None
    return TrainedRun(
        stored=stored,
        card=card,
        backbone=backbone,
        base_state=state,
        strategy=strategy,
        adapted=model.eval(),
        adapter_names=names,
        readers=plugins.readers,
    )


def _rebuilt_base(stored: StoredRun, plugins: Plugins) -> TrainedRun:
    with stored.folder(BASE_FOLDER, BASE_WEIGHTS_FILE, BASE_CARD_FILE) as folder:
        card = read_card(folder / BASE_CARD_FILE, {"fingerprint": str} | MODEL_TYPES)
        state = read_weights(folder / BASE_WEIGHTS_FILE)
    if card.get("card_sha256") not in (None, card_digest(card)):
        raise BadInput(f"{stored.title}: {BASE_FOLDER}/{BASE_CARD_FILE} was altered: its sha256 has changed")
    if (now := fingerprint(state)) != card["fingerprint"]:
        raise BadInput(f"{stored.title}: its base is damaged: its fingerprint is {now}, and was {card['fingerprint']}")
    backbone = _find_backbone(card, plugins, stored.title)
    model = _base_model(backbone, card, state=state, title=stored.title)
    _require_same_outputs(model, card, card.get("logits"), stored.title)
    freeze(model)
    return TrainedRun(
        stored=stored,
        card=card,
        backbone=backbone,
        base_state=state,
        strategy=None,
        adapted=model,
        readers=plugins.readers,
    )


def find_base(stored: StoredRun, wanted: str) -> tuple[dict[str, Tensor], Any]:
    """Return the weights of the base and its recorded logits, from the artifact of its run or from the cache.

    The caller compares their fingerprint with the one in the card of the adapter.
    """
    keys = []
    for base in stored.bases(wanted):
        if base.has(BASE_WEIGHTS_PATH):
            with base.folder(BASE_FOLDER, BASE_WEIGHTS_FILE, BASE_CARD_FILE) as folder:
                state = read_weights(folder / BASE_WEIGHTS_FILE)
                logits = read_card(folder / BASE_CARD_FILE, {}).get("logits")
            if base.tags.get(BASE_FINGERPRINT_TAG) == wanted != fingerprint(state):
                raise BadInput(
                    f"{stored.title}: {BASE_WEIGHTS_PATH} of its base, {base.title}, is damaged: its fingerprint is "
                    f"{fingerprint(state)}, and was {wanted}"
                )
            return state, logits
        keys.append(base.tags.get(RECIPE_KEY_TAG, ""))
    for key in filter(None, keys):
        kept = stored_base(key)
        if kept is not None:
            return dict(kept.state), kept.logits
    where = f"its base run has no artifact {BASE_WEIGHTS_PATH}" if keys else "its base run is not in the store"
    raise BadInput(f"{stored.title}: {where}, and the cache of this machine has no base {wanted}; repeat the run")


def _find_backbone(card: Mapping[str, Any], plugins: Plugins, title: str) -> Backbone:
    """Return the backbone of a card without pretrained weights, because the weights of the run are loaded into it."""
    name = card["backbone"]
    if name.startswith("python:") and "python" not in plugins.components["backbone"]:
        raise BadInput(
            f"{title}: its backbone {name} is a Python object; pass it again: adaptkit.load(run_id, backbone=model)"
        )
    try:
        cls = plugins.find("backbone", name).cls
        options = dict(card["backbone_options"])
        if WEIGHTS_OPTION in options_of(cls):
            options[WEIGHTS_OPTION] = "none"
        backbone, _ = make_checked("backbone", cls, options, argument=name.partition(":")[2])
    except BadInput as error:
        hint = "; name its plugin with --plugin PATH" if "unknown backbone" in str(error) else ""
        raise BadInput(*(f"{title}: {line}{hint}" for line in error.problems)) from None
    return cast("Backbone", backbone)


def _base_model(backbone: Backbone, card: Mapping[str, Any], state: Mapping[str, Tensor], title: str) -> nn.Module:
    model = _build(backbone, card, title)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in state.items()}:
        raise BadInput(f"{title}: the layers of the backbone {card['backbone']} differ from those of the saved weights")
    model.load_state_dict(dict(state))
    return model.eval()


def _require_same_outputs(model: nn.Module, card: Mapping[str, Any], logits: Any, title: str) -> None:
    """Raise BadInput unless a base gives its recorded logits, if there are any."""
    if logits and not are_same_logits(logits, sample_logits(model, card["channels"], card["size"])):
        raise BadInput(
            f"{title}: backbone {card['backbone']} gives other outputs for the weights of the base than when the run "
            "was made: its code has changed; restore it"
        )


def _build(backbone: Backbone, card: Mapping[str, Any], title: str) -> nn.Module:
    try:
        with RandomStream(0):
            model: Any = backbone.build(card["channels"], card["size"], len(card["classes"]))
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{title}: backbone {card['backbone']} fails: {located(error)}") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"{title}: backbone {card['backbone']} does not build a torch.nn.Module")
    standardize = card["preprocessing"].get("standardize")
    return with_head(model, (card["channels"], card["size"]), standardize=standardize)
