"""Load plugins and look up what they offer: built-ins, installed packages, then files named by the user."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from adaptkit import hookspecs
from adaptkit.errors import AdaptkitError, BadInput, suggestion
from adaptkit.offers import COLLECTIONS, TITLES, Offer, make_offer

ENTRY_POINT_GROUP = "adaptkit"

BUILT_INS = (
    "adaptkit.strategies.full",
    "adaptkit.strategies.head",
    "adaptkit.strategies.lora",
    "adaptkit.strategies.scratch",
    "adaptkit.backbones.small_cnn",
    "adaptkit.data.mnist5k",
    "adaptkit.data.digits",
    "adaptkit.data.torchvision_sets",
    "adaptkit.data.shifts",
)


class PluginWarning(UserWarning):
    """Tell that a plugin could not be loaded, or failed while it watched a run."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with a plugin; `asked_for` says that the user named it, so nothing may run without it."""

    origin: str
    message: str
    asked_for: bool = False

    def __str__(self) -> str:
        return f"plugin {self.origin}: {self.message}"


@dataclass(frozen=True)
class Plugins:
    """The loaded plugins: what they offer by kind and name, and what went wrong."""

    manager: pluggy.PluginManager
    offers: dict[str, dict[str, Offer]]
    faults: tuple[Fault, ...]
    files: tuple[str, ...] = ()

    def find(self, kind: str, name: str) -> Offer:
        """Return the offer of that name; raise BadInput with the nearest name when there is none."""
        try:
            return self.offers[kind][name]
        except KeyError:
            unloaded = "".join(f" ({fault})" for fault in self.faults)
            problem = f"unknown {TITLES[kind]} {name!r}{suggestion(name, self.offers[kind])}{unloaded}"
            raise BadInput(problem) from None

    def require_sound(self) -> None:
        """Raise BadInput for faults that the user must mend first, warn of the others."""
        strict = os.environ.get("ADAPTKIT_STRICT") == "1"
        fatal = [str(fault) for fault in self.faults if fault.asked_for or strict]
        if fatal:
            raise BadInput(*fatal)
        for fault in self.faults:
            warnings.warn(f"{fault} (skipped)", PluginWarning, stacklevel=2)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call each implementation of an event hook, the latest first; one that raises is a warning.

        Errors of adaptkit's own family pass, as every error does under `ADAPTKIT_STRICT=1`.
        """
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            try:
                implementation.function(*[arguments[name] for name in implementation.argnames])
            except AdaptkitError:
                raise
            except Exception as error:
                if os.environ.get("ADAPTKIT_STRICT") == "1":
                    raise
                place = traceback.extract_tb(error.__traceback__)[-1]
                warnings.warn(
                    f"plugin {implementation.plugin_name} failed in {hook}: {type(error).__name__}: {error}"
                    f" ({place.filename}:{place.lineno}); the run goes on",
                    PluginWarning,
                    stacklevel=2,
                )


def load_plugins(files: Iterable[str | Path] = (), objects: Iterable[object] = ()) -> Plugins:
    """Load the built-ins, installed entry points, `ADAPTKIT_PLUGINS` and these files, and collect their offers.

    A plugin that cannot be loaded becomes a fault; `Plugins.require_sound` decides what follows from it.
    """
    manager = pluggy.PluginManager("adaptkit")
    manager.add_hookspecs(hookspecs)
    faults: list[Fault] = []
    for name in BUILT_INS:
        manager.register(importlib.import_module(name), name=f"built-in {name.rpartition('.')[2]}")
    for entry_point in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        distribution = entry_point.dist
        origin = f"{distribution.name} {distribution.version}" if distribution else entry_point.name
        if manager.has_plugin(origin):
            origin = f"{origin} ({entry_point.name})"
        try:
            _register(manager, entry_point.load(), origin)
        except (Exception, SystemExit) as error:
            faults.append(Fault(origin, _reason(error)))
    named = [part for part in os.environ.get("ADAPTKIT_PLUGINS", "").split(os.pathsep) if part]
    paths = tuple(dict.fromkeys(Path(file).expanduser().absolute() for file in (*named, *files)))
    for path in paths:
        try:
            _register(manager, _import_file(path), str(path))
        except (Exception, SystemExit) as error:
            faults.append(Fault(str(path), _reason(error), asked_for=True))
    for thing in objects:
        _register(manager, thing, getattr(thing, "__name__", repr(thing)))
    offers = _collect(manager, faults)
    return Plugins(manager, offers, tuple(faults), tuple(map(str, paths)))


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadInput("it is a folder, not a Python file" if path.is_dir() else "there is no such file")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"adaptkit_file_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it executes
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _register(manager: pluggy.PluginManager, plugin: object, origin: str) -> None:
    try:
        manager.register(plugin, name=origin)
        callers = manager.get_hookcallers(plugin) or []
        unknown = [caller.name for caller in callers if caller.spec is None]
        if unknown:
            specified = [name for name in vars(hookspecs) if name.startswith("adaptkit_")]
            raise BadInput(*(f"unknown hook {name}{suggestion(name, specified)}" for name in unknown))
        if not callers:
            raise BadInput("it has no hooks (is @hookimpl missing?)")
        if any(impl.hookwrapper or impl.wrapper for caller in callers for impl in caller.get_hookimpls()):
            raise BadInput("hook wrappers are not supported")
    except Exception:
        # pluggy keeps the hooks that it had read before it came to the bad one.
        if manager.has_plugin(origin):
            manager.unregister(name=origin)
        raise


def _collect(manager: pluggy.PluginManager, faults: list[Fault]) -> dict[str, dict[str, Offer]]:
    offers: dict[str, dict[str, Offer]] = {}
    for kind, (hook, _) in COLLECTIONS.items():
        found: dict[str, Offer] = {}
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            origin = str(implementation.plugin_name)
            try:
                classes: Sequence[type[Any]] = list(implementation.function())
                offered = [make_offer(kind, cls, origin) for cls in classes]
            except Exception as error:
                faults.append(Fault(origin, f"{hook}: {_reason(error)}", asked_for=origin.startswith(os.sep)))
                continue
            for offer in offered:
                if offer.name in found:
                    first = found[offer.name].origin
                    message = f"{TITLES[kind]} {offer.name!r} is offered already by {first}; remove or rename one"
                    faults.append(Fault(origin, message, asked_for=True))
                else:
                    found[offer.name] = offer
        offers[kind] = dict(sorted(found.items()))
    return offers


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it ended Python while it was imported (sys.exit)"
    if isinstance(error, SyntaxError):
        return f"syntax error in line {error.lineno}: {error.msg}"
    if isinstance(error, AdaptkitError):
        return "; ".join(error.problems)
    return f"{type(error).__name__}: {error}".replace("\n", " ")
