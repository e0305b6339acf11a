"""The loaded plugins: find their components, call their event hooks, and report their faults."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pluggy

from adaptkit.errors import AdaptkitError, BadInput, suggestion
from adaptkit.plugins.components import TITLES, Component
from adaptkit.system.signals import origin, require_none

#: kind and name of a component -> the plugin in adaptkit's source code that provides it
SEPARATE = {
    ("engine", "ray"): "ray",
    ("backbone", "timm"): "timm",
    ("strategy", "peft"): "peft",
    ("dataset", "first-galaxies"): "astro",
}


class PluginWarning(UserWarning):
    """A plugin could not be loaded, or one of its event hooks failed."""


@dataclass(frozen=True)
class Source:
    """The origin of a plugin. `kind` is built-in, installed, file or object; `hint` is how to fix or remove it."""

    origin: str
    kind: str
    path: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Fault:
    """A problem with a plugin.

    `fatal` is True if the user requested the plugin, so that commands fail without it. `works` is True if the plugin
    can be used nevertheless. `taken` is the kind and the name of a component that another plugin also provides.
    """

    source: Source
    message: str
    fatal: bool = False
    works: bool = False
    taken: tuple[str, str] | None = None

    @property
    def origin(self) -> str:
        """Return the name of the faulty plugin."""
        return self.source.origin

    def __str__(self) -> str:
        hint = f"; {self.source.hint}" if self.source.hint else ""
        return f"plugin {self.origin}: {self.message}{hint}"


def is_strict() -> bool:
    """Check whether errors in event hooks, and errors without a known cause, are to be raised (`ADAPTKIT_STRICT=1`)."""
    return os.environ.get("ADAPTKIT_STRICT") == "1"


@dataclass(frozen=True)
class Plugins:
    """The loaded plugins: their components by kind and name, their sources and their faults.

    Event hooks are called only if `watched` is true.
    """

    manager: pluggy.PluginManager
    components: dict[str, dict[str, Component]]
    sources: tuple[Source, ...]
    faults: tuple[Fault, ...]
    watched: bool = True

    @property
    def files(self) -> tuple[str, ...]:
        """Return the plugin files that the user named, in order."""
        return tuple(source.path for source in self.sources if source.kind == "file")

    def find(self, kind: str, name: str) -> Component:
        """Return the component with this name, which may have an argument after a colon.

        Raises BadInput if the name is unknown (with the nearest name), if two plugins provide it, if it cannot be used
        here, or if its argument is missing.
        """
        bare, colon, argument = name.partition(":")
        title = TITLES[kind]
        if bare not in self.components[kind]:
            unloaded = "".join(f" ({fault})" for fault in self.faults if not fault.works)
            raise BadInput(f"unknown {title} {bare!r}{self._hint(kind, bare)}{unloaded}")
        component = self.components[kind][bare]
        for fault in self.faults:
            if fault.taken == (kind, bare):
                raise BadInput(str(fault))
        if component.unavailable:
            raise BadInput(f"{title} {bare} cannot be used: {component.unavailable}")
        if colon and not component.argument:
            raise BadInput(f"{title} {bare} takes no argument after a colon, got {name!r}")
        if component.argument and not argument:
            raise BadInput(f"{title} {bare} needs an argument after a colon: {component.shown}")
        return component

    def usable(self, kind: str) -> list[Component]:
        """Return the components that can be used here: available, and offered by one plugin only."""
        taken = {fault.taken for fault in self.faults}
        return [
            component
            for name, component in self.components[kind].items()
            if not component.unavailable and (kind, name) not in taken
        ]

    @property
    def readers(self) -> dict[str, type[Any]]:
        """Return the classes of readers by name, the built-in ones first: of two readers of a suffix the last is used.

        Readers that cannot be used are included, since they say what to install.
        """
        components = self.components["reader"].values()
        ordered = sorted(components, key=lambda component: not component.origin.startswith("built-in"))
        return {component.name: component.cls for component in ordered}

    def _hint(self, kind: str, name: str) -> str:
        """Suggest for an unknown name: the name as an argument, a similar name, or the list of all names."""
        if plugin := SEPARATE.get((kind, name)):
            return f"; it is a plugin: pip install ./plugins/{plugin} from adaptkit's source code"
        components = self.usable(kind)
        owners = [component.name for component in components if component.argument and _is_argument(name, component)]
        if owners:
            return f"; did you mean {' or '.join(repr(f'{owner}:{name}') for owner in owners)}?"
        hint = suggestion(name, [component.name for component in components])
        if hint.startswith("; did"):
            return hint
        return suggestion(name, [component.shown for component in components])

    def require_files(self, feature: str) -> None:
        """Raise BadInput if a plugin is an object, which other processes cannot load; the message names `feature`."""
        objects = [source.origin for source in self.sources if source.kind == "object"]
        if objects:
            listed = ", ".join(objects)
            raise BadInput(
                f"{feature}: plugin {listed} is a Python object of this process; use one job, or a plugin file"
            )

    def require_sound(self) -> None:
        """Raise BadInput for fatal faults, and warn about the others."""
        fatal = [str(fault) for fault in self.faults if fault.fatal or is_strict()]
        if fatal:
            raise BadInput(*fatal)
        for fault in self.faults:
            warnings.warn(f"{fault}{'' if fault.works else ' (skipped)'}", PluginWarning, stacklevel=2)

    @contextmanager
    def watching(self, plugin: object, name: str) -> Iterator[None]:
        """Register an internal object for event hooks during the block."""
        self.manager.register(plugin, name=name)
        try:
            yield
        finally:
            self.manager.unregister(plugin)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call each implementation of an event hook, the latest registered first; errors become warnings.

        `AdaptkitError` is raised, and so is every error if `ADAPTKIT_STRICT=1`.
        """
        if hook != "adaptkit_run_failed":
            require_none()
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls() if self.watched else ()):
            try:
                implementation.function(*[arguments[name] for name in implementation.argnames])
            except AdaptkitError:
                raise
            except Exception as error:
                if (cause := origin(error)) is not error:
                    raise cause from error
                if is_strict():
                    raise
                place = traceback.extract_tb(error.__traceback__)[-1]
                warnings.warn(
                    f"plugin {implementation.plugin_name} failed in {hook}: {type(error).__name__}: {error}"
                    f" ({place.filename}:{place.lineno}); the run continues",
                    PluginWarning,
                    stacklevel=2,
                )


def _is_argument(name: str, component: Component) -> bool:
    """Return whether a class accepts a name as its argument. A class that accepts anything gives no information."""

    def accepts(argument: str) -> bool:
        try:
            component.cls(argument)
        except Exception:  # constructors of plugins raise many types
            return False
        return True

    return accepts(name) and not accepts(f"{name} \0")
