"""Hugging Face PEFT's methods as strategies for adaptkit: `peft-lora`, `peft-ia3`, `peft-vera` and the others."""

from __future__ import annotations

from adaptkit import hookimpl


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return one strategy class for each PEFT type of the installed version."""
    from adaptkit_peft.strategies import strategy_classes

    return strategy_classes()
