"""Simple classifiers on the features of the frozen base, fitted by scikit-learn.

Their strength is chosen by cross-validation inside the training images. It divides images, not groups of images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn


class Logistic:
    """Fit a logistic regression to the frozen features.

    Probabilities are its own. The features are standardized, and the L2 penalty has the best log-likelihood in a
    cross-validation.
    """

    name = "logistic"

    def fit(self, model: nn.Module, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> nn.Module:
        """Return the linear layer."""
        from adaptkit.strategies.fitted_layers import Data, fit_logistic, linear_layer

        data = Data.of(features, labels, weights)
        return linear_layer(model, fit_logistic(data))


class Ridge:
    """Fit a ridge regression of the classes to the frozen features.

    The features are standardized, and the penalty has the smallest squared error when each image is left out once.
    Probabilities are the softmax of its scores times the factor with the best log-likelihood in a cross-validation.
    """

    name = "ridge"

    def fit(self, model: nn.Module, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> nn.Module:
        """Return the linear layer."""
        from adaptkit.strategies.fitted_layers import Data, fit_ridge, linear_layer, sharpened

        data = Data.of(features, labels, weights)
        return linear_layer(model, sharpened(fit_ridge, data))


class LDA:
    """Fit a linear discriminant analysis to the frozen features.

    Its covariance is shrunk by the amount of Ledoit and Wolf (2004). Probabilities are those of its normal
    distributions.
    """

    name = "lda"

    def fit(self, model: nn.Module, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> nn.Module:
        """Return the linear layer; raise BadInput if there are no more images than classes."""
        from adaptkit.strategies.fitted_layers import Data, fit_lda, linear_layer

        return linear_layer(model, fit_lda(Data.of(features, labels, weights)))


class Centroid:
    """Classify by the nearest class mean of the frozen features, with Euclidean distance.

    Classes always count equally. Probabilities are the softmax of the negative squared distances times the factor with
    the best log-likelihood in a cross-validation.
    """

    name = "centroid"

    def fit(self, model: nn.Module, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> nn.Module:
        """Return a linear layer, whose logits differ as the squared distances do."""
        from adaptkit.strategies.fitted_layers import Data, fit_centroids, linear_layer, sharpened

        data = Data.of(features, labels, weights)
        return linear_layer(model, sharpened(fit_centroids, data))


class KNN:
    """Classify by the most similar training images: the nearest neighbours of the frozen features by cosine distance.

    A neighbour's vote falls linearly to 0 at the distance of the next image after the neighbours (Hechenbichler and
    Schliep, 2004). Their number has the best accuracy in a cross-validation. Probabilities are the shares of the votes
    and of one more vote that all classes share, to the power with the best log-likelihood in the cross-validation.
    """

    name = "knn"

    def fit(self, model: nn.Module, features: Tensor, labels: Tensor) -> nn.Module:
        """Return a layer that holds the features of the training images."""
        from adaptkit.strategies.fitted_layers import Data, class_count, fit_neighbours

        return fit_neighbours(Data.of(features, labels), class_count(model))


@hookimpl
def adaptkit_strategies() -> list[type]:
    """Return the strategies that fit a head to features."""
    return [KNN, Centroid, Ridge, Logistic, LDA]
