"""Find a finished run in a store and rebuild its model: everything comes from the run's artifacts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.adapters.files import card_digest, load_adapter, read_card, read_weights
from adaptkit.adapters.weights import fingerprint
from adaptkit.backbones.structure import with_head
from adaptkit.contracts import Backbone, Strategy
from adaptkit.errors import BadInput, located
from adaptkit.experiment.base_cache import stored_base
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
from adaptkit.plugins.components import make_checked, options_of
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.request import WEIGHTS as WEIGHTS_OPTION
from adaptkit.system.files import sha256_of
from adaptkit.tracking.runs import StoredRun, open_runs
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt, freeze

MODEL_TYPES = {
    **{"backbone": str, "backbone_options": dict, "preprocessing": dict},
    **{"channels": int, "size": int, "classes": list},
}
ADAPTER_TYPES = {"strategy": str, "options": dict, "init_seed": int, "base_fingerprint": str, "sha256": str}


def load(
    run_id: str,
    *,
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    merged: bool = True,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Return the model of a finished run, ready in evaluation mode, with `classes` and `preprocess`.

    `model(model.preprocess("picture.jpg"))` gives logits `[1, classes]`; preprocess takes a path, a PIL image, a tensor
    or a list of them. The model is the plain backbone with merged weights, or, not `merged`, the adapted one; a
    strategy that cannot merge gives that in any case. A base run's id loads the base. A model that was given from
    Python is given again as `backbone`. Raises BadInput.
    """
    trained = find_trained(run_id, tracking_uri, given_plugins(plugins, backbone))
    model = trained.merged() if merged else trained.adapted
    for name, value in (("classes", trained.classes), ("preprocess", trained.preprocessing)):
        if not hasattr(model, name):  # a member of its own, which its forward pass may use, is left alone
            setattr(model, name, value)
    return model.to(device)


@dataclass(frozen=True)
class TrainedRun:
    """A run's model, rebuilt on the CPU: the base's weights, and what the strategy made of them.

    `card` is the adapter's, or the base's where the run is a base run, which has no strategy.
    """

    found: StoredRun
    card: Mapping[str, Any]
    backbone: Backbone
    base_state: Mapping[str, Tensor]
    strategy: Strategy | None
    adapted: nn.Module
    adapter_names: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the logits."""
        return tuple(self.card["classes"])

    @property
    def preprocessing(self) -> Preprocessing:
        """Return what brings pictures to the model's images."""
        return Preprocessing(self.card["channels"], self.card["size"])

    @property
    def described_preprocessing(self) -> Mapping[str, Any]:
        """Return what is done to pictures before and in the model, for people who do it without adaptkit."""
        described: Mapping[str, Any] = self.card["preprocessing"]
        return described

    @functools.cached_property
    def base_fingerprint(self) -> str:
        """Return the sha256 of the base's weights as they are."""
        return fingerprint(self.base_state)

    @property
    def adapter(self) -> dict[str, Tensor]:
        """Return the adapter's tensors by name."""
        state = self.adapted.state_dict()
        return {name: state[name] for name in self.adapter_names}

    def base(self) -> nn.Module:
        """Return a fresh plain backbone with the base's weights."""
        return _base_model(self.backbone, self.card, self.base_state, self.found.title)

    def merged(self) -> nn.Module:
        """Return a copy of the model with the adapter folded into the backbone's weights, where that is possible."""
        model = copy.deepcopy(self.adapted)
        if self.strategy is not None and hasattr(self.strategy, "merge"):
            try:
                self.strategy.merge(model)
            except Exception as error:
                raise BadInput(f"strategy {self.card['strategy']} cannot be merged: {located(error)}") from error
        freeze(model)
        return model.eval()

    def is_plain(self, model: nn.Module) -> bool:
        """Tell whether a model has the layout of the plain backbone."""
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return shapes == {name: tensor.shape for name, tensor in self.base_state.items()}


def given_plugins(things: Iterable[str | Path | object], backbone: nn.Module | None = None) -> Plugins:
    """Load plugins that are named by their files, or given as objects, and a model that was given as backbone."""
    listed = list(things)
    if backbone is not None:
        from adaptkit.backbones.python_model import python_backbone

        listed.append(python_backbone(backbone))
    files = [thing for thing in listed if isinstance(thing, str | Path)]
    plugins = load_plugins(files, [thing for thing in listed if not isinstance(thing, str | Path)])
    plugins.require_sound()
    return plugins


def find_trained(run_id: str, tracking_uri: str | None, plugins: Plugins) -> TrainedRun:
    """Find a finished run and rebuild its model; raise BadInput for one that has none, or none that can be rebuilt."""
    found = open_runs(tracking_uri).find(run_id)
    if found.kind == "base":
        return _rebuilt_base(found, plugins)
    with found.folder(ADAPTER_FOLDER, ADAPTER_WEIGHTS_FILE, ADAPTER_CARD_FILE) as folder:
        card = read_card(folder / ADAPTER_CARD_FILE, ADAPTER_TYPES | MODEL_TYPES)
        signed = found.tags.get(ADAPTER_SHA256_TAG)
        if signed is None:
            raise BadInput(f"{found.title} was recorded before adapters were signed: run it again with this adaptkit")
        if sha256_of(folder / ADAPTER_CARD_FILE) != signed:
            raise BadInput(
                f"{found.title}: its {ADAPTER_CARD_PATH} was altered, or is another run's: the run says otherwise"
            )
        state = _base_state(found, card["base_fingerprint"])
        backbone = _find_backbone(card, plugins, found.title)
        model = _base_model(backbone, card, state, found.title)
        try:
            offer = plugins.find("strategy", card["strategy"])
            strategy, _ = make_checked(card["strategy"], offer.cls, card["options"])
            adapt(model, strategy, init_seed=card["init_seed"], new_head=bool(card.get("new_head")))
        except BadInput as error:
            raise BadInput(*(f"{found.title}: {line}" for line in error.problems)) from None
        except Exception as error:
            raise BadInput(f"{found.title}: strategy {card['strategy']} fails: {located(error)}") from error
        try:
            names = load_adapter(folder, model, fingerprint(state))
        except BadInput as error:
            raise BadInput(*(f"{found.title}: {line}" for line in error.problems)) from None
    return TrainedRun(found, card, backbone, state, strategy, model.eval(), names)


def _rebuilt_base(found: StoredRun, plugins: Plugins) -> TrainedRun:
    with found.folder(BASE_FOLDER, BASE_WEIGHTS_FILE, BASE_CARD_FILE) as folder:
        card = read_card(folder / BASE_CARD_FILE, {"fingerprint": str} | MODEL_TYPES)
        state = read_weights(folder / BASE_WEIGHTS_FILE)
    if card.get("card_sha256") not in (None, card_digest(card)):
        raise BadInput(f"{found.title}: {BASE_FOLDER}/{BASE_CARD_FILE} was altered: it is not what was written")
    if (now := fingerprint(state)) != card["fingerprint"]:
        raise BadInput(f"{found.title}: its base is damaged: its fingerprint is {now}, and was {card['fingerprint']}")
    backbone = _find_backbone(card, plugins, found.title)
    model = _base_model(backbone, card, state, found.title)
    freeze(model)
    return TrainedRun(found, card, backbone, state, None, model)


def _base_state(found: StoredRun, wanted: str) -> dict[str, Tensor]:
    """Return the base's weights from its run's artifact, else from the cache; what they are is for others to judge."""
    keys = []
    for base in found.bases(wanted):
        if base.has(BASE_WEIGHTS_PATH):
            with base.folder(BASE_FOLDER, BASE_WEIGHTS_FILE) as folder:
                state = read_weights(folder / BASE_WEIGHTS_FILE)
            if base.tags.get(BASE_FINGERPRINT_TAG) == wanted != fingerprint(state):
                raise BadInput(
                    f"{found.title}: {BASE_WEIGHTS_PATH} of its base, {base.title}, is damaged: its fingerprint is "
                    f"{fingerprint(state)}, and was {wanted}"
                )
            return state
        keys.append(base.tags.get(RECIPE_KEY_TAG, ""))
    for key in filter(None, keys):
        kept = stored_base(key)
        if kept is not None:
            return dict(kept.state)
    where = f"its base run has no artifact {BASE_WEIGHTS_PATH}" if keys else "its base run is not in the store"
    raise BadInput(
        f"{found.title}: {where}, and this machine's cache has no base {wanted}: run it again with this adaptkit"
    )


def _find_backbone(card: Mapping[str, Any], plugins: Plugins, title: str) -> Backbone:
    """Return the backbone that a card names, without pretrained weights, for the base has its own."""
    name = card["backbone"]
    if name.startswith("python:") and "python" not in plugins.components["backbone"]:
        raise BadInput(
            f"{title}: its backbone {name} was given from Python: adaptkit.load(run_id, backbone=model) takes it again"
        )
    try:
        cls = plugins.find("backbone", name).cls
        options = dict(card["backbone_options"])
        if WEIGHTS_OPTION in options_of(cls):
            options[WEIGHTS_OPTION] = "none"
        backbone, _ = make_checked("backbone", cls, options, argument=name.partition(":")[2])
    except BadInput as error:
        hint = "; --plugin PATH names the plugin that has it" if "unknown backbone" in str(error) else ""
        raise BadInput(*(f"{title}: {line}{hint}" for line in error.problems)) from None
    found: Backbone = backbone
    return found


def plain_model(
    card: Mapping[str, Any], plugins: Iterable[str | Path | object] = (), backbone: nn.Module | None = None
) -> nn.Module:
    """Return the architecture that a `model.json` describes, with fresh weights; raise BadInput."""
    return _build(_find_backbone(card, given_plugins(plugins, backbone), "the model"), card, "the model")


def _base_model(backbone: Backbone, card: Mapping[str, Any], state: Mapping[str, Tensor], title: str) -> nn.Module:
    model = _build(backbone, card, title)
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in state.items()}:
        raise BadInput(f"{title}: the backbone {card['backbone']} has other layers here than the run's base")
    model.load_state_dict(dict(state))
    return model.eval()


def _build(backbone: Backbone, card: Mapping[str, Any], title: str) -> nn.Module:
    try:
        with RandomStream(0):
            model: Any = backbone.build(card["channels"], card["size"], len(card["classes"]))
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{title}: backbone {card['backbone']} fails: {located(error)}") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"{title}: backbone {card['backbone']} gives no torch.nn.Module")
    return with_head(model)
