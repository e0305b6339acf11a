"""The base class of groups of settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")
