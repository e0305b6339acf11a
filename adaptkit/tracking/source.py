"""Tell who started a run, from which version of the code in the current folder."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def source_tags(without_secrets: Callable[[str], str]) -> dict[str, str]:
    """Return the tags that say which process of whom, on which machine, makes a run, and from which code."""
    return {
        "adaptkit.host": socket.gethostname(),
        "adaptkit.pid": str(os.getpid()),
        # A process of this number that began later than this is another one.
        "adaptkit.process_seen": f"{time.time():.3f}",
        "mlflow.user": user_name(),
        "mlflow.source.name": without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "mlflow.source.type": "LOCAL",
        **git_tags(),
    }


def user_name() -> str:
    """Return the name of the user who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def git_tags() -> dict[str, str]:
    """Return the commit and branch of the current folder as MLflow's tags; none outside of a repository."""
    tags = {}
    for tag, arguments in (
        ("mlflow.source.git.commit", ("rev-parse", "HEAD")),
        ("mlflow.source.git.branch", ("branch", "--show-current")),
    ):
        try:
            answer = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            break
        if text := answer.stdout.strip():
            tags[tag] = text
    return tags
