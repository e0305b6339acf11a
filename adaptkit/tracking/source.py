"""Tell who started a run, from which version of the code in the current folder."""

from __future__ import annotations

import getpass
import subprocess


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
