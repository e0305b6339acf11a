"""Write down for people what came of running a run again."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from adaptkit.reproduction.agreement import DIFFERENT, IDENTICAL, WITHIN

if TYPE_CHECKING:
    from rich.console import Console

    from adaptkit.reproduction.agreement import Reproduction

SHORT, WIDTH = 12, 79
#: what the versions of are told anyway
NAMED = ("adaptkit", "Python", "torch", "system", "processor", "threads", "device", "GPU")


def print_reproduction(console: Console, found: Reproduction) -> None:
    """Print the verdict, what was compared, and what differs."""
    colour = {IDENTICAL: "green", WITHIN: "yellow", DIFFERENT: "red"}[found.verdict]
    console.print(f"{found.name}: ", end="", markup=False, soft_wrap=True)
    console.print(found.verdict, style=f"bold {colour}")
    for line in _lines(found):
        console.print(line, markup=False, soft_wrap=True)


def _lines(found: Reproduction) -> Iterator[str]:
    yield f"run {found.run_id}"
    yield ""
    if found.first is not None and found.verdict == DIFFERENT:
        large = " that is too large" if found.environment_differences and found.base is not None else ""
        yield f"First difference{large}: {found.first.what}"
        yield f"  recorded  {_value(found.first.recorded)}"
        yield f"  now       {_value(found.first.now)}"
        if found.first.detail:
            yield f"  {found.first.detail}"
        if more := len(found.differences) - 1:
            yield f"{more:,} more {'differ' if more > 1 else 'differs'}; --json lists them."
        yield ""
    yield from _rows(found)
    yield ""
    yield from _surroundings(found)


def _rows(found: Reproduction) -> Iterator[str]:
    """Yield a line for each thing that was compared."""
    kinds = [difference.kind for difference in found.differences]
    firsts = {difference.kind: difference for difference in reversed(found.differences)}
    largest, compared = found.largest, found.compared
    data = firsts.get("data")
    said = "as recorded" if data is None else "the same, with other last digits" if data.within else "others"
    yield _row("data", found.data_fingerprint[:SHORT], said)
    if found.base is None:
        yield "Nothing was run."
        return
    base = "others" if "base" in kinds else "as recorded"
    if found.base_fingerprint is not None and found.kind != "base":
        yield _row("base", found.base_fingerprint[:SHORT], f"{base}, {found.base}")
    yield _row("metrics", f"{compared.metrics:,} values", _same("metric", kinds, "equal to the last bit"))
    for kind in ("accuracies", "other metrics"):
        if kind in largest:
            yield f"{'':13}{kind} by at most {largest[kind]}"
    if compared.predictions:
        said = "equal"
        if other := firsts.get("prediction"):
            column = f"{other.what.partition(',')[0]}: {other.detail} differ"
            said = largest.get("predictions", f"equal; {column}")
        yield _row("predictions", f"{compared.predictions:,} images", said)
    if compared.tensors:
        title = "base" if found.kind == "base" else "adapter"
        numbers = f"{compared.numbers:,} numbers"
        yield _row(title, numbers, _same("adapter", kinds, "equal to the last bit"))
        if title in largest:
            yield f"{'':13}by at most {largest[title]}"


def _row(title: str, amount: str, said: str) -> str:
    return f"{title:<13}{amount:<18}{said}"


def _same(kind: str, kinds: list[str], equal: str) -> str:
    count = kinds.count(kind)
    if not count:
        return equal
    return f"{count:,} differ" if kind == "metric" and count > 1 else "differs" if kind != "metric" else "1 differs"


def _surroundings(found: Reproduction) -> Iterator[str]:
    now = found.environment["now"]
    if not found.environment_differences:
        said = {"system": "{}", "processor": "{}", "device": "on {}", "GPU": "{}", "threads": "threads: {}"}
        parts = [said.get(key, f"{key} {{}}").format(now[key]) for key in NAMED if key in now]
        yield "Computed as recorded, with the same versions on hardware of the same kind:"
        yield from textwrap.wrap(", ".join(parts), WIDTH)
        return
    names = ["", *(other.what for other in found.environment_differences)]
    before = ["the run", *(other.recorded for other in found.environment_differences)]
    width, middle = (max(map(len, column)) + 2 for column in (names, before))
    for name, one, other in zip(names, before, ["now", *(o.now for o in found.environment_differences)], strict=True):
        yield f"{name:<{width}}{one:<{middle}}{other}"
    if found.verdict == IDENTICAL:
        yield "It came out the same nevertheless."
    elif found.verdict == WITHIN:
        yield "On other hardware or with other versions, differences of this size are to be expected."
    elif found.verdict == DIFFERENT and found.base is not None:
        yield "That may be why, but the difference is larger than is to be expected of it."


def _value(value: Any) -> str:
    return "nothing" if value is None else str(value)
