"""Hold exported files, read again, against the run's own model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptkit.errors import RunFailed
from adaptkit.exports.formats import Format, Logits
from adaptkit.training.evaluation import CPU_BATCH


@dataclass(frozen=True)
class Verification:
    """How far an export's logits are from the run's model's, on how many images of what; `agreement` is a share."""

    by: str
    images: int
    source: str
    max_difference: float
    tolerance: float
    agreement: float

    @property
    def holds(self) -> bool:
        """Tell whether the export is within tolerance; logits that are no numbers are not."""
        return self.max_difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"max logit difference {self.max_difference:.2g} (tolerance {self.tolerance:.2g}), prediction agreement "
            f"{self.agreement:.2%} on {self.images} images of {self.source}, by {self.by}"
        )


def verify(
    logits: dict[str, Logits], expected: Tensor, images: Tensor, source: str, written: Format
) -> tuple[Verification, ...]:
    """Compare logits, each by its name, with those expected; raise RunFailed when one is out of tolerance."""
    largest = max(1.0, float(expected.abs().max()))
    found = []
    for name, model in logits.items():
        try:
            ours = _in_batches(model, images)
        except Exception as error:  # another library's, whatever it raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RunFailed(f"the exported files cannot be used ({name}): {reason}") from error
        gap, agreement = float("nan"), 0.0
        if ours.shape == expected.shape:
            gap = float((ours - expected).abs().max())
            agreement = float((ours.argmax(1) == expected.argmax(1)).float().mean())
        found.append(Verification(name, len(images), source, gap, written.tolerance * largest, agreement))
    if failed := [verification for verification in found if not verification.holds]:
        raise RunFailed(*(f"the export was given up: {verification}" for verification in failed))
    return tuple(found)


@torch.inference_mode()
def _in_batches(model: Logits, images: Tensor) -> Tensor:
    """Return the logits of the first image, alone, and of the others in larger batches: a fixed size is found out."""
    parts = [images[:1], *images[1:].split(CPU_BATCH)] if len(images) > 1 else [images]
    return torch.cat([torch.as_tensor(model(part)).float() for part in parts])
