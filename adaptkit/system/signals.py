"""Turn the signals that ask a process to end into an exception, so that runs are closed as KILLED."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from adaptkit.errors import Interrupted

#: the signal that has asked this process to end, if one has
_asked: int | None = None
#: whether it waits for the end of a block
_is_held = False

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted at the first signal; the second is ignored while the run is being closed, the third kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _asked
    received = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        global _asked
        nonlocal received
        received += 1
        if received == 1:
            _asked = number
            if not _is_held:
                raise Interrupted(number)
        if received > 2:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    # A process started under nohup ignores SIGHUP, and shall go on doing so.
    before = {number: signal.getsignal(number) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    unraisable = sys.unraisablehook

    def quiet(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Interrupted):
            unraisable(lost)

    for number in before:
        signal.signal(number, interrupt)
    sys.unraisablehook = quiet
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:  # an engine's library may raise a plain one
        if (cause := origin(error)) is not error:
            for note in getattr(error, "__notes__", ()):
                cause.add_note(note)
            raise cause from error
        raise
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = None


@contextmanager
def held() -> Iterator[None]:
    """Let a signal wait until the block has ended: what is started in it is known to whoever has to end it."""
    global _is_held
    _is_held = True
    try:
        yield
    finally:
        _is_held = False


def require_none() -> None:
    """Raise Interrupted if a signal has come and got lost: Python drops what is raised while it frees objects."""
    if _asked is not None:
        raise Interrupted(_asked)


def origin(error: BaseException) -> BaseException:
    """Return Interrupted for an error that a library made of it, or that followed it; any other error as it is."""
    if _asked is None or isinstance(error, Interrupted):
        return error
    return Interrupted(_asked)
