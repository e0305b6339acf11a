"""Draw the plan of an experiment for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adaptkit.cli.durations import duration
from adaptkit.comparison import NO_SOURCE
from adaptkit.outcome import Plan


def print_plan(console: Console, plan: Plan) -> None:
    """Print what an experiment will do."""
    has_source = plan.dataset != NO_SOURCE
    if has_source:
        console.print(
            f"Source   {escape(plan.dataset)}: {plan.source_images:,} training, {plan.clean_test_images:,} test",
            soft_wrap=True,
        )
    target = plan.target if plan.shift == "none" else f"{plan.target} under {plan.shift}"
    asked = plan.shots * len(plan.classes)
    fewer = "" if plan.drawn_images >= asked else f": at most half of it, not the {asked:,} asked for"
    console.print(
        f"Target   {escape(target)}: {plan.drawn_images:,} training (drawn from {plan.pool_images:,}{fewer}), "
        f"{plan.shifted_test_images:,} test",
        soft_wrap=True,
    )
    if has_source:
        base = "found in the cache" if plan.base_cached else "to be trained first"
    else:
        base = "as it is, with a new head that every strategy trains"
    about = f"{len(plan.classes):,} classes, on {plan.device} in {plan.precision}"
    console.print(f"Base     {escape(plan.backbone)}, {about}; {base}", soft_wrap=True)
    seeds = "seed" if len(plan.seeds) == 1 else "seeds"
    epochs = "1 epoch" if plan.epochs == 1 else f"{plan.epochs} epochs"
    console.print(f"Runs     {seeds} {', '.join(map(str, plan.seeds))}; {epochs} each", soft_wrap=True)
    console.print(_arms(plan))
    for notice in plan.notices:
        console.print(f"Note: {notice}", markup=False, soft_wrap=True)
    if plan.seconds is not None:
        console.print(f"Estimated time: {duration(plan.seconds)} of training and evaluation on this machine.")


def _arms(plan: Plan) -> Table:
    """Return what each strategy trains, and where it lies; 80 columns hold models of tens of millions of parameters."""
    parameters = max(arm.parameters - arm.adapter for arm in plan.arms)
    caption = f"base: {parameters:,} parameters; adapter: parameters that it does not have"
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True, caption=caption, caption_justify="left")
    table.add_column("strategy", overflow="fold")
    for heading in ("trainable", "head", "adapter", "base", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("learning rate", justify="right")
    for arm in plan.arms:
        counts = (f"{count:,}" for count in (arm.trainable, arm.head, arm.adapter, arm.base))
        table.add_row(escape(arm.label), *counts, f"{100 * arm.trainable / arm.parameters:.2f} %", f"{arm.lr:g}")
    return table
