"""Records that runs hand to plugins that watch them: what started, each epoch, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RunInput:
    """A data set that a run reads: `digest` is the sha256 of its content."""

    name: str
    context: str
    digest: str
    source: str


@dataclass(frozen=True)
class RunStart:
    """A run that is about to begin: `kind` is base, adaptation or tuning; `params` holds every resolved setting."""

    kind: str
    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    inputs: tuple[RunInput, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class Epoch:
    """One epoch, trained and evaluated; `seconds` covers both.

    Accuracies are fractions: on the training images, the clean test (None without a source) and the shifted one (None
    where it is evaluated at the end). A tuning run has that on held-back target images, and none on a test set.
    """

    number: int
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    shifted_accuracy: float | None
    seconds: float
    evaluation_seconds: float
    cumulative_seconds: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class Predictions:
    """What a model and its base say of one test set, as 1-d arrays; `image` indexes the published data set."""

    image: Any
    truth: Any
    predicted: Any
    confidence: Any
    base_predicted: Any | None = None

    @property
    def accuracy(self) -> float:
        """Return the fraction of right predictions."""
        return float((self.predicted == self.truth).mean())


@dataclass(frozen=True)
class RunResult:
    """A finished run: final `metrics` by their MLflow names, its epochs, predictions by test set, and files.

    `tags` are those known only at the end; `files` maps artifact paths to local files that exist while the run is
    being reported; `samples` are the first images of each test set, float `[n, c, h, w]`.
    """

    metrics: Mapping[str, float]
    epochs: tuple[Epoch, ...]
    predictions: Mapping[str, Predictions]
    classes: tuple[str, ...]
    config: str
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    samples: Mapping[str, Tensor] = field(default_factory=dict)
