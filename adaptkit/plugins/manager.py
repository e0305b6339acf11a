"""The loaded plugins: what they offer, how they are called, and what is wrong with them."""

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
from adaptkit.plugins.offers import TITLES, Offer
from adaptkit.system.signals import origin, require_none


class PluginWarning(UserWarning):
    """Tell that a plugin could not be loaded, or failed while it watched a run."""


@dataclass(frozen=True)
class Source:
    """Where a plugin comes from: `kind` is built-in, installed, file or object; `hint` is how to mend or remove it."""

    origin: str
    kind: str
    path: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Fault:
    """Something wrong with a plugin.

    `fatal`: the user named the plugin, so nothing may run without it. `works`: it can be used all the same. `taken` are
    the kind and the name that it offers although another plugin does.
    """

    source: Source
    message: str
    fatal: bool = False
    works: bool = False
    taken: tuple[str, str] | None = None

    @property
    def origin(self) -> str:
        """Return the name of the plugin that is at fault."""
        return self.source.origin

    def __str__(self) -> str:
        hint = f"; {self.source.hint}" if self.source.hint else ""
        return f"plugin {self.origin}: {self.message}{hint}"


@dataclass(frozen=True)
class Plugins:
    """The loaded plugins: what they offer by kind and name, where they come from, and what went wrong.

    What is not `watched` tells the plugins' event hooks nothing.
    """

    manager: pluggy.PluginManager
    offers: dict[str, dict[str, Offer]]
    sources: tuple[Source, ...]
    faults: tuple[Fault, ...]
    watched: bool = True

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files that were named, in order."""
        return tuple(source.path for source in self.sources if source.kind == "file")

    def find(self, kind: str, name: str) -> Offer:
        """Return the offer of that name, which may carry an argument after a colon.

        Raises BadInput when there is none (with the nearest name), when two plugins offer it, when it cannot be used
        here, or when it lacks its argument.
        """
        bare, colon, argument = name.partition(":")
        title = TITLES[kind]
        if bare not in self.offers[kind]:
            unloaded = "".join(f" ({fault})" for fault in self.faults if not fault.works)
            raise BadInput(f"unknown {title} {bare!r}{self._hint(kind, bare)}{unloaded}")
        offer = self.offers[kind][bare]
        for fault in self.faults:
            if fault.taken == (kind, bare):
                raise BadInput(str(fault))
        if offer.unavailable:
            raise BadInput(f"{title} {bare} cannot be used: {offer.unavailable}")
        if colon and not offer.argument:
            raise BadInput(f"{title} {bare} takes nothing after its name, but {name!r} was given")
        if offer.argument and not argument:
            raise BadInput(f"{title} {bare} needs a name after a colon: {offer.shown}")
        return offer

    def _hint(self, kind: str, name: str) -> str:
        """Return what may have been meant by an unknown name: a folder, a near name, or one of all."""
        if kind == "dataset" and "folder" in self.offers[kind] and os.path.isdir(name):
            return f"; did you mean 'folder:{name}'?"
        if (kind, name) == ("engine", "ray"):
            return "; Ray is a plugin: pip install ./plugins/ray from adaptkit's source code"
        known = self.offers[kind]
        hint = suggestion(name, known)
        return hint if hint.startswith("; did") else suggestion(name, [offer.shown for offer in known.values()])

    def require_files(self, what: str) -> None:
        """Raise BadInput, naming what asks for it, if a plugin is an object: no other process can load that."""
        objects = [source.origin for source in self.sources if source.kind == "object"]
        if objects:
            listed = ", ".join(objects)
            raise BadInput(f"{what}: {listed} is an object of this process: use one job, or a plugin file")

    def require_sound(self) -> None:
        """Raise BadInput for faults that the user must mend first, warn of the others."""
        strict = os.environ.get("ADAPTKIT_STRICT") == "1"
        fatal = [str(fault) for fault in self.faults if fault.fatal or strict]
        if fatal:
            raise BadInput(*fatal)
        for fault in self.faults:
            warnings.warn(f"{fault}{'' if fault.works else ' (skipped)'}", PluginWarning, stacklevel=2)

    @contextmanager
    def watching(self, plugin: object, name: str) -> Iterator[None]:
        """Let an object of adaptkit's own watch the runs for a while."""
        self.manager.register(plugin, name=name)
        try:
            yield
        finally:
            self.manager.unregister(plugin)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call each implementation of an event hook, the latest first; one that raises is a warning.

        Errors of adaptkit's own family pass, as every error does under `ADAPTKIT_STRICT=1`.
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
                if os.environ.get("ADAPTKIT_STRICT") == "1":
                    raise
                place = traceback.extract_tb(error.__traceback__)[-1]
                warnings.warn(
                    f"plugin {implementation.plugin_name} failed in {hook}: {type(error).__name__}: {error}"
                    f" ({place.filename}:{place.lineno}); the run goes on",
                    PluginWarning,
                    stacklevel=2,
                )
