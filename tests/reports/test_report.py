"""The report: numbers in HTML, Markdown and JSON, escaping of names, files on disk."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from adaptkit.comparison.findings import Comparison, Comparisons, LeftOut
from adaptkit.comparison.judge import judge_runs
from adaptkit.comparison.records import COSTS, ComparedRun, Curve, Estimate
from adaptkit.errors import BadInput
from adaptkit.events import Predictions
from adaptkit.reports.figures.style import Drawing
from adaptkit.reports.report import escape_markdown, write_report

EVIL = "<img src=x onerror=alert(1)>"
ODD = "a|b `c` [d](javascript:x) *e* _f_ https://evil.example www.evil.example \\ \n# g"
DASH = "\N{EN DASH}"
IMAGES, CLASSES, BASE, ZERO_SHOT = 400, 4, 0.957, 0.631

#: name -> target accuracy, its spread over seeds, source accuracy, trainable parameters, seconds
ARMS = {
    "full": (0.885, 0.008, 0.941, 421_642, 3.0),
    "head": (0.761, 0.010, 0.922, 1_290, 1.1),
    "lora": (0.837, 0.026, 0.919, 27_216, 1.3),
    "scratch": (0.798, 0.019, 0.858, 421_642, 2.9),
}


def compared_run(arm: str, figures: tuple[float, float, float, int, float], seed: int, data: str) -> ComparedRun:
    accuracy, spread, clean, trainable, seconds = figures
    random = numpy.random.default_rng([seed, len(arm), int(1000 * accuracy)])
    truth = numpy.arange(IMAGES) % CLASSES

    def guess(accuracy: float) -> Predictions:
        right = random.permutation(IMAGES) < round(IMAGES * accuracy)
        predicted = numpy.where(right, truth, (truth + random.integers(1, CLASSES, IMAGES)) % CLASSES)
        return Predictions(numpy.arange(IMAGES), truth, predicted, numpy.full(IMAGES, 0.9))

    found = {"shifted": guess(accuracy + spread * random.normal()), "clean": guess(clean + spread * random.normal())}
    shifted, kept = found["shifted"].accuracy, found["clean"].accuracy
    return ComparedRun(
        name=f"{arm} seed={seed}",
        run_id=hashlib.md5(f"{arm} {seed} {data}".encode()).hexdigest(),
        strategy=arm.split()[0],
        arm=arm,
        options={},
        settings={"dataset": "mnist5k", "shift": "rotate=45,noise=0.3", "epochs": "10", "backbone": "small-cnn"},
        seed=seed,
        status="finished",
        started=seed,
        metrics={
            "final/shifted_accuracy": shifted,
            "final/test_accuracy": kept,
            "final/shifted_macro_f1": shifted - 0.002,
            "final/zero_shot_accuracy": ZERO_SHOT,
            "final/base_test_accuracy": BASE,
            "final/gain": shifted - ZERO_SHOT,
            "final/retention": kept - BASE,
            "params/total": 448_858,
            "params/trainable": trainable,
            "params/trainable_fraction": trainable / 448_858,
            "size/adapter_bytes": 4 * trainable + 900,
            "memory/peak_bytes": 16 * trainable + 9_000_000,
            "time/train_seconds": seconds + 0.1 * random.normal(),
            "time/inference_ratio": 1 + 0.01 * random.normal(),
        },
        tags={
            "adaptkit.data_fingerprint": data,
            "adaptkit.base_fingerprint": "b" * 64,
            "adaptkit.pair_id": f"{data[:12]}-{seed}",
        },
        classes=tuple("0123"),
        predictions=found,
        curve=Curve(epoch=(1, 2, 3), seconds=(1.0, 2.0, 3.0), clean=(0.9, kept, kept), shifted=(0.6, 0.7, shifted)),
    )


def findings_of(names: Sequence[str] = tuple(ARMS), seeds: int = 5, data: Sequence[str] = ("d" * 64,)) -> Comparisons:
    figures = list(ARMS.values())
    return judge_runs(
        [
            compared_run(name, figures[index % len(figures)], seed, fingerprint)
            for fingerprint in data
            for index, name in enumerate(names)
            for seed in range(seeds)
        ]
    )


def with_changes(findings: Comparisons, **changes: object) -> Comparisons:
    first = dataclasses.replace(findings.comparisons[0], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(findings, comparisons=(first, *findings.comparisons[1:]))


class Page(HTMLParser):
    """Parse a page as a browser does: tags with attributes, text, tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag in ("meta", "link", "img", "br"):
            return
        self.inside.append(tag)
        if tag == "table":
            self.rows: list[list[str]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data: str) -> None:
        if "style" in self.inside:
            return
        self.text.append(data)
        if self.inside and self.inside[-1] == "caption":
            self.caption = data
        elif "td" in self.inside or "th" in self.inside:
            self.rows[-1][-1] += data.strip("\n")


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def markdown_tables(text: str) -> Iterator[list[list[str]]]:
    """Yield the tables of a Markdown text as rows of cell texts."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        if token.type == "table_open":
            rows = []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 3:
            rows[-1].append("".join(child.content for child in token.children or []))
        elif token.type == "table_close":
            yield rows
            rows = []


@pytest.fixture(scope="module")
def findings() -> Comparisons:
    return findings_of()


@pytest.fixture(scope="module")
def folder(findings: Comparisons, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new" / "report"
    write_report(folder, findings)
    return folder


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one small figure per comparison: the real ones take seconds and have tests of their own."""

    def draw(comparison: Comparison, strategies: Iterable[str] = ()) -> list[Drawing]:
        return [Drawing(stem="small", title="A title", alt="What it shows", figure=Figure(figsize=(1, 1)))]

    monkeypatch.setattr("adaptkit.reports.report.draw_comparison", draw)


def percent(value: Estimate, sign: str = "") -> str:
    assert value.half_width is not None
    return f"{100 * value.mean:{sign}.1f} ± {100 * value.half_width:.1f}"


def expected_tables(comparison: Comparison) -> dict[str, list[list[str]]]:
    """Return the expected rows of all tables, formatted from the records independently of the report."""
    arms, pairs = comparison.arms, comparison.pairs
    assert comparison.constant is not None
    assert all(pair.p is not None and pair.low is not None for pair in pairs)
    megabytes = {arm.name: arm.adapter_bytes.mean >= 1e6 for arm in arms}
    costs = list(COSTS)
    return {
        "Accuracy": [
            *(
                [
                    arm.name,
                    percent(arm.shifted),
                    percent(arm.gain, "+"),
                    percent(arm.clean),
                    percent(arm.retention, "+"),
                    percent(arm.macro_f1),
                    "5",
                ]
                for arm in arms
            ),
            ["zero-shot", "63.1", DASH, "95.7", DASH, DASH, DASH],
            [
                *("constant answer", f"{100 * comparison.constant.score:.1f}", DASH, DASH, DASH),
                *(f"{100 * comparison.constant_scores['final/shifted_macro_f1']:.1f}", DASH),
            ],
        ],
        "Costs": [
            [
                arm.name,
                f"{arm.trainable:,}",
                f"{100 * arm.trainable / 448_858:.2f}",
                f"{arm.adapter_bytes.mean / 1e6:.1f} MB"
                if megabytes[arm.name]
                else f"{arm.adapter_bytes.mean / 1e3:.1f} KB",
                f"{arm.train_seconds.mean:.1f} ± {arm.train_seconds.half_width:.1f}",
                f"{arm.train_seconds.mean / 10:.2f} ± {(arm.train_seconds.half_width or 0) / 10:.2f}",
                f"{arm.peak_bytes.mean / 1e6:.1f} MB",
                f"{arm.inference_ratio.mean:.2f} ± {arm.inference_ratio.half_width:.2f}",
            ]
            for arm in arms
        ],
        "Pareto fronts: the metric against each cost": [
            [
                arm.name,
                *(
                    f"dominated by {' and '.join(arm.dominated_by[cost])}" if arm.dominated_by[cost] else "on the front"
                    for cost in costs
                ),
            ]
            for arm in arms
        ],
        "Pairs": [
            [
                f"{pair.a} vs {pair.b}",
                pair.verdict,
                f"{100 * (pair.difference or 0):+.1f} [{100 * (pair.low or 0):+.1f}, {100 * (pair.high or 0):+.1f}]",
                *("< 0.001" if p is not None and p < 0.001 else f"{p:.3f}" for p in (pair.p, pair.p_unadjusted)),
                "5",
                f"{100 * (pair.disagreement or 0):.1f}",
                f"{100 * (pair.retention_difference or 0):+.1f}",
                next(
                    (
                        f"about {count:,} {name}"
                        for count, name in ((pair.seeds_needed, "seeds"), (pair.test_images_needed, "test images"))
                        if count is not None
                    ),
                    DASH,
                ),
            ]
            for pair in pairs
        ],
        "F1 of each class (%)": [
            [name, *(f"{100 * arm.class_f1[index]:.1f}" for arm in arms)]
            for index, name in enumerate(comparison.classes)
        ],
        "Runs compared (20)": [
            [arm.name, str(run.seed), f"{100 * run.metrics['final/shifted_accuracy']:.1f}", run.name, run.run_id or ""]
            for arm in arms
            for run in arm.runs
        ],
    }


def test_tables_match_the_records(folder: Path, findings: Comparisons) -> None:
    expected = expected_tables(findings.comparisons[0])
    assert {"better", "undecided"} <= {row[1] for row in expected["Pairs"]}  # worth a test
    tables = {title: rows[1:] for title, rows in page_of(folder).tables.items()}
    assert tables == expected
    in_markdown = [rows[1:] for rows in markdown_tables((folder / "report.md").read_text(encoding="utf-8"))]
    settings = next(rows for rows in in_markdown if rows[0][0] == "metric")
    assert [rows for rows in in_markdown if rows is not settings] == [
        expected[title]
        for title in (
            *("Accuracy", "Pairs", "Costs", "Pareto fronts: the metric against each cost"),
            *("F1 of each class (%)", "Runs compared (20)"),
        )
    ]
    assert settings[:3] == [
        ["metric", "target accuracy (final/shifted_accuracy)"],
        ["margin of a tie", "±1.0 points"],
        ["target test images", "400"],
    ]
    assert settings[-2:] == [["base fingerprint", "b" * 64], ["data fingerprint", "d" * 64]]


def test_sentences_come_first(folder: Path, findings: Comparisons) -> None:
    text = "".join(page_of(folder).text)
    places = [text.index(sentence) for sentence in findings.comparisons[0].sentences]
    assert places == sorted(places)
    assert places[-1] < text.index("Retention (points)")


def test_json_matches_the_findings(folder: Path, findings: Comparisons) -> None:
    text = (folder / "comparison.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(findings.to_dict(), allow_nan=False))
    assert text.endswith("}\n")
    assert text.startswith('{\n  "metric": "final/shifted_accuracy"')


@pytest.mark.usefixtures("one_figure")
def test_nan_is_null_in_json_and_a_dash_in_tables(findings: Comparisons, tmp_path: Path) -> None:
    lost = Estimate(float("nan"), 5)
    arms = tuple(dataclasses.replace(arm, inference_ratio=lost) for arm in findings.comparisons[0].arms)
    write_report(tmp_path, with_changes(findings, arms=arms))
    told = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert [arm["inference_ratio"]["mean"] for arm in told["arms"]] == [None] * 4
    assert [row[7] for row in page_of(tmp_path).tables["Costs"][1:]] == [DASH] * 4


def test_page_needs_no_other_files(folder: Path) -> None:
    page = page_of(folder)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(names)
    addresses = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "srcset")]
    assert [address[:40] for address in addresses if not address.startswith(("data:", "#"))] == []
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(" not in text
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert next(found for tag, found in page.tags if tag == "html") == {"lang": "en"}


def test_figures_are_in_the_page_and_in_files(folder: Path) -> None:
    pictures = sorted(path.stem for path in folder.glob("*.png"))
    images = [found for tag, found in page_of(folder).tags if tag == "img"]
    inline = [base64.b64decode(found["src"].removeprefix("data:image/png;base64,")) for found in images]
    assert len(pictures) >= 4
    assert sorted(inline) == sorted((folder / f"{stem}.png").read_bytes() for stem in pictures)
    assert all(found["alt"] for found in images)
    assert pictures == sorted(path.stem for path in folder.glob("*.svg"))
    linked = re.findall(r"^!\[.+\]\((.+)\)$", (folder / "report.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(linked) == [f"{stem}.png" for stem in pictures]


def test_heading_levels_and_table_scopes(folder: Path) -> None:
    page = page_of(folder)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert {found.get("scope") for tag, found in page.tags if tag == "th"} == {"col", "row"}


@pytest.mark.usefixtures("one_figure")
def test_odd_names_are_escaped(tmp_path: Path) -> None:
    findings = findings_of([EVIL, ODD, "full", "head"], seeds=2)
    left_out = (LeftOut(name=EVIL, run_id=None, status="failed", reason=f"{ODD}\n{EVIL}"),)
    findings = with_changes(findings, left_out=left_out, setup={EVIL: ODD}, classes=(EVIL, ODD, "2", "3"))
    findings = dataclasses.replace(findings, notes=(f"about {EVIL}",), left_out=left_out)
    write_report(tmp_path, findings)
    page = page_of(tmp_path)
    assert [tag for tag, found in page.tags if "onerror" in found or found.get("src") == "x"] == []
    assert EVIL in {row[0] for row in page.tables["Accuracy"]}
    assert ODD in {row[0] for row in page.tables["Accuracy"]}

    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    tables = list(markdown_tables(text))
    assert len(tables) == 9
    for rows in tables:
        assert len({len(row) for row in rows}) == 1
    # Parsers drop extra cells silently: count the bars.
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        bars = [len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) for line in block.splitlines()]
        assert len(set(bars)) == 1
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inner = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inner} <= {"text", "text_special", "image", "em_open", "em_close"} | {
        *("strong_open", "strong_close", "softbreak", "link_open", "link_close")
    }
    assert [child.attrs["href"] for child in inner if child.type == "link_open"] == ["comparison.json"]
    html = {line for token in tokens if token.type == "html_block" for line in token.content.split("\n")}
    assert all(re.fullmatch(r"(</?details>|<summary>[\w (%)]+</summary>)?", line) for line in html)
    assert EVIL in {row[0] for row in tables[0]}
    assert "# g" in " ".join(row[0] for row in tables[0])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lora rank=4", "lora rank=4"),
        ("a|b", "a\\|b"),
        ("<b> </b> <!-- <?x p < 0.001", "&lt;b> &lt;/b> &lt;!-- &lt;?x p < 0.001"),
        ("&lt; &#60; R&D", "&amp;lt; &amp;#60; R&D"),
        ("![x](y) [z]", "!\\[x\\](y) \\[z\\]"),
        ("`x` *y* ~a~ $b$", "\\`x\\` \\*y\\* \\~a\\~ \\$b\\$"),
        ("small_cnn _z_", "small_cnn \\_z\\_"),
        ("back\\slash", "back\\\\slash"),
        ("two\nlines\t\x1b[0m", "two lines \\[0m"),
        ("# heading", "\\# heading"),
        ("> quotation", "\\> quotation"),
        ("- item", "\\- item"),
        ("---", "\\---"),
        ("-1.6", "-1.6"),
        ("1. item", "1\\. item"),
        ("1.5", "1.5"),
        ("https://x.org", "https\\://x.org"),
        ("www.x.org", "www\\.x.org"),
        ("me@x.org", "me&#64;x.org"),
    ],
)
def test_escape_markdown(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


@pytest.mark.usefixtures("one_figure")
def test_several_comparisons(tmp_path: Path) -> None:
    findings = findings_of(["full", "head"], seeds=2, data=("d" * 64, "e" * 64))
    written = write_report(tmp_path, findings)
    stems = {path.stem for path in written if path.suffix == ".png"}
    assert {stem for stem in stems if stem.endswith("_2")} == {f"{stem}_2" for stem in stems if not stem.endswith("_2")}
    page = page_of(tmp_path)
    assert [found["href"] for tag, found in page.tags if tag == "a"] == ["#comparison-1", "#comparison-2"]
    assert {"comparison-1", "comparison-2"} <= {found.get("id") for _, found in page.tags}
    for comparison in findings.comparisons:
        assert comparison.reason
        reason = comparison.reason[:1].upper() + comparison.reason[1:]
        assert reason in page.text
        assert reason in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("one_figure")
def test_one_run_is_about_trained_models(tmp_path: Path) -> None:
    findings = findings_of(["full", "head"], seeds=1)
    write_report(tmp_path, findings)
    page = page_of(tmp_path)
    full = findings.comparisons[0].arms[0]
    assert full.shifted.half_width is not None
    assert page.tables["Accuracy"][1][1] == f"{100 * full.shifted.mean:.1f} ± {100 * full.shifted.half_width:.1f}"
    assert "only about the two trained models" in "".join(page.text)


@pytest.mark.usefixtures("one_figure")
def test_one_strategy_has_no_pairs(tmp_path: Path) -> None:
    alone = findings_of(["full"], seeds=1)
    assert repr(alone) == (
        "Comparisons(comparisons=(Comparison(metric='final/shifted_accuracy', strategies=1, runs=1),))"
    )
    write_report(tmp_path, alone)
    text = (tmp_path / "report.md").read_text()
    assert "## Pairs" not in text and "## Costs" in text
    assert " · 1 run · " in text


@pytest.mark.slow
def test_incomparable_times_are_not_ranked(findings: Comparisons, tmp_path: Path) -> None:
    write_report(tmp_path, with_changes(findings, timings_comparable=False))
    page = page_of(tmp_path)
    rows = page.tables["Pareto fronts: the metric against each cost"]
    assert {row[rows[0].index("Training time")] for row in rows[1:]} == {"not ranked"}
    assert "Training times are not ranked" in "".join(page.text)


@pytest.mark.usefixtures("one_figure")
def test_unit_of_another_metric(tmp_path: Path) -> None:
    runs = [run for arm in findings_of().comparisons[0].arms for run in arm.runs]
    findings = judge_runs(runs, metrics=["time/train_seconds"])
    write_report(tmp_path, findings)
    page = page_of(tmp_path)
    comparison = findings.comparisons[0]
    quickest, pair = comparison.arms[0], comparison.pairs[0]
    assert page.tables["Accuracy"][0][1] == "Training time (s)"
    assert page.tables["Accuracy"][1][1] == f"{quickest.score.mean:.3f} ± {quickest.score.half_width:.3f}"
    assert page.tables["Pairs"][0][2] == "Difference (s) [95 % interval]"
    assert page.tables["Pairs"][1][2] == f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"


@pytest.mark.usefixtures("one_figure")
def test_numbers_that_would_decide(findings: Comparisons, tmp_path: Path) -> None:
    first, second, *rest = findings.comparisons[0].pairs
    changed = dataclasses.replace(first, verdict="undecided", labels_needed=5200, seeds_needed=None)
    other = dataclasses.replace(second, verdict="undecided", seeds_needed=None, test_images_needed=700)
    write_report(tmp_path, with_changes(findings, pairs=(changed, other, *rest)))
    rows = page_of(tmp_path).tables["Pairs"][1:]
    assert [row[1] for row in rows[:2]] == ["undecided", "undecided"]
    assert [row[-1] for row in rows[:2]] == ["about 5,200 labelled images", "about 700 test images"]


@pytest.mark.usefixtures("one_figure")
def test_runs_left_out(findings: Comparisons, tmp_path: Path) -> None:
    lost = LeftOut(name="lora seed=9", run_id="abc", status="killed", reason="ended by a signal")
    write_report(tmp_path, dataclasses.replace(with_changes(findings, left_out=(lost,)), left_out=(lost,)))
    tables = page_of(tmp_path).tables
    assert tables["Runs left out (1)"][1:] == [["lora seed=9", "killed", "ended by a signal", "abc"]]


@pytest.mark.usefixtures("one_figure")
def test_replace_an_earlier_report(findings: Comparisons, tmp_path: Path) -> None:
    written = write_report(tmp_path, findings_of(["full", "head"], seeds=2))
    earlier = {path: path.read_bytes() for path in written}
    again = write_report(tmp_path, findings)
    assert sorted(tmp_path.iterdir()) == sorted(again)
    assert all((tmp_path / name).read_bytes() != earlier[tmp_path / name] for name in ("report.html", "report.md"))
    assert len(json.loads((tmp_path / "comparison.json").read_text())["arms"]) == 4


@pytest.mark.slow
def test_report_is_reproducible(folder: Path, findings: Comparisons, tmp_path: Path) -> None:
    for path in write_report(tmp_path, findings):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("one_figure")
def test_failure_keeps_the_earlier_report(findings: Comparisons, tmp_path: Path) -> None:
    written = write_report(tmp_path, findings)
    earlier = {path: path.read_bytes() for path in written}
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(BadInput, match=r"^--output: .*report\.html must be a file, but it is a folder$"):
        write_report(tmp_path, findings_of(["full", "head"], seeds=2))
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert all(path.read_bytes() == earlier[path] for path in written if path.name != "report.html")


@pytest.mark.parametrize(
    ("place", "reason"),
    [("taken", "it is a file"), ("taken/below", "Not a directory"), ("x" * 300, "File name too long")],
)
def test_unwritable_folder(findings: Comparisons, tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(BadInput) as caught:
        write_report(tmp_path / place, findings)
    assert caught.value.problems == (f"--output: cannot write to {tmp_path / place}: {reason}",)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken").read_text() == "mine"
