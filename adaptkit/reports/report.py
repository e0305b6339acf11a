"""Write a report of comparisons: an HTML page, Markdown, JSON and figures."""

from __future__ import annotations

import base64
import dataclasses
import functools
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from adaptkit.comparison.findings import Comparison, Comparisons
from adaptkit.comparison.numbers import listed, margin
from adaptkit.errors import BadInput
from adaptkit.names import COMPARISON_FILE, REPORT_FILE, REPORT_MARKDOWN_FILE
from adaptkit.reports import tables
from adaptkit.reports.figures.comparison import Drawing, draw_comparison, save_drawing
from adaptkit.reports.figures.style import assign_colours
from adaptkit.reports.figures.sweeps import draw_trends
from adaptkit.reports.tables import Table, severity_table

TEMPLATES = Path(__file__).parent / "templates"
SEVERITY = (
    "A multiple of the shift's amounts: 1 is the shift that the strategies adapted to. The area is the mean accuracy "
    "over the range, with straight lines between severities. It is judged by the seeds alone. A strategy is clearly "
    "ahead at a severity if the pair's 95 % interval there, not adjusted for the number of pairs, excludes 0."
)
#: report.html is written last, so that all other files exist if it exists
TEXTS = (COMPARISON_FILE, REPORT_MARKDOWN_FILE, REPORT_FILE)


@dataclass(frozen=True)
class Picture:
    """A figure of a report: title, caption, name of the PNG file in the same folder, and its bytes as base64."""

    title: str
    caption: str
    file: str
    data: str


@dataclass(frozen=True)
class Chapter:
    """The part of a report about one comparison."""

    comparison: Comparison
    strategies: str
    subject: str
    results: Sequence[Table]
    class_scores: Table
    runs: Table
    left_out: Table
    facts: Sequence[tuple[str, str]]
    pictures: Sequence[Picture]


def write_report(folder: Path, findings: Comparisons, more: Sequence[Drawing] = ()) -> list[Path]:
    """Write report.html, report.md, comparison.json and each figure as PNG and SVG; return their paths.

    `more` are figures to show before those of the first comparison. Existing files are replaced only when all new ones
    are complete. Raises BadInput if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".report-") as temporary:
            names = _write_all(Path(temporary), findings, more)
            for name in names:
                if (folder / name).is_dir():
                    raise BadInput(f"--output: {folder / name} must be a file, but it is a folder")
            for name in names:
                os.replace(Path(temporary) / name, folder / name)
    except OSError as error:
        raise BadInput(f"--output: cannot write to {folder}: {_reason(error)}") from error
    return [folder / name for name in names]


def _reason(error: OSError) -> str:
    return "it is a file" if isinstance(error, FileExistsError) else error.strerror or type(error).__name__


def _write_all(folder: Path, findings: Comparisons, more: Sequence[Drawing]) -> list[str]:
    """Draw and write all files into an empty folder; return their names."""
    strategies = {arm.strategy for comparison in findings.comparisons for arm in comparison.arms}
    chapters: list[Chapter] = []
    names: list[str] = []
    trends = [_picture(drawing, folder, names) for drawing in draw_trends(findings, strategies)]
    for position, comparison in enumerate(findings.comparisons, start=1):
        pictures = []
        for drawing in [*(more if position == 1 else ()), *draw_comparison(comparison, strategies)]:
            if position > 1:
                drawing = dataclasses.replace(drawing, stem=f"{drawing.stem}_{position}")
            pictures.append(_picture(drawing, folder, names))
        chapters.append(_chapter(comparison, pictures, assign_colours(strategies)))
    content = {
        "chapters": chapters,
        "trends": list(zip(findings.trends, trends, strict=True)),
        "findings": findings,
        "left_out": tables.left_out(findings.left_out),
        "reading": how_to_read(findings.comparisons),
    }
    texts = {
        COMPARISON_FILE: f"{findings.to_json()}\n",
        REPORT_MARKDOWN_FILE: _template("report.md.j2", autoescape=False, finalize=escape_markdown).render(content),
        REPORT_FILE: _template("report.html.j2", autoescape=True).render(content),
    }
    for name in TEXTS:
        (folder / name).write_text(texts[name], encoding="utf-8", errors="replace")
    return [*names, *TEXTS]


def _picture(drawing: Drawing, folder: Path, names: list[str]) -> Picture:
    """Write a figure into the folder, append the names of its files to `names`, and return the picture."""
    png, svg = save_drawing(drawing, folder)
    names += [png.name, svg.name]
    return Picture(
        title=drawing.title, caption=drawing.alt, file=png.name, data=base64.b64encode(png.read_bytes()).decode("ascii")
    )


def _chapter(comparison: Comparison, pictures: Sequence[Picture], colours: Mapping[str, str]) -> Chapter:
    return Chapter(
        comparison=comparison,
        strategies=listed(arm.name for arm in comparison.arms),
        subject=tables.subject(comparison),
        results=[
            tables.accuracies(comparison, colours),
            *([tables.pairs(comparison)] if comparison.pairs else []),
            tables.costs(comparison, colours),
            tables.fronts(comparison, colours),
            *([severity_table(comparison.robustness, colours)] if comparison.robustness is not None else []),
        ],
        class_scores=tables.class_scores(comparison),
        runs=tables.runs(comparison, colours),
        left_out=tables.left_out(comparison.left_out),
        facts=tables.facts(comparison),
        pictures=pictures,
    )


def how_to_read(comparisons: Sequence[Comparison]) -> tuple[tuple[str, str], ...]:
    """Return the terms of a report with their meanings."""
    within = margin(comparisons[0].metric, comparisons[0].margin)
    terms: tuple[tuple[str, str], ...] = (
        ("target", "The accuracy on the target test set."),
        ("numbers", "Accuracies and F1 are in %, differences between them in points."),
        (
            "interval",
            "It covers the true value with a probability of 95 %: for new labelled images and new test images, as far "
            "as the scope at the end of the verdicts reaches. It is not adjusted for the number of pairs.",
        ),
        ("p (Holm)", "The p-value of the difference, corrected by Holm's method for the number of pairs."),
        ("better, worse", "The corrected p-value is below 0.05."),
        (
            "tie",
            f"Neither better nor worse, and the 95 % interval is within {within}: equally good in practice.",
        ),
        ("undecided", "The data do not show which is better. This is not a tie."),
    )
    if any(comparison.robustness is not None for comparison in comparisons):
        terms = (*terms, ("severity", SEVERITY))
    if all(comparison.zero_shot is None for comparison in comparisons):
        return terms
    return (
        *terms,
        ("source", "The accuracy on the source test set."),
        ("gain", "The target accuracy minus the base's target accuracy without adaptation (zero-shot)."),
        ("retention", "The source accuracy minus the base's source accuracy. Below 0, the model has forgotten."),
    )


def escape_markdown(value: object) -> object:
    """Escape a value so that Markdown shows it literally, on one line and in tables; `Markup` is not changed.

    Characters without a special meaning in Markdown are not escaped, so that the file is readable as text.
    """
    return value if isinstance(value, Markup) else _escaped(str(value))


@functools.lru_cache(maxsize=1 << 14)  # many cells of a table of pairs are equal
def _escaped(value: str) -> str:
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in value).split())
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    # Some Markdown dialects turn bare web and mail addresses into links.
    text = re.sub(r":(?=//)", r"\\:", text)
    text = re.sub(r"(?i)\b(www)\.", r"\1\\.", text).replace("@", "&#64;")
    # Headings, quotations, lists and rules at the beginning of a line.
    text = re.sub(r"^(#|>|[-+=](?=[-+= ]|$))", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])(?= |$)", r"\1\\\2", text)


def _template(name: str, autoescape: bool, finalize: Callable[[object], object] | None = None) -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=autoescape,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
