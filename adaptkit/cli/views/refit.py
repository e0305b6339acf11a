"""Show the result of `adaptkit refit`."""

from __future__ import annotations

from rich.console import Console

from adaptkit.cli.views.console import print_line
from adaptkit.comparison.temperature import calibration_text
from adaptkit.experiment.outcome import RefitSummary
from adaptkit.experiment.refit import expectation_text
from adaptkit.tracking.address import tracking_option
from adaptkit.tuning.outcome import shown_value


def print_refit(console: Console, summary: RefitSummary) -> None:
    """Print what was trained, or would be, and the accuracy to expect."""
    done = f"trained on all {summary.images:,} labels" if summary.run_id else f"{summary.images:,} labels to train on"
    print_line(console, f"Final model: {summary.label}, {done} (settings of run {summary.refit_of})")
    if summary.tuning_trials:
        chosen = ", ".join(f"{key} {shown_value(value)}" for key, value in summary.tuned.items())
        start = "Tuned" if summary.run_id else "To be tuned"
        text = f"{start} once more on all labels, with {summary.tuning_trials} trials"
        print_line(console, f"{text}: {chosen}" if chosen else text)
    if summary.run_id is not None:
        print_line(console, f"run {summary.run_id}")
    print_line(console, expectation_text(summary.expected))
    if summary.calibration is not None:
        print_line(console, calibration_text(summary.calibration))


def print_use(console: Console, summary: RefitSummary) -> None:
    """Print the command that uses the model."""
    if summary.run_id is not None and summary.tracking_uri is not None:
        option = tracking_option(summary.tracking_uri)
        print_line(console, f"Use it:  adaptkit predict {summary.run_id} IMAGES{option}")
