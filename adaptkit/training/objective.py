"""The task of every model: the loss that training minimizes, and the step from logits to predictions.

Today the task is classification. Other tasks and losses start here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from adaptkit.events import Predictions


def loss_of(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of logits `[n, classes]` and int64 labels `[n]`, computed in float32.

    `weights` `[n]` multiply the loss of each image; without weights, all images count equally.
    """
    if weights is None:
        return nn.functional.cross_entropy(logits.float(), labels)
    # Not divided by the sum of the weights: in a batch of one class, the weight of the class would have no effect.
    losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * weights).mean()


def balanced_weights(labels: Tensor) -> Tensor:
    """Return a weight for each training image, float32 `[n]`, with which all classes count equally.

    With n images, the images of a class with n_c of them have the weight n / (classes * n_c); classes without images do
    not count. The mean of the weights is 1. These are scikit-learn's weights `balanced`.
    """
    _, number, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
    weights: Tensor = len(labels) / (len(counts) * counts.double())
    return weights[number].float().to(labels.device)


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class `[n, classes]`."""
    return logits.softmax(1)


@dataclass(frozen=True)
class Temperature:
    """A forward hook that divides the logits of a model by a temperature; the predicted classes stay the same.

    A hook keeps the type, the attributes and the tensor names of the model; programs that torch exports contain it.
    """

    value: float

    def __call__(self, model: nn.Module, inputs: object, logits: Tensor) -> Tensor:
        """Return the divided logits."""
        return logits / self.value


def calibrate(model: nn.Module, temperature: float | None) -> nn.Module:
    """Make a model divide its logits by a temperature, in place, unless it is None; return the model."""
    if temperature is not None:
        model.register_forward_hook(Temperature(temperature))
    return model


def predict_classes(logits: Tensor) -> Tensor:
    """Return the index of the predicted class of each row, int64 `[n]`."""
    return logits.argmax(1)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows whose predicted class is the label."""
    return (predict_classes(logits) == labels).sum().item() / len(labels)


def predictions_of(
    logits: Tensor,
    *,
    image: Tensor,
    truth: Tensor,
    base_logits: Tensor | None = None,
    ids: tuple[str, ...] | None = None,
    groups: tuple[str, ...] | None = None,
) -> Predictions:
    """Return the predictions on a test set; `image` are the indices of its images in the published data set."""
    by_class = probabilities(logits).cpu()
    confidence, predicted = by_class.max(1)
    base = None if base_logits is None else predict_classes(base_logits).cpu().numpy()
    return Predictions(
        image=image.numpy(),
        truth=truth.numpy(),
        predicted=predicted.numpy(),
        confidence=confidence.numpy(),
        base_predicted=base,
        probabilities=by_class.numpy(),
        ids=ids,
        groups=groups,
    )
