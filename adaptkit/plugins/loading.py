"""Load plugins: built-in ones, installed packages, and files and objects from the user."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, ModuleType

import pluggy

from adaptkit import hookspecs
from adaptkit.errors import AdaptkitError, BadInput, suggestion
from adaptkit.plugins.components import COLLECTIONS, TITLES, Component, make_component
from adaptkit.plugins.manager import Fault, Plugins, Source
from adaptkit.system.files import expanded
from adaptkit.version import __version__

ENTRY_POINT_GROUP = "adaptkit"

BUILT_INS = (
    "adaptkit.strategies.adapter",
    "adaptkit.strategies.fitted",
    "adaptkit.strategies.full",
    "adaptkit.strategies.head",
    "adaptkit.strategies.lora",
    "adaptkit.strategies.lp_ft",
    "adaptkit.strategies.norm",
    "adaptkit.strategies.partial",
    "adaptkit.strategies.scratch",
    "adaptkit.strategies.ssf",
    "adaptkit.strategies.wise",
    "adaptkit.backbones.small_cnn",
    "adaptkit.backbones.torchvision",
    "adaptkit.data.sets.mnist5k",
    "adaptkit.data.sets.digits",
    "adaptkit.data.sets.folder",
    "adaptkit.data.sets.table",
    "adaptkit.data.sets.torchvision_sets",
    "adaptkit.data.readers.picture",
    "adaptkit.data.readers.arrays",
    "adaptkit.data.readers.fits",
    "adaptkit.data.readers.tiff",
    "adaptkit.data.shifts",
    "adaptkit.data.augmentations",
    "adaptkit.metrics.classification",
    "adaptkit.sweeps.engines.local",
)

#: packages whose import takes half a second or more
HEAVY = (
    *("torch", "torchvision", "mlflow", "sklearn", "scipy.stats", "pandas", "matplotlib.pyplot"),
    *("timm", "peft", "transformers", "tensorflow", "jax"),
)


def load_plugins(files: Iterable[str | Path] = (), objects: Iterable[object] = ()) -> Plugins:
    """Load the built-in plugins, installed entry points, `ADAPTKIT_PLUGINS` and these files, and collect components.

    `ADAPTKIT_ENTRY_POINTS=0` skips installed plugins. A plugin that cannot be loaded becomes a `Fault`;
    `Plugins.require_sound` raises an error or warns.
    """
    manager = pluggy.PluginManager("adaptkit")
    manager.add_hookspecs(hookspecs)
    sources: list[Source] = []
    faults: list[Fault] = []

    def load(source: Source, import_plugin: Callable[[], object]) -> None:
        sources.append(source)
        before = set(sys.modules)
        try:
            _register(manager, import_plugin(), source.origin)
        except (Exception, SystemExit) as error:
            faults.append(Fault(source, _reason(error), fatal=source.kind == "file"))
            return
        heavy = [name for name in HEAVY if name in sys.modules and name not in before]
        if heavy and source.kind == "installed":
            message = f"it imports {', '.join(heavy)}, which makes every command slow; import inside methods instead"
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
    for plugin in objects:
        if manager.is_registered(plugin):  # installed, and also given as an object
            continue
        source = Source(getattr(plugin, "__name__", repr(plugin)), "object")
        _register(manager, plugin, source.origin)
        sources.append(source)
    by_origin = {source.origin: source for source in sources}
    components = _collect(manager, by_origin, faults)
    return Plugins(manager, components=components, sources=tuple(sources), faults=tuple(faults))


def _source_of(point: importlib.metadata.EntryPoint, origins: set[str]) -> Source:
    distribution = point.dist
    if distribution is None:
        return Source(point.name, "installed", point.value)
    origin = f"{distribution.name} {distribution.version}"
    if origin in origins:
        origin = f"{origin} ({point.name})"
    hint = f"fix it, or remove it with pip uninstall {distribution.name}"
    return Source(origin, "installed", path=point.value, hint=hint)


class _UncachedLoader(importlib.machinery.SourceFileLoader):
    """Compile a file each time: Python's cache misses a change of equal size within one second."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadInput("it is a folder, not a Python file" if path.is_dir() else "there is no such file")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"adaptkit_file_{path.stem}_{digest}"
    if path.suffix != ".py":
        raise BadInput("not a Python file")
    loader = _UncachedLoader(name, str(path))
    spec = importlib.machinery.ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module while it executes
    try:
        loader.exec_module(module)
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
                f"it needs version {needed} of the plugin API, but adaptkit {__version__} has version "
                f"{hookspecs.API_VERSION}; install a newer adaptkit-vision"
            )
    except Exception:
        # pluggy keeps the hooks that it registered before the wrong one.
        if manager.has_plugin(origin):
            manager.unregister(name=origin)
        raise


def _collect(
    manager: pluggy.PluginManager, sources: dict[str, Source], faults: list[Fault]
) -> dict[str, dict[str, Component]]:
    components: dict[str, dict[str, Component]] = {}
    for kind, (hook, _) in COLLECTIONS.items():
        by_name: dict[str, Component] = {}
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            source = sources[str(implementation.plugin_name)]
            is_named = source.kind in ("file", "object")
            try:
                classes = implementation.function()
                if not isinstance(classes, list | tuple):
                    raise BadInput(f"it returned {type(classes).__name__}, not a list of classes")
                provided = [make_component(kind, cls, source.origin) for cls in classes]
            except (Exception, SystemExit) as error:
                faults.append(Fault(source, f"{hook}: {_reason(error)}", fatal=is_named))
                continue
            for component in provided:
                if component.name in by_name:
                    first = by_name[component.name].origin
                    advice = "remove or rename one"
                    if source.kind == "file" and sources[first].kind == "installed":
                        advice = f"leave out --plugin, or uninstall {first.split(' ')[0]}"
                    message = f"{TITLES[kind]} {component.name!r} is already provided by {first}; {advice}"
                    faults.append(Fault(source, message, fatal=is_named, taken=(kind, component.name)))
                else:
                    by_name[component.name] = component
        components[kind] = dict(sorted(by_name.items()))
    return components


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it called sys.exit while it was imported"
    if isinstance(error, SyntaxError):
        return f"syntax error in line {error.lineno}: {error.msg}"
    if isinstance(error, AdaptkitError):
        return "; ".join(error.problems)
    return f"{type(error).__name__}: {error}".replace("\n", " ")
