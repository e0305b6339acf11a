"""Bases and their cache: each base is trained once per recipe and identified by the sha256 of its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from adaptkit.adapters.files import card_digest
from adaptkit.adapters.weights import fingerprint, pack, unpack
from adaptkit.backbones.structure import BY_IMAGE, BY_SOURCE, with_head
from adaptkit.contracts import Backbone
from adaptkit.data.domains import Domains
from adaptkit.errors import BadInput
from adaptkit.events import Epoch
from adaptkit.experiment.forward import are_same_logits, code_digest, sample_logits
from adaptkit.names import BASE_CARD_FILE, BASE_WEIGHTS_FILE
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import WEIGHTS, Request
from adaptkit.system.files import read_file, write_bytes
from adaptkit.system.folders import cache_folder, cache_limit, warn_of_damage
from adaptkit.training.seeding import RandomStream

#: Increased whenever the same recipe gives different weights, so that old cache entries are not used.
RECIPE_VERSION = 1
CARD_KEYS = {"fingerprint", "key", "epochs", "logits", "card_sha256"}

#: adaptkit's own backbones: RECIPE_VERSION covers their code, so that their bases survive an upgrade
VERSIONED = ("small_cnn", "torchvision")


@dataclass(frozen=True)
class Base:
    """A trained base: its weights and buffers, the record of its training, and its logits for fixed images.

    `logits` is None in entries of earlier versions, and empty for a model that fails on the fixed images.
    """

    key: str
    fingerprint: str
    state: Mapping[str, Tensor]
    epochs: tuple[Epoch, ...]
    logits: list[list[float]] | None = None

    def build(self, request: Request, domains: Domains) -> nn.Module:
        """Return a fresh model with the base's weights."""
        model = _built(request, request.architecture, domains)
        model.load_state_dict(dict(self.state))
        return model

    def sample(self, request: Request, domains: Domains) -> list[list[float]]:
        """Return the logits for fixed images, with the backbone's current code."""
        return sample_logits(self.build(request, domains), domains.channels, domains.size)

    def is_unchanged(self, request: Request, domains: Domains) -> bool:
        """Return whether the backbone's current code gives the recorded logits, or none are recorded."""
        return not self.logits or are_same_logits(self.logits, self.sample(request, domains))


def build_model(request: Request, domains: Domains) -> nn.Module:
    """Return the untrained model, with pretrained weights if any; initial weights depend on the base seed only."""
    return _built(request, request.backbone, domains)


def _built(request: Request, backbone: Backbone, domains: Domains) -> nn.Module:
    with RandomStream(derive_seed(request.settings.base.seed, "base weights")):
        model: Any = backbone.build(domains.channels, domains.size, len(domains.classes))
    if not isinstance(model, nn.Module):
        name = request.settings.backbone
        raise BadInput(f"backbone {name}: build() returned {type(model).__name__}, not a torch.nn.Module")
    return with_head(model, (domains.channels, domains.size), standardize=standardization(request, domains))


def standardization(request: Request, domains: Domains) -> str | None:
    """Return by what the base standardizes its images; None if it takes them as they are, or its weights decide.

    Without a source, there are no images that no fit evaluates; then each image is standardized by itself.
    """
    facts = request.backbone_facts(domains.channels, domains.size)
    if not request.settings.base.standardize or request.is_pretrained or "backbone.mean" in facts:
        return None
    return BY_IMAGE if domains.clean_test is None else BY_SOURCE


#: values of settings of the base with which it is trained as by versions without these settings
PLAIN = {"schedule": "constant", "clip": None, "standardize": False, "mode": "train", "augment": None}


def recipe_key(request: Request, domains: Domains) -> str:
    """Return the sha256 of everything that determines the base's weights, except for rounding."""
    settings = request.settings
    model = build_model(request, domains)
    trained = settings.base.model_dump(exclude={"min_steps"})  # they have determined the epochs
    trained |= {"augment": repr(request.base_augmentations) if request.base_augmentations else None}
    trained = {key: value for key, value in trained.items() if PLAIN.get(key, key) != value}
    recipe = {
        "version": RECIPE_VERSION,
        "source": domains.source_digest,
        "backbone": settings.backbone,
        # The name is not enough: a backbone's layers or initial weights can change.
        "layers": repr(model),
        "start": fingerprint(model.state_dict()),
        "base": trained if domains.clean_test is not None else "not trained",
        "precision": settings.precision,
        "device": settings.device,
        "torch": torch.__version__,
    }
    if settings.backbone.partition(":")[0] not in VERSIONED:
        recipe["code"] = code_digest(model)
    if request.backbone_options:
        # `start` covers the initial weights; the path of their file does not matter.
        options = {key: value for key, value in request.backbone_options.items() if key != WEIGHTS}
        recipe["backbone_options"] = options
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def base_lock(key: str, waiting: Any = None) -> Iterator[None]:
    """Hold the recipe's lock, so that only one process trains; call `waiting()` if another process holds it."""
    folder = _folder(key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
            lock.acquire()
    except OSError as error:
        raise BadInput(
            f"cannot write to the cache folder {folder.parent} ({error.strerror}); set ADAPTKIT_CACHE to another"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def try_lock(key: str) -> Iterator[bool]:
    """Hold the recipe's lock if no other process does; yield whether it is held."""
    lock = FileLock(_folder(key).with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def last_used(key: str) -> float:
    """Return the Unix time at which the base was last written or used."""
    folder = _folder(key)
    card = folder / BASE_CARD_FILE
    return (card if card.exists() else folder).stat().st_mtime


def mark_used(key: str) -> None:
    """Set the time of last use to now, so that other bases are evicted first."""
    with contextlib.suppress(OSError):
        os.utime(_folder(key) / BASE_CARD_FILE)


def stored_base(key: str) -> Base | None:
    """Return the base from the cache, or None if it is missing or damaged."""
    folder = _folder(key)
    try:
        card = json.loads(read_file(folder / BASE_CARD_FILE))
        if (
            not isinstance(card, dict)
            or not set(card) <= CARD_KEYS
            or card.get("card_sha256") not in (None, card_digest(card))
        ):
            return None
        state = unpack(read_file(folder / BASE_WEIGHTS_FILE, None))
        epochs = tuple(Epoch(**epoch) for epoch in card["epochs"])
        base = Base(key=key, fingerprint=card["fingerprint"], state=state, epochs=epochs, logits=card.get("logits"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return base if fingerprint(state) == base.fingerprint else None


def usable_base(key: str, request: Request, domains: Domains) -> Base | None:
    """Return the base from the cache, or None if it is missing, damaged or of a backbone with another forward pass."""
    base = stored_base(key)
    return base if base is not None and base.is_unchanged(request, domains) else None


def sound_base(key: str) -> Base | None:
    """Return the base from the cache, or None if it is missing or damaged; warn about damage."""
    base = stored_base(key)
    if base is None and (_folder(key) / BASE_CARD_FILE).exists():
        warn_of_damage(_folder(key))
    return base


def make_room(kept: str) -> list[int]:
    """Evict the least recently used bases until the cache is within its limit; return the bytes of each evicted base.

    The base `kept` and bases that a process is using stay.
    """
    held, removed = [], []
    for folder in (cache_folder() / "bases").iterdir():
        with contextlib.suppress(OSError):  # another process may be evicting bases too
            if folder.is_dir():
                size = sum(path.stat().st_size for path in folder.iterdir())
                held.append((last_used(folder.name), size, folder.name))
    total = sum(size for _, size, _ in held)
    for _, size, key in sorted(held):
        if total <= cache_limit():
            break
        if key != kept and remove_base(key):
            removed.append(size)
            total -= size
    return removed


def remove_base(key: str) -> bool:
    """Remove a base unless a process is using it; return whether it was removed."""
    with try_lock(key) as free:
        if free:
            shutil.rmtree(_folder(key), ignore_errors=True)
    return free


def store_base(
    key: str, state: Mapping[str, Tensor], epochs: tuple[Epoch, ...], *, request: Request, domains: Domains
) -> Base:
    """Write a base to the cache, with its logits for fixed images, and return it."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    base = Base(key=key, fingerprint=fingerprint(state), state=state, epochs=epochs)
    base = dataclasses.replace(base, logits=base.sample(request, domains))
    card = {
        "fingerprint": base.fingerprint,
        "key": key,
        "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
        "logits": base.logits,
    }
    write_base(_folder(key), base, card)
    return base


def drop_base(key: str) -> None:
    """Remove a base, which no other process uses, from the cache."""
    shutil.rmtree(_folder(key), ignore_errors=True)
    _folder(key).with_suffix(".lock").unlink(missing_ok=True)


def write_base(folder: Path, base: Base, card: Mapping[str, Any]) -> dict[str, Path]:
    """Write a base's weights and the card that describes them; return the files by name."""
    write_bytes(folder / BASE_WEIGHTS_FILE, pack(base.state))
    # Written last: an entry without a card is ignored.
    signed = {**card, "card_sha256": card_digest(json.loads(json.dumps(card)))}
    write_bytes(folder / BASE_CARD_FILE, (json.dumps(signed, indent=2) + "\n").encode())
    return {name: folder / name for name in (BASE_WEIGHTS_FILE, BASE_CARD_FILE)}


def _folder(key: str) -> Path:
    return cache_folder() / "bases" / key
