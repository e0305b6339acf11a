"""Define presets, and read YAML config files safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from adaptkit.errors import BadInput
from adaptkit.settings.settings import PLAIN_RECIPE, flat_settings
from adaptkit.system.files import read_file

#: limits of a config file: bytes, entries after aliases are expanded, depth of nesting
MOST_BYTES, MOST_ENTRIES, DEEPEST = 1 << 20, 10_000, 20
#: seconds to wait for a config file that is a pipe
PIPE_SECONDS = 10.0


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file by dotted key; raise BadInput if the file is not valid."""
    try:
        text = read_file(path, MOST_BYTES, PIPE_SECONDS).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise BadInput(f"config file {path}: {reason}") from None
    try:
        duplicate = _written_twice(text)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise BadInput(f"config file {path}: not valid YAML{place}") from None
    except Exception:  # impossible dates, wrong tags and deep nesting raise many types of errors
        raise BadInput(f"config file {path}: not valid YAML") from None
    if duplicate is not None:
        raise BadInput(f"config file {path}: {duplicate}")
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadInput(f"config file {path}: must hold `key: value` lines")
    if not _is_small(content):
        raise BadInput(f"config file {path}: more than {MOST_ENTRIES} entries, or nested too deeply")
    try:
        return flat_settings(content)
    except BadInput as error:
        raise BadInput(*(f"config file {path}: {problem}" for problem in error.problems)) from None


def _written_twice(text: str) -> str | None:
    """Return a message about a duplicate key, or None; YAML itself silently keeps the last value."""
    pending, seen = [yaml.compose(text, yaml.SafeLoader)], set()
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # an alias may refer to a node that contains it
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            pending.append(value)
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                return f"{key.value} appears twice, in lines {lines[key.value]} and {line}"
            lines[key.value] = line
    return None


def _is_small(content: object) -> bool:
    """Return whether the content stays within the limits after its aliases are expanded."""
    pending, count = [(content, 0)], 0
    while pending:
        value, depth = pending.pop()
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        if isinstance(inner, list | tuple | set):
            count += len(inner)
            if depth >= DEEPEST or count > MOST_ENTRIES:
                return False
            pending += [(item, depth + 1) for item in inner]
    return True


PRESETS: dict[str, dict[str, Any]] = {
    # Finishes in seconds: for demonstrations and tests, not for conclusions.
    "quick": {
        "split.source": 1000,
        "split.pool": 400,
        "split.test": 400,
        "shots": 20,
        "epochs": 8,
        "min_steps": None,
        "base.epochs": 5,
        "base.min_steps": None,
    },
    "default": {},
    # The notebook that adaptkit started from, but with disjoint source and target images.
    "notebook": {
        "dataset": "mnist",
        "shift": "rotate=25,noise=0.15",
        "split.source": 20_000,
        "split.pool": 40_000,
        "split.test": 5_000,
        "split.sampling": "random",
        "split.seed": 42,
        "seed": 42,
        "shots": 200,
        "epochs": 5,
        "batch_size": 128,
        "lr": 1e-3,
        "evaluate_shifted": "end",
        "base.epochs": 5,
        "base.batch_size": 128,
        "base.lr": 1e-3,
        "base.seed": 42,
        **PLAIN_RECIPE,
    },
}
