"""Say how far a verdict reaches."""

from __future__ import annotations

from adaptkit.comparison import Comparison
from adaptkit.reports.metrics import TEST_SETS, of_severities
from adaptkit.reports.statistics import sampling_error
from adaptkit.reports.wording import part


def scope_sentence(comparison: Comparison) -> str:
    """Return for which base, images and seeds a verdict holds."""
    metric = comparison.metric
    test = TEST_SETS.get(metric.key, "shifted")
    images = len(comparison.arms[0].runs[0].predictions[test].truth)
    if of_severities(metric.key):
        return f"This holds for this base and these {images:,} test images under these severities."
    if metric.key not in TEST_SETS:
        return "This holds for this base, these data and the machine that the runs were made on."
    sentence = f"This holds for this base and these {images:,} test images"
    judged = [arm.shifted if test == "shifted" else arm.clean for arm in comparison.arms]
    accuracies = [found.mean for found in judged if found is not None]
    error = sampling_error(sum(accuracies) / len(accuracies), images)
    sentence += f" (an accuracy here has a 95 % sampling error of ±{100 * error:.1f} points)"
    if any(len(arm.seeds) > 1 for arm in comparison.arms):
        drawn, pool = (comparison.setup.get(key, "") for key in ("drawn_images", "pool_images"))
        if drawn.isdigit() and pool.isdigit() and int(pool):
            # Two draws of k images from a pool of n have k * k / n in common, on average.
            sentence += f"; the seeds' draws share {part(int(drawn) / int(pool))} of their images"
    return f"{sentence}."
