"""Heads that scikit-learn fits to features: its own results, few images, and runs, exports and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.experiments import TINY
from torch import Tensor, nn

from adaptkit import BadInput
from adaptkit.backbones.structure import with_head
from adaptkit.strategies import fitted, fitted_layers
from adaptkit.training.objective import balanced_weights

Cli = Callable[..., Result]
CLASSES, WIDTH = 4, 12
STRATEGIES = {cls.name: cls for cls in fitted.adaptkit_strategies()}


def model() -> nn.Module:
    return with_head(nn.Sequential(nn.Flatten(), nn.Linear(16, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)), (1, 4))


def data(*counts: int, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return overlapping features, of another scale in each column, with these numbers of images of each class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    centres = torch.rand(len(counts), WIDTH, generator=generator)
    noise = spread * torch.rand(len(labels), WIDTH, generator=generator)
    return (centres[labels] + noise) * torch.logspace(-1, 1, WIDTH), labels


TRAIN, TEST = data(20, 15, 10, 12), data(30, 30, 30, 30)


def logits(name: str, features: Tensor, labels: Tensor, *weights: Tensor) -> Tensor:
    torch.manual_seed(0)
    layer: nn.Module = STRATEGIES[name]().fit(model(), features, labels, *weights)
    with torch.no_grad():
        result: Tensor = layer(TEST[0])
    return result


def test_lda_gives_the_probabilities_of_scikit_learn() -> None:
    x, y = (part.numpy() for part in TRAIN)
    for weights, priors in ((), None), ((balanced_weights(TRAIN[1]),), numpy.full(CLASSES, 1 / CLASSES)):
        expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors).fit(x.astype(float), y)
        ours = logits("lda", *TRAIN, *weights).softmax(1)
        numpy.testing.assert_allclose(ours, expected.predict_proba(TEST[0].numpy()), atol=1e-4)


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_gives_the_probabilities_of_scikit_learn(balanced: bool) -> None:
    x, y = (part.numpy() for part in TRAIN)
    weights = (balanced_weights(TRAIN[1]),) if balanced else ()
    ours = logits("logistic", *TRAIN, *weights).softmax(1).numpy()
    gaps = []
    for strength in fitted_layers.STRENGTHS:  # one of them was chosen
        expected = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=strength, max_iter=200, class_weight="balanced" if balanced else None),
        ).fit(x.astype(float), y)
        gaps.append(numpy.abs(ours - expected.predict_proba(TEST[0].numpy())).max())
    assert sorted(gaps)[0] < 1e-3 < sorted(gaps)[1]


CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "ridge": lambda: make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=fitted_layers.PENALTIES)),
    "centroid": NearestCentroid,
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_linear_heads_predict_as_scikit_learn(name: str) -> None:
    x, y = (part.numpy() for part in TRAIN)
    expected = CLASSIFIERS[name]().fit(x.astype(float), y).predict(TEST[0].double().numpy())
    assert logits(name, *TRAIN).argmax(1).tolist() == expected.tolist()


def test_knn_predicts_as_scikit_learn() -> None:
    x, y = (part.numpy() for part in TRAIN)
    torch.manual_seed(0)
    layer: Any = STRATEGIES["knn"]().fit(model(), *TRAIN)
    found = int(layer.edge.argmax()) + 1
    expected = KNeighborsClassifier(found, metric="cosine", weights=fitted_layers.votes).fit(x.astype(float), y)
    with torch.no_grad():
        assert layer(TEST[0]).argmax(1).tolist() == expected.predict(TEST[0].double().numpy()).tolist()


def test_factor_of_scores_is_better_than_none_on_new_images() -> None:
    def loss(values: Tensor) -> float:
        return float(nn.functional.cross_entropy(values, TEST[1]))

    plain = fitted_layers.linear_layer(model(), fitted_layers.fit_ridge(fitted_layers.Data.of(*TRAIN)))
    assert loss(logits("ridge", *TRAIN)) < loss(plain(TEST[0]).detach())


#: images of each class: single ones, pairs, an empty class, one class only
FEW = [(1, 1, 1, 1), (2, 1, 1, 1), (2, 2, 2, 2), (1, 2, 9, 1), (5, 0, 5, 5), (3, 0, 0, 1)]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("counts", FEW, ids=str)
def test_few_images(name: str, counts: tuple[int, ...]) -> None:
    features, labels = data(*counts)
    present = len(labels.unique())
    if name == "lda" and len(labels) <= present:
        with pytest.raises(BadInput) as caught:
            logits(name, features, labels)
        assert caught.value.problems == (f"strategy lda needs more training images than classes, got {len(labels)}",)
        return
    values = logits(name, features, labels)
    assert values.shape == (len(TEST[0]), CLASSES) and bool(values.isfinite().all())
    predicted = set(values.argmax(1).tolist())
    assert predicted <= set(labels.tolist()), "a class without images is predicted"
    if min(count for count in counts if count) > 1:
        assert float((values.argmax(1) == TEST[1])[torch.isin(TEST[1], labels)].float().mean()) > 0.5


@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_features_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="all training images have the same features"):
        logits(name, torch.ones(8, WIDTH), torch.arange(8) % CLASSES)


def outcome(cli: Cli, *words: str) -> dict[str, Any]:
    result = cli("run", *words, *TINY, "--no-track", "--json")
    assert result.exit_code == 0, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_run_is_one_fit_with_counted_values(cli: Cli, own_folder: Path) -> None:
    content = outcome(cli, "-s", "knn", "-s", "ridge", "-s", "head")
    knn, ridge, head = content["runs"]
    assert [len(run["epochs"]) for run in (knn, ridge, head)] == [1, 1, 2]
    assert [knn["lr"], ridge["lr"]] == [None, None] and head["lr"] > 0
    # 50 images of 128 features with a label each; the votes' edge and factor
    stored = 50 * 128 + 50 + max(fitted_layers.NEIGHBOURS) + 2
    counted = [run["metrics"]["params/trainable"] for run in (knn, ridge, head)]
    assert counted == [stored, 1290, 1290] == [arm["trainable"] for arm in content["plan"]["arms"]]
    assert ridge["metrics"]["params/total"] == head["metrics"]["params/total"] == content["plan"]["base_parameters"]
    assert knn["metrics"]["params/total"] == content["plan"]["base_parameters"] - 1290 + stored


REFUSALS = {
    ("run", "-s", "ridge", "-o", "lr=0.1"): "ridge.lr: strategy ridge fits a head without gradient descent, so it has",
    ("sweep", "-s", "ridge", "-s", "head", "--grid", "lr=0.1,0.2"): "grid lr: has no effect on ridge",
    ("tune", "-s", "ridge"): "ridge: has nothing to tune",
}


@pytest.mark.parametrize("words", REFUSALS, ids=lambda words: words[0])
def test_learning_rates_are_refused(cli: Cli, own_folder: Path, words: tuple[str, ...]) -> None:
    result = cli(*words, *TINY)
    assert (result.exit_code, result.stderr.count("Error")) == (2, 1)
    assert REFUSALS[words] in result.stderr


def test_settings_without_effect_are_named(cli: Cli, own_folder: Path) -> None:
    notices = outcome(cli, "-s", "knn", "--lr", "0.1", "--class-weights", "balanced", "--dry-run")["notices"]
    assert "knn: its head is fitted without class weights" in notices
    assert "knn: no effect of epochs, lr: its head is fitted once, without gradient descent" in notices
    notices = outcome(cli, "-s", "centroid", "-s", "head", "--lr", "0.1", "--dry-run")["notices"]
    assert not [line for line in notices if line.startswith("centroid")]


@pytest.mark.slow
def test_tuning_inside_the_fits_leaves_fitted_heads_out(cli: Cli, own_folder: Path, store: Path) -> None:
    result = cli("run", "-s", "ridge", "-s", "head", "--tune", "2", *TINY)
    assert result.exit_code == 0, result.stderr
    assert "1 x 1 x 2 = 2 short trainings" in result.stderr + result.stdout
    assert "Every strategy with gradient descent was tuned with 2 trials in each fit" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_models_are_exported_refitted_and_repeated(cli: Cli, own_folder: Path, store: Path, name: str) -> None:
    result = cli("run", "-s", name, *TINY, "--json")
    assert result.exit_code == 0, result.stderr
    run_id = json.loads(result.stdout)["runs"][0]["run_id"]
    for written in ("merged", "torch-export", "onnx", "mlflow", "peft"):
        result = cli("export", run_id, "--to", written, "-o", written)
        is_held = written != "peft" and (written != "merged" or name != "knn")
        assert result.exit_code == (0 if is_held else 2), result.stderr
        assert result.stderr.count("Error") == (not is_held)
    assert ("--to torch-export or onnx" in result.stderr) == (name == "knn")
    assert cli("refit", run_id).exit_code == 0
    assert cli("reproduce", run_id).exit_code == 0


def test_weights_are_seen_by_heads_that_take_them() -> None:
    features, labels = data(40, 3, 3, 3, spread=3)
    weights = balanced_weights(labels)

    def share(*more: Tensor, name: str) -> float:
        torch.manual_seed(0)
        layer = STRATEGIES[name]().fit(model(), features, labels, *more)
        return float(layer(features).detach().softmax(1)[:, 0].mean())

    for name in ("ridge", "logistic", "lda"):
        assert share(weights, name=name) < share(name=name), name


def test_votes_fall_to_zero_at_the_next_image() -> None:
    distances: NDArray[numpy.float64] = numpy.array([[0.0, 0.1, 0.2], [0.0, 0.0, 0.0]])
    numpy.testing.assert_allclose(fitted_layers.votes(distances), [[1, 0.5, 0], [1, 1, 1]])
