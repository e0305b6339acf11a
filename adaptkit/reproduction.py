"""What comes of running a recorded run again: a verdict, and every difference behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IDENTICAL, WITHIN, DIFFERENT = "identical", "within tolerance", "different"


@dataclass(frozen=True)
class Difference:
    """One thing that is not what was recorded.

    `kind` is data, base, metric, prediction or adapter; None stands for what is not there. `within` tells whether it is
    so small that other hardware or versions explain it; `detail` is more to tell.
    """

    kind: str
    what: str
    recorded: Any
    now: Any
    within: bool
    detail: str = ""


@dataclass(frozen=True)
class EnvironmentDifference:
    """One thing, of those that numbers depend on, that is otherwise than where the run was made."""

    what: str
    recorded: str
    now: str


@dataclass(frozen=True)
class Compared:
    """How much was compared: values of metrics, predictions, tensors of the adapter (or base) and numbers in them."""

    metrics: int = 0
    predictions: int = 0
    tensors: int = 0
    numbers: int = 0


@dataclass(frozen=True)
class Reproduction:
    """A run that was run again, and how both agree.

    `base` says where the base came from this time, None where none was needed. `differences` are in the order in which
    their causes are: data, base, epochs, final metrics, predictions, adapter. `environment` are the things that numbers
    depend on, as the record and this machine have them. `largest` is the largest difference of each kind of number, in
    words. Nothing was run where the data are others, and `compared` is empty.
    """

    run_id: str
    name: str
    kind: str
    data_fingerprint: str
    base_fingerprint: str | None
    base: str | None
    compared: Compared
    differences: tuple[Difference, ...]
    environment_differences: tuple[EnvironmentDifference, ...]
    environment: Mapping[str, Mapping[str, str]]
    largest: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Return identical, within tolerance (only where hardware or versions are others), or different."""
        if not self.differences:
            return IDENTICAL
        small = all(difference.within for difference in self.differences)
        return WITHIN if small and self.environment_differences else DIFFERENT

    @property
    def first(self) -> Difference | None:
        """Return the difference to look at first: of a different run the first that is too large, if any is."""
        if self.verdict == DIFFERENT and self.environment_differences:
            return next((one for one in self.differences if not one.within), None)
        return next(iter(self.differences), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the reproduction as plain JSON types."""
        first = None if self.first is None else dataclasses.asdict(self.first)
        return {"verdict": self.verdict, "first_difference": first} | dataclasses.asdict(self)
