"""Load plugins: built-ins, installed packages, then files and objects that the user names."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pluggy

from adaptkit import hookspecs
from adaptkit.errors import AdaptkitError, BadInput, suggestion
from adaptkit.plugins.manager import Fault, Plugins, Source
from adaptkit.plugins.offers import COLLECTIONS, TITLES, Offer, make_offer
from adaptkit.system.files import expanded
from adaptkit.version import __version__

ENTRY_POINT_GROUP = "adaptkit"

BUILT_INS = (
    "adaptkit.strategies.adapter",
    "adaptkit.strategies.full",
    "adaptkit.strategies.head",
    "adaptkit.strategies.lora",
    "adaptkit.strategies.norm",
    "adaptkit.strategies.partial",
    "adaptkit.strategies.scratch",
    "adaptkit.strategies.ssf",
    "adaptkit.backbones.small_cnn",
    "adaptkit.backbones.torchvision",
    "adaptkit.data.sets.mnist5k",
    "adaptkit.data.sets.digits",
    "adaptkit.data.sets.folder",
    "adaptkit.data.sets.torchvision_sets",
    "adaptkit.data.shifts",
    "adaptkit.data.augmentations",
    "adaptkit.sweeps.engines.local",
)

#: packages that take from half a second to several to be imported
HEAVY = (
    *("torch", "torchvision", "mlflow", "sklearn", "scipy.stats", "pandas", "matplotlib.pyplot"),
    *("timm", "peft", "transformers", "tensorflow", "jax"),
)


def load_plugins(files: Iterable[str | Path] = (), objects: Iterable[object] = ()) -> Plugins:
    """Load the built-ins, installed entry points, `ADAPTKIT_PLUGINS` and these files, and collect their offers.

    `ADAPTKIT_ENTRY_POINTS=0` leaves the installed ones out. A plugin that cannot be loaded becomes a fault;
    `Plugins.require_sound` decides what follows from it.
    """
    manager = pluggy.PluginManager("adaptkit")
    manager.add_hookspecs(hookspecs)
    sources: list[Source] = []
    faults: list[Fault] = []

    def load(source: Source, imported: Callable[[], object]) -> None:
        sources.append(source)
        before = set(sys.modules)
        try:
            _register(manager, imported(), source.origin)
        except (Exception, SystemExit) as error:
            faults.append(Fault(source, _reason(error), fatal=source.kind == "file"))
            return
        heavy = [name for name in HEAVY if name in sys.modules and name not in before]
        if heavy and source.kind == "installed":
            message = (
                f"importing it imports {', '.join(heavy)}, which slows every command: import inside methods instead"
            )
            faults.append(Fault(source, message, works=True))

    for name in BUILT_INS:
        manager.register(importlib.import_module(name), name=f"built-in {name.rpartition('.')[2]}")
        sources.append(Source(f"built-in {name.rpartition('.')[2]}", "built-in"))
    if os.environ.get("ADAPTKIT_ENTRY_POINTS") != "0":
        points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        for point in sorted(points, key=lambda point: point.name):
            load(_source_of(point, {source.origin for source in sources}), point.load)
    named = [part for part in os.environ.get("ADAPTKIT_PLUGINS", "").split(os.pathsep) if part]
    for path in dict.fromkeys(expanded(file).absolute() for file in (*named, *files)):
        load(Source(str(path), "file", str(path)), lambda path=path: _import_file(path))  # type: ignore[misc]
    for thing in objects:
        source = Source(getattr(thing, "__name__", repr(thing)), "object")
        _register(manager, thing, source.origin)
        sources.append(source)
    by_origin = {source.origin: source for source in sources}
    offers = _collect(manager, by_origin, faults)
    return Plugins(manager, offers, tuple(sources), tuple(faults))


def _source_of(point: importlib.metadata.EntryPoint, known: set[str]) -> Source:
    distribution = point.dist
    if distribution is None:
        return Source(point.name, "installed", point.value)
    origin = f"{distribution.name} {distribution.version}"
    if origin in known:
        origin = f"{origin} ({point.name})"
    hint = f"mend it, or remove it with pip uninstall {distribution.name}"
    return Source(origin, "installed", point.value, hint)


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
        needed = getattr(plugin, "API_VERSION", hookspecs.API_VERSION)
        if needed > hookspecs.API_VERSION:
            raise BadInput(
                f"it needs version {needed} of adaptkit's plugin API, and adaptkit {__version__} has "
                f"{hookspecs.API_VERSION}: a newer adaptkit-vision is needed"
            )
    except Exception:
        # pluggy keeps the hooks that it had read before it came to the bad one.
        if manager.has_plugin(origin):
            manager.unregister(name=origin)
        raise


def _collect(
    manager: pluggy.PluginManager, sources: dict[str, Source], faults: list[Fault]
) -> dict[str, dict[str, Offer]]:
    offers: dict[str, dict[str, Offer]] = {}
    for kind, (hook, _) in COLLECTIONS.items():
        found: dict[str, Offer] = {}
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            source = sources[str(implementation.plugin_name)]
            named = source.kind in ("file", "object")
            try:
                classes = implementation.function()
                if not isinstance(classes, list | tuple):
                    raise BadInput(f"it returned {type(classes).__name__}, not a list of classes")
                offered = [make_offer(kind, cls, source.origin) for cls in classes]
            except (Exception, SystemExit) as error:
                faults.append(Fault(source, f"{hook}: {_reason(error)}", fatal=named))
                continue
            for offer in offered:
                if offer.name in found:
                    first = found[offer.name].origin
                    message = f"{TITLES[kind]} {offer.name!r} is offered already by {first}; remove or rename one"
                    faults.append(Fault(source, message, fatal=named, taken=(kind, offer.name)))
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
