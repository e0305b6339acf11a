"""The engine `ray`: run the trials of a sweep on a Ray cluster."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from adaptkit import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptkit.contracts import TrialRunner
    from adaptkit.plugins.manager import Plugins
    from adaptkit.sweeps.engines.worker import Work


def _share(gpus: float) -> float:
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise ValueError(f"must be a part of one GPU or a whole number, not {gpus:g}")
    return gpus


@dataclass(frozen=True)
class Ray:
    """Run trials on an existing or a new Ray cluster.

    See Moritz et al., 2018, arXiv:1712.05889.
    """

    name: ClassVar[str] = "ray"
    unavailable: ClassVar[str] = "" if importlib.util.find_spec("ray") else "it needs Ray: pip install 'ray>=2.9'"

    address: str | None = field(
        default=None,
        metadata={"help": "HOST:PORT of the head node, auto, or local; default: RAY_ADDRESS, else local"},
    )
    cpus_per_trial: Annotated[int, Field(ge=1)] = field(default=1, metadata={"help": "cores for each trial"})
    gpus_per_trial: Annotated[float, Field(allow_inf_nan=False), AfterValidator(_share)] = field(
        default=0, metadata={"help": "GPUs for each trial: a part of one, such as 0.25, or a whole number"}
    )

    def check(self, *, jobs: int | None, device: str, plugins: Plugins) -> None:
        """Raise BadInput if the options do not match the device, or if no cluster answers at the address."""
        from adaptkit_ray.cluster import check

        plugins.require_files(f"--engine {self.name}")
        check(self, device)

    def connect(self) -> AbstractContextManager[Sequence[str]]:
        """Join or start a cluster during a block, which receives the names of its other machines."""
        from adaptkit_ray.cluster import joined

        return joined(self)

    def start(self, work: Work) -> AbstractContextManager[TrialRunner]:
        """Return a runner of trials in actors of the cluster."""
        from adaptkit_ray.runner import RayRunner

        return RayRunner(self, work)


@hookimpl
def adaptkit_engines() -> list[type]:
    """Return the engine `ray`."""
    return [Ray]
