"""Keep users and passwords out of what is told: any text may quote an address, a command line or the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def without_secrets(text: str, more: Iterable[str] = ()) -> str:
    """Return a text without the logins in its addresses, MLflow's secrets in the environment, and more of them."""
    text = re.sub(r"(?<=://)(?!\*\*\*@)[^\s'\"]*@", "", text)  # three stars are left to be filled in
    secrets = {os.environ.get(name, "") for name in SECRETS} | set(more)
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
