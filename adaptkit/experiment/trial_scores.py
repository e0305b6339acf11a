"""Score the trials of a tuning by the metric that decides in the comparison, and order them."""

from __future__ import annotations

import math

import numpy

from adaptkit.comparison.metrics import measured_metric
from adaptkit.comparison.records import Metric
from adaptkit.contracts import Metric as Measure
from adaptkit.errors import AdaptkitError, RunFailed, plugin_fault
from adaptkit.events import Epoch
from adaptkit.experiment.prepare import Experiment
from adaptkit.plugins.manager import Plugins
from adaptkit.training.evaluation import predict
from adaptkit.training.loop import VALIDATION
from adaptkit.training.objective import probabilities
from adaptkit.training.passes import Passes

#: the metric whose scores every tuning run records as `validation/accuracy`
ACCURACY = "accuracy"


def deciding_metric(experiment: Experiment, plugins: Plugins) -> Metric:
    """Return the metric by which the trials of a tuning are chosen: the one that decides in the comparison."""
    measure = _measure(experiment, plugins)
    return measured_metric(measure, key=measure.name, label=measure.title)


def score_trial(
    experiment: Experiment, plugins: Plugins, last: Epoch, *, passes: Passes, groups: tuple[str, ...] | None
) -> float | None:
    """Return the score of a trained model on the held-back images; None if it is not defined for them.

    `last` is the last epoch of the training and `groups` are the groups of the held-back images. Raises RunFailed if
    the metric of a plugin fails.
    """
    measure = _measure(experiment, plugins)
    if measure.name == ACCURACY:
        return last.validation_accuracy
    logits = predict(passes.testing(VALIDATION), experiment.request.settings.precision)
    shares = probabilities(logits).cpu().double().numpy()
    truth = passes.tests[VALIDATION].labels.cpu().numpy()
    numbers = None if groups is None else numpy.unique(numpy.array(groups), return_inverse=True)[1]
    try:
        value = float(measure.score(shares, truth, groups=numbers))
    except AdaptkitError:
        raise
    except Exception as error:
        raise RunFailed(plugin_fault(error, type(measure), f"metric {measure.name}")) from error
    return value if math.isfinite(value) else None


def preference(metric: Metric, score: float | None, loss: float | None) -> tuple[float, float]:
    """Return a sort key: the smallest belongs to the best trial. Among equal scores, the smaller loss is better.

    With few images, many scores are equal. Scores and losses that are None come last.
    """
    sign = -1 if metric.higher_is_better else 1
    return (math.inf if score is None else sign * score, math.inf if loss is None else loss)


def _measure(experiment: Experiment, plugins: Plugins) -> Measure:
    measure: Measure = plugins.find("metric", experiment.request.settings.metric[0]).cls()
    return measure
