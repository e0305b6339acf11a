"""Define the records that event hooks receive: the start of a run, its epochs and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RunInput:
    """A data set that a run uses; `digest` is the sha256 of its content."""

    name: str
    context: str
    digest: str
    source: str


@dataclass(frozen=True)
class RunStart:
    """A run that starts; `params` holds all resolved settings.

    `kind` is base, adaptation, tuning or final. `folds` is the number of trainings of a run: one for each fold.
    """

    kind: str
    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    inputs: tuple[RunInput, ...] = ()
    description: str = ""
    folds: int = 1


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch; `seconds` includes training and evaluation.

    Accuracies are fractions. `train_accuracy` is on the training images, `test_accuracy` on the test images of the
    source (None without a source), and `shifted_accuracy` on those of the target (None if they are evaluated only at
    the end). A tuning run has only `validation_accuracy`, on held-out target images.

    A run with folds first has the epochs of each fold, whose number, from 0, is `fold`; these are not recorded. At its
    end it has the means over the folds, whose `fold` is None, as in all other runs.
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
    fold: int | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model and of its base for a test set, as 1-d arrays; `image` is the index in the data set.

    `probabilities` is `[n, classes]`. `ids` identify the images if they have ids, `groups` are their groups, and `fold`
    is the number of the fold, from 0, whose model made the prediction. Each of these is None if it does not exist.
    """

    image: Any
    truth: Any
    predicted: Any
    confidence: Any
    base_predicted: Any | None = None
    probabilities: Any | None = None
    ids: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    fold: Any | None = None

    @property
    def accuracy(self) -> float:
        """Return the fraction of correct predictions."""
        return float((self.predicted == self.truth).mean())


@dataclass(frozen=True)
class ConfidenceBin:
    """The predictions of similar confidence: their share of all, their mean confidence, and their accuracy.

    `low` and `high` are the ends of the 95 % interval of the accuracy (Wilson).
    """

    share: float
    confidence: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """The temperature that divides the logits of a model, and the quality of its probabilities before and after.

    It is fitted on `images` predictions of models that were not trained on these images. The negative log-likelihood
    `nll` (in nats), the expected calibration error `ece` (a fraction) and `bins` after calibration are cross-fitted:
    the temperature of each of `parts` parts of the images is fitted on the other parts.
    """

    temperature: float
    images: int
    parts: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    bins_before: tuple[ConfidenceBin, ...]
    bins_after: tuple[ConfidenceBin, ...]


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run.

    `metrics` are the final metrics by MLflow name, `predictions` are by test set. `tags` are additional tags of the
    run. `files` maps artifact paths to local files, which exist only while the hooks are called. `samples` are the
    first images of each test set, float `[n, c, h, w]`. `calibration` is that of a calibrated refit. `warnings` are
    signs that the run has not learned.
    """

    metrics: Mapping[str, float]
    epochs: tuple[Epoch, ...]
    predictions: Mapping[str, Predictions]
    classes: tuple[str, ...]
    config: str
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    calibration: Calibration | None = None
    warnings: tuple[str, ...] = ()
