"""Convert signals that request the end of the process to an exception, so that runs end as KILLED."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from adaptkit.errors import Interrupted

#: the signal that this process has received, if any
_received: int | None = None
#: whether signals are delayed until the end of a block
_is_held = False

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted at the first signal during a block.

    The second signal is ignored, so that runs can be closed; the third one kills the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _received
    count = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        global _received
        nonlocal count
        count += 1
        if count == 1:
            _received = number
            if not _is_held:
                raise Interrupted(number)
        if count > 2:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    # A process started with nohup must continue to ignore SIGHUP.
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
    except (Exception, KeyboardInterrupt) as error:  # libraries of engines may raise KeyboardInterrupt
        if (cause := origin(error)) is not error:
            for note in getattr(error, "__notes__", ()):
                cause.add_note(note)
            raise cause from error
        raise
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None


@contextmanager
def held() -> Iterator[None]:
    """Delay signals until the end of a block, so that processes that it starts are registered and can be ended."""
    global _is_held
    _is_held = True
    try:
        yield
    finally:
        _is_held = False


def require_none() -> None:
    """Raise Interrupted if a signal was received but lost: Python ignores exceptions while it frees objects."""
    if _received is not None:
        raise Interrupted(_received)


def origin(error: BaseException) -> BaseException:
    """Return Interrupted if a signal caused this error, for example in a library; otherwise return the error."""
    if _received is None or isinstance(error, Interrupted):
        return error
    return Interrupted(_received)
