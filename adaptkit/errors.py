"""Expected errors, and functions that describe errors in one line. Any other exception is a bug."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path


class PlanNotice(UserWarning):
    """A message about data, base or strategies of an experiment that starts, for callers from Python."""


SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def without_secrets(text: str, more: Iterable[str] = ()) -> str:
    """Remove the logins in addresses, MLflow's secrets from the environment, and the secrets in `more` from a text."""
    # Three stars are a placeholder; after a third slash follows the path of a file.
    text = re.sub(r"(?<=://)(?!/|\*\*\*@)[^\s'\"]*@", "", text)
    secrets = {os.environ.get(name, "") for name in SECRETS} | set(more)
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def nonempty(value: object) -> object:
    """Return the value of a setting; raise ValueError if it is empty."""
    if value == "":
        raise ValueError("no value; leave the key out for its default")
    return value


class AdaptkitError(Exception):
    """Base class of expected errors: one line for each problem, in `problems`.

    Examples
    --------
    >>> try:
    ...     adaptkit.run("lroa", track=False)
    ... except adaptkit.AdaptkitError as error:
    ...     print(*error.problems, sep="\\n")
    unknown strategy 'lroa'; did you mean 'lora'?
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BadInput(AdaptkitError):
    """Invalid input: all problems at once, before anything is trained.

    Examples
    --------
    >>> try:
    ...     adaptkit.run("head", epochs=0, shift="rotate=200", track=False)
    ... except adaptkit.BadInput as error:
    ...     print(*error.problems, sep="\\n")
    epochs: must be at least 1, not 0
    shift.rotate: must be at most 180, not 200
    """

    exit_code = 2


class RunFailed(AdaptkitError):
    """A run or an export that failed.

    `adaptkit.run` does not raise it: a run that fails is a record with its error, and the other runs continue.

    Examples
    --------
    >>> outcome = adaptkit.run("full", lr=1e30, preset="quick", settings={"optimizer": "sgd"}, track=False)
    >>> outcome.failed[0].error
    'the loss is not finite in epoch 1; a lower learning rate may help: --lr 0.01'
    """


class TrackingLost(AdaptkitError):
    """Results could not be recorded in the tracking store."""


class Interrupted(KeyboardInterrupt):
    """The process has received a signal that requests its end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the most similar known name, or the list of all known names."""
    known = sorted(known)
    by_lower_case = {text.lower(): text for text in reversed(known)}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {by_lower_case[close[0]]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def listed(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


#: patterns of the useful part of an error of a database driver or an HTTP client that a library has wrapped
INNER_ERRORS = (
    r"\((?:\w+\.)+\w*Error\) ([^\n]+)",
    r"\[Errno -?\d+\] ([^'\")\]\n]+)",
    r"((?:Read|Connect) timed out)",
    r"(Remote end closed connection)",
    r"(too many \d+ error responses)",
)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, or the message of the error that it wraps."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        return text
    for pattern in INNER_ERRORS:
        if match := re.search(pattern, text):
            return match[1]
    return text.split("\n")[0] or type(error).__name__


def located(error: BaseException) -> str:
    """Return an error as one line, with the position in the plugin that raised it, or else the last position."""
    frames = traceback.extract_tb(error.__traceback__)
    library_code = tuple(filter(None, map(_code_of, ("adaptkit", "torch"))))
    others = [frame for frame in frames if not frame.filename.startswith(library_code)]
    place = next((f" ({frame.filename}:{frame.lineno})" for frame in reversed(others or frames)), "")
    return f"{type(error).__name__}: {without_secrets(' '.join(str(error).split()))}{place}"


def entry_point(error: BaseException, cls: type) -> str | None:
    """Return the function through which an error's traceback enters the package of a class; None if it never does.

    For classes of adaptkit, their module counts.
    """
    root = cls.__module__.partition(".")[0]
    # A namespace package has no file: then the file of the class counts.
    code = _code_of(cls.__module__) if root == "adaptkit" else _code_of(root) or _code_of(cls.__module__)
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.name for frame in frames if code and frame.filename.startswith(code)), None)


def plugin_fault(error: BaseException, cls: type, title: str) -> str:
    """Return the message about an error in a run of a plugin's class: what fails, in which of its functions, and where.

    The error may surface elsewhere, for example in torch, which calls the plugin's layers or fails on their outputs.
    """
    entry = entry_point(error, cls)
    return f"{title} fails{f' in {entry}()' if entry else ''}: {located(error)}"


def _code_of(module: str) -> str:
    """Return the folder of a package with a final separator, or the file of a module; empty if neither exists."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None) or ""
    return f"{Path(file).parent}{os.sep}" if file and hasattr(loaded, "__path__") else file


#: texts in a RuntimeError of torch that mean that memory is exhausted
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "std::bad_alloc",
    "bad allocation",
)
#: advice for this case
HINT = "the device's memory is too small; a smaller --batch-size may help"
BASE_HINT = "the device's memory is too small for the base; a smaller --set base.batch_size=N may help"


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error, or its cause, means that memory is exhausted."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in OUT_OF_MEMORY):
        return True
    return error.__cause__ is not None and lacks_memory(error.__cause__)
