"""Tests of readers with hostile input: `@hostile(...)` makes one of a function that hands bytes to a reader.

Such a function ignores the errors that hostile input should cause, mainly `BadInput`; any other error fails the test.
hypothesis draws the inputs. `python tests/fuzzing.py` runs the same functions for longer, guided by coverage.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adaptkit.errors import BadInput

#: where temporary files go: in memory if the system supports that
PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
#: limits for one input; the memory is added to what the process holds already
SECONDS, BYTES = 10.0, 1 << 30


class TooLong(BaseException):
    """One input took too long. Not an Exception: readers might treat that as a damaged file."""


@dataclass(frozen=True)
class Target:
    """A reader under test: `run` takes bytes, `corpus` holds valid inputs, `words` the words of their grammar."""

    run: Callable[[bytes], None]
    corpus: tuple[bytes, ...]
    words: tuple[str, ...]


def hostile(
    *corpus: bytes, words: tuple[str, ...] = (), found: tuple[bytes, ...] = (), examples: int = 40
) -> Callable[[Callable[[bytes], None]], Any]:
    """Make a test from a function that takes bytes.

    It is called with valid inputs (`corpus`), with inputs that once found a fault (`found`), and with `examples` drawn
    inputs: a valid input with a few changes, some of which insert `words` of its grammar, or random bytes.
    """

    def decorate(run: Callable[[bytes], None]) -> Any:
        @functools.wraps(run)
        def bounded_run(data: bytes) -> None:
            with bounded():
                run(data)

        test = given(data=_mangled(corpus, words))(bounded_run)
        for content in (*found, *corpus):
            test = example(data=content)(test)
        test = settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )(test)
        test.target = Target(run, corpus, words)  # type: ignore[attr-defined]
        return test

    return decorate


def _mangled(corpus: tuple[bytes, ...], words: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    pieces = [st.binary(max_size=8)]
    if words:
        pieces.append(st.sampled_from([word.encode() for word in words]))
    edits = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), st.one_of(pieces)), min_size=1, max_size=6)

    def change(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        for place, gone, piece in changes:
            at = place % (len(content) + 1)
            content = content[:at] + piece + content[at + gone :]
        return content

    return st.one_of(st.builds(change, st.sampled_from(corpus), edits), st.binary(max_size=64))


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, memory: int = BYTES) -> Iterator[None]:
    """Limit the time and the memory of a block; beyond, TooLong or MemoryError (or torch's own error) is raised."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"still running after {seconds:g} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (held() + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def held() -> int:
    """Return the size of the address space of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def refusals(*also: type[Exception]) -> Iterator[None]:
    """Ignore BadInput if it has a message for each problem, and the other errors that are named."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadInput as error:
        assert error.problems and all(problem.strip() for problem in error.problems), error.problems
    except also:
        pass


class Choices:
    """Choices made by bytes: the same bytes, the same choices; when they are spent, zeros."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def number(self, below: int) -> int:
        """Return a number from 0 on, below another of at most 256."""
        first, self.left = self.left[:1] or b"\0", self.left[1:]
        return first[0] % below

    def take(self, count: int) -> bytes:
        """Return the next bytes: this count, or all that are left."""
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def text_of(data: bytes) -> str:
    """Decode bytes as Python decodes arguments: bytes that are not UTF-8 become surrogates."""
    return data.decode(errors="surrogateescape")


@functools.cache
def scratch() -> Path:
    """Return a temporary folder of this process."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-", dir=PLACE))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def file_of(data: bytes, name: str) -> Path:
    """Return a file with these bytes."""
    path = scratch() / name
    path.write_bytes(data)
    return path


@functools.cache
def plugins() -> Any:
    """Return the built-in plugins, and none that are installed."""
    from adaptkit.plugins.loading import load_plugins

    with environment(ADAPTKIT_ENTRY_POINTS="0"):
        return load_plugins()


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment for a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
