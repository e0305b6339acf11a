"""Show the result of `adaptkit reproduce`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from adaptkit.cli.views.console import print_line
from adaptkit.reproduction.agreement import DIFFERENT, IDENTICAL, WITHIN

if TYPE_CHECKING:
    from rich.console import Console

    from adaptkit.cli.views.console import print_line
from adaptkit.reproduction.agreement import Reproduction

SHORT, WIDTH = 12, 79
#: facts that are listed even if all versions are equal
NAMED = ("adaptkit", "Python", "torch", "system", "processor", "threads", "device", "GPU")


def print_reproduction(console: Console, result: Reproduction) -> None:
    """Print the verdict, the comparison, and the differences."""
    colour = {IDENTICAL: "green", WITHIN: "yellow", DIFFERENT: "red"}[result.verdict]
    console.print(f"{result.name}: ", end="", markup=False, soft_wrap=True)
    console.print(result.verdict, style=f"bold {colour}")
    for line in _lines(result):
        print_line(console, line)


def _lines(result: Reproduction) -> Iterator[str]:
    yield f"run {result.run_id}"
    yield ""
    if result.first is not None and result.verdict == DIFFERENT:
        large = " above the tolerance" if result.environment_differences and result.base is not None else ""
        yield f"First difference{large}: {result.first.what}"
        yield f"  recorded  {_value(result.first.recorded)}"
        yield f"  now       {_value(result.first.now)}"
        if result.first.detail:
            yield f"  {result.first.detail}"
        if more := len(result.differences) - 1:
            yield f"{more:,} more {'values differ' if more > 1 else 'value differs'}; --json lists all."
        yield ""
    yield from _rows(result)
    yield ""
    yield from _environment(result)


def _rows(result: Reproduction) -> Iterator[str]:
    """Yield a line for the data, the base, the metrics, the predictions and the adapter."""
    kinds = [difference.kind for difference in result.differences]
    firsts = {difference.kind: difference for difference in reversed(result.differences)}
    largest, compared = result.largest, result.compared
    data = firsts.get("data")
    state = "as recorded" if data is None else "equal within rounding" if data.within else "different"
    yield _row("data", result.data_fingerprint[:SHORT], state)
    if result.base is None:
        yield "The run was not repeated."
        return
    base = "different" if "base" in kinds else "as recorded"
    if result.base_fingerprint is not None and result.kind != "base":
        yield _row("base", result.base_fingerprint[:SHORT], f"{base}, {result.base}")
    yield _row("metrics", f"{compared.metrics:,} values", _same("metric", kinds, "equal to the last bit"))
    for kind in ("accuracies", "other metrics"):
        if kind in largest:
            yield f"{'':13}{kind} by at most {largest[kind]}"
    if compared.predictions:
        state = "equal"
        if other := firsts.get("prediction"):
            column = f"{other.what.partition(',')[0]}: {other.detail} differ"
            state = largest.get("predictions", f"equal; {column}")
        yield _row("predictions", f"{compared.predictions:,} images", state)
    if compared.tensors:
        title = "base" if result.kind == "base" else "adapter"
        numbers = f"{compared.numbers:,} numbers"
        yield _row(title, numbers, _same("adapter", kinds, "equal to the last bit"))
        if title in largest:
            yield f"{'':13}by at most {largest[title]}"


def _row(title: str, amount: str, state: str) -> str:
    return f"{title:<13}{amount:<18}{state}"


def _same(kind: str, kinds: list[str], equal: str) -> str:
    count = kinds.count(kind)
    if not count:
        return equal
    return f"{count:,} differ" if kind == "metric" and count > 1 else "differs" if kind != "metric" else "1 differs"


def _environment(result: Reproduction) -> Iterator[str]:
    now = result.environment["now"]
    if not result.environment_differences:
        formats = {"system": "{}", "processor": "{}", "device": "on {}", "GPU": "{}", "threads": "threads: {}"}
        parts = [formats.get(key, f"{key} {{}}").format(now[key]) for key in NAMED if key in now]
        yield "Computed with the recorded versions, on the same kind of hardware:"
        yield from textwrap.wrap(", ".join(parts), WIDTH)
        return
    names = ["", *(other.what for other in result.environment_differences)]
    before = ["the run", *(other.recorded for other in result.environment_differences)]
    width, middle = (max(map(len, column)) + 2 for column in (names, before))
    for name, one, other in zip(names, before, ["now", *(o.now for o in result.environment_differences)], strict=True):
        yield f"{name:<{width}}{one:<{middle}}{other}"
    if result.verdict == IDENTICAL:
        yield "The results are identical nevertheless."
    elif result.verdict == WITHIN:
        yield "Differences of this size are normal on other hardware or with other versions."
    elif result.verdict == DIFFERENT and result.base is not None:
        yield "These differences may be the cause, but the results differ more than is normal."


def _value(value: Any) -> str:
    return "nothing" if value is None else str(value)
