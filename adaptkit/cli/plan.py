"""Draw the plan of an experiment for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adaptkit.outcome import Plan


def print_plan(console: Console, plan: Plan) -> None:
    """Print what an experiment will do."""
    target = plan.target if plan.shift == "none" else f"{plan.target} under {plan.shift}"
    console.print(
        f"Source   {escape(plan.dataset)}: {plan.source_images:,} training, {plan.clean_test_images:,} test",
        soft_wrap=True,
    )
    asked = plan.shots * len(plan.classes)
    fewer = "" if plan.drawn_images >= asked else f": at most half of it, not the {asked:,} asked for"
    console.print(
        f"Target   {escape(target)}: {plan.drawn_images:,} training (drawn from {plan.pool_images:,}{fewer}), "
        f"{plan.shifted_test_images:,} test",
        soft_wrap=True,
    )
    base = "found in the cache" if plan.base_cached else "to be trained first"
    place = f"{plan.device} in {plan.precision}"
    console.print(f"Base     {escape(plan.backbone)}, {len(plan.classes)} classes, on {place}; {base}", soft_wrap=True)
    seeds = "seed" if len(plan.seeds) == 1 else "seeds"
    console.print(f"Runs     {seeds} {', '.join(map(str, plan.seeds))}; {plan.epochs} epochs each", soft_wrap=True)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("strategy")
    for heading in ("trainable", "of all", "share", "learning rate"):
        table.add_column(heading, justify="right")
    for arm in plan.arms:
        share = f"{100 * arm.trainable / arm.parameters:.2f} %"
        table.add_row(escape(arm.label), f"{arm.trainable:,}", f"{arm.parameters:,}", share, f"{arm.lr:g}")
    console.print(table)
    for notice in plan.notices:
        console.print(f"Note: {notice}", markup=False, soft_wrap=True)
    if plan.seconds is not None:
        console.print(f"Estimated time: {duration(plan.seconds)} of training and evaluation on this machine.")


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
