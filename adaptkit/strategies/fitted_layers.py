"""Fit classifiers with scikit-learn, and turn them into layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptkit.backbones.structure import find_head
from adaptkit.errors import BadInput

#: largest number of parts of a cross-validation
PARTS = 5
#: inverse L2 penalties of the logistic regression, for standardized features
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: strength without a cross-validation, if no class has two images
STRENGTH = 1e-2
#: penalties of the ridge regression, for standardized features
PENALTIES = tuple(10.0**power for power in range(-1, 7))
#: numbers of neighbours
NEIGHBOURS = (1, 3, 5, 9, 15, 25)
#: smallest distance at which the votes of neighbours fall to 0, far above rounding
LEAST_DISTANCE = 1e-3
#: the logit of a class without training images is this much below the mean of the others
ABSENT = 30.0
#: largest factor of scores, and of the logarithms of shares
MOST_SHARP, MOST_SHARP_SHARES = 1e3, 10.0


@dataclass(frozen=True)
class Data:
    """Features `[n, d]`, labels `[n]` and, if any, weights `[n]` of the training images."""

    x: NDArray[numpy.float64]
    y: NDArray[numpy.int64]
    weights: NDArray[numpy.float64] | None = None

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> Data:
        """Return the data as arrays; raise BadInput if all images have the same features."""
        if bool((features == features[:1]).all()):
            raise BadInput("all training images have the same features: the base does not tell them apart")
        return cls(features.double().numpy(), labels.numpy(), None if weights is None else weights.double().numpy())

    def at(self, rows: NDArray[Any]) -> Data:
        """Return the data of some images."""
        return Data(self.x[rows], self.y[rows], None if self.weights is None else self.weights[rows])

    @property
    def repeated(self) -> Data:
        """Return the images of the classes that have at least two, which a cross-validation needs."""
        counts = numpy.bincount(self.y)
        return self.at(counts[self.y] > 1)

    @property
    def shares(self) -> NDArray[numpy.float64]:
        """Return the share of each class that has images."""
        counts = numpy.bincount(self.y, self.weights)[numpy.unique(self.y)]
        return numpy.asarray(counts / counts.sum(), dtype=numpy.float64)


@dataclass(frozen=True)
class Linear:
    """A linear function from features to the logits of `classes`: `weight` `[k, d]` and `bias` `[k]`."""

    weight: NDArray[numpy.float64]
    bias: NDArray[numpy.float64]
    classes: NDArray[numpy.int64]

    @classmethod
    def read(cls, weight: Any, bias: Any, classes: Any) -> Linear:
        """Return the function with a row for each class; scikit-learn has one row for two classes."""
        if len(classes) == 2 and len(weight) == 1:
            weight, bias = numpy.vstack([-weight, weight]) / 2, numpy.hstack([-bias, bias]) / 2
        return cls(weight, bias, classes)

    def __call__(self, x: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        """Return the logits."""
        return x @ self.weight.T + self.bias

    def times(self, factor: float) -> Linear:
        """Return the function times a factor."""
        return Linear(self.weight * factor, self.bias * factor, self.classes)


def class_count(model: nn.Module) -> int:
    """Return the number of classes of a model."""
    head: Any = find_head(model.head)  # type: ignore[arg-type]
    return int(head.out_features)


def linear_layer(model: nn.Module, fitted: Linear) -> nn.Linear:
    """Return a fitted function as a layer for all classes of the model."""
    classes = class_count(model)
    weight = numpy.tile(fitted.weight.mean(0), (classes, 1))
    bias = numpy.full(classes, fitted.bias.mean() - ABSENT)
    weight[fitted.classes], bias[fitted.classes] = fitted.weight, fitted.bias
    layer = nn.Linear(weight.shape[1], classes)
    layer.weight.data.copy_(torch.from_numpy(weight))
    layer.bias.data.copy_(torch.from_numpy(bias))
    return layer


def divisions(data: Data) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the training and held-out rows of a stratified cross-validation; none if no class has two images.

    Every class must have two images or more; it is then in each training part. The seed is drawn from torch's
    generator.
    """
    from sklearn.model_selection import StratifiedKFold

    seed = int(torch.randint(2**31, ()))
    parts = min(PARTS, int(numpy.bincount(data.y).max())) if len(data.y) else 0
    if parts < 2 or len(numpy.unique(data.y)) < 2:
        return []
    with quiet():
        return list(StratifiedKFold(parts, shuffle=True, random_state=seed).split(data.x, data.y))


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings about classes with few images, and about fits that stop before they converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def standardized(data: Data, fit: Callable[[Data], Linear]) -> Linear:
    """Fit a linear function to standardized features, and return it as one of the features themselves."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(data.x)
    fitted = fit(Data(scaler.transform(data.x), data.y, data.weights))
    weight = fitted.weight / scaler.scale_
    return Linear(weight, fitted.bias - weight @ scaler.mean_, fitted.classes)


def fit_logistic(data: Data) -> Linear:
    """Fit a logistic regression whose penalty is chosen by the log-likelihood of held-out images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, make_scorer
    from sklearn.model_selection import GridSearchCV

    def fit(scaled: Data) -> Linear:
        known = scaled.repeated
        model = LogisticRegression(C=STRENGTH, max_iter=200)
        if parts := divisions(known):
            score = make_scorer(
                log_loss, greater_is_better=False, response_method="predict_proba", labels=numpy.unique(known.y)
            )
            search = GridSearchCV(model, {"C": STRENGTHS}, scoring=score, cv=parts, refit=False)
            search.fit(known.x, known.y, sample_weight=known.weights)
            model.set_params(**search.best_params_)
        model.fit(scaled.x, scaled.y, sample_weight=scaled.weights)
        return Linear.read(model.coef_, model.intercept_, model.classes_)

    with quiet():
        return standardized(data, fit)


def fit_ridge(data: Data) -> Linear:
    """Fit a ridge regression whose penalty is chosen by the squared error of left-out images."""
    from sklearn.linear_model import RidgeClassifierCV

    def fit(scaled: Data) -> Linear:
        model = RidgeClassifierCV(alphas=PENALTIES).fit(scaled.x, scaled.y, sample_weight=scaled.weights)
        return Linear.read(numpy.atleast_2d(model.coef_), numpy.atleast_1d(model.intercept_), model.classes_)

    with quiet():
        return standardized(data, fit)


def fit_lda(data: Data) -> Linear:
    """Fit a linear discriminant analysis; raise BadInput if there are no more images than classes."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    if len(data.y) <= len(numpy.unique(data.y)):
        raise BadInput(f"strategy lda needs more training images than classes, got {len(data.y)}")
    with quiet():
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=data.shares).fit(data.x, data.y)
    return Linear.read(model.coef_, model.intercept_, model.classes_)


def fit_centroids(data: Data) -> Linear:
    """Return the negative squared distances to the class means, without the part that all classes share.

    Their unit is the mean squared distance of the images to their mean.
    """
    from sklearn.neighbors import NearestCentroid

    with quiet():
        model = NearestCentroid().fit(data.x, data.y)
    unit = float(data.x.var(0).sum()) or 1.0
    return Linear(2 * model.centroids_, -(model.centroids_**2).sum(1), model.classes_).times(1 / unit)


def sharpened(fit: Callable[[Data], Linear], data: Data) -> Linear:
    """Fit a linear function and multiply it by the factor with the best log-likelihood of held-out images.

    The factor is 1 if no class has two images.
    """
    known = data.repeated
    number = {label: row for row, label in enumerate(numpy.unique(known.y))}
    held = [
        (fit(known.at(training))(known.x[rest]), numpy.array([number[label] for label in known.y[rest]]))
        for training, rest in divisions(known)
    ]
    return fit(data).times(sharpness(held, MOST_SHARP))


def sharpness(held: Sequence[tuple[NDArray[Any], NDArray[Any]]], most: float) -> float:
    """Return the factor of logits, from 1 / most to most, with the best log-likelihood; 1 without any.

    `held` are logits and the columns of the true classes.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    if not held:
        return 1.0
    logits, truth = (numpy.concatenate(parts) for parts in zip(*held, strict=True))

    def loss(power: float) -> float:
        scaled = logits * 10**power
        return float((logsumexp(scaled, axis=1) - scaled[numpy.arange(len(truth)), truth]).mean())

    end = float(numpy.log10(most))
    return 10 ** float(minimize_scalar(loss, bounds=(-end, end), method="bounded").x)


def votes(distances: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Return the votes of neighbours at these distances `[n, k + 1]`: they fall linearly to 0 at the last one."""
    edge = numpy.maximum(distances[:, -1:], LEAST_DISTANCE)
    return numpy.maximum(1 - distances / edge, 0)


def fit_neighbours(data: Data, classes: int) -> Neighbours:
    """Choose the number of neighbours by the accuracy on held-out images, and the factor by their log-likelihood."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(metric="cosine", algorithm="brute", weights=votes)
    known = data.repeated
    parts = divisions(known)
    most = min(len(training) for training, _ in parts) - 1 if parts else 0
    choices = [count + 1 for count in NEIGHBOURS if count <= most]
    chosen = min(NEIGHBOURS[0] + 1, len(data.y))
    if choices:
        with quiet():
            search = GridSearchCV(model, {"n_neighbors": choices}, cv=parts, refit=False).fit(known.x, known.y)
        chosen = int(search.best_params_["n_neighbors"])

    def layer(part: Data, factor: float = 1.0) -> Neighbours:
        features, labels = torch.from_numpy(part.x).float(), torch.from_numpy(part.y)
        return Neighbours(features, labels, chosen=chosen, factor=factor, classes=classes)

    held = [
        (layer(known.at(training))(torch.from_numpy(known.x[rest]).float()).double().numpy(), known.y[rest])
        for training, rest in (parts if choices else ())
    ]
    return layer(data, sharpness(held, MOST_SHARP_SHARES))


class Neighbours(nn.Module):
    """Classify by the votes of the most similar stored features; gives a multiple of the logarithms of their shares.

    `edge` marks, among the most similar images in order, the one at whose distance the votes fall to 0.
    """

    keys: Tensor
    labels: Tensor
    edge: Tensor
    factor: Tensor

    def __init__(self, features: Tensor, labels: Tensor, *, chosen: int, factor: float, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("keys", nn.functional.normalize(features))
        self.register_buffer("labels", labels)
        self.register_buffer("edge", nn.functional.one_hot(torch.tensor(chosen - 1), max(NEIGHBOURS) + 1).float())
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        found = min(self.edge.shape[0], self.keys.shape[0])
        similarity, index = (nn.functional.normalize(x) @ self.keys.T).topk(found)
        distance = (1 - similarity).clamp_min(0)
        edge = (distance * self.edge[:found]).sum(1, keepdim=True).clamp_min(LEAST_DISTANCE)
        votes = (1 - distance / edge).clamp_min(0)
        is_class = self.labels[index][:, :, None] == torch.arange(self.classes, device=x.device)
        shares = (votes[:, :, None] * is_class).sum(1) + 1 / self.classes
        logits: Tensor = self.factor * (shares / shares.sum(1, keepdim=True)).log()
        return logits
