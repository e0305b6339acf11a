"""Write the table of PEFT types in the README: `python -m adaptkit_peft.table README.md`."""

from __future__ import annotations

import sys
from pathlib import Path

from adaptkit_peft import catalogue
from adaptkit_peft.catalogue import Entry
from adaptkit_peft.methods import LEARNING_RATE, LEARNING_RATES, PAPERS

BEGIN, END = "<!-- types: begin -->", "<!-- types: end -->"


def table() -> str:
    """Return Markdown tables of the types of the installed PEFT: supported types, then the others."""
    entries = catalogue.read()
    convolutions = {sort for entry in entries for sort in entry.layers if "convolutions" in sort}
    lines = [
        f"With PEFT {catalogue.installed_version()}:",
        "",
        "| strategy | method | adapts | starts at the base | merges | lr |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry in entries:
        if not entry.unavailable:
            rate = LEARNING_RATES.get(entry.type, LEARNING_RATE)
            lines.append(
                f"| `peft-{entry.type.lower()}` | {PAPERS.get(entry.type, entry.type)} "
                f"| {_adapted(entry, convolutions)} "
                f"| {'yes' if entry.starts_at_base else 'no'} | {'yes' if entry.merges else 'no'} | {rate:g} |"
            )
    lines += ["", "| not available | why |", "| --- | --- |"]
    lines += [f"| `peft-{entry.type.lower()}` | {entry.unavailable} |" for entry in entries if entry.unavailable]
    return "\n".join(lines)


def _adapted(entry: Entry, convolutions: set[str]) -> str:
    """Describe briefly which layers a type adapts, and which convolutions it does not support."""
    layers = set(entry.layers)
    if "norm layers" in layers:
        return "norm layers"
    words = ["linear" if "linear layers without bias" in layers else "linear with bias"]
    if "square convolutions" in layers:
        missing = sorted(sort.replace("convolutions", "").strip() for sort in convolutions - layers)
        words.append(f"conv, but not: {', '.join(missing)}" if missing else "conv")
    elif "1x1 convolutions" in layers:
        words.append("1x1 conv")
    return ", ".join(words)


def with_table(text: str) -> str:
    """Return the text of a README with the current table between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
