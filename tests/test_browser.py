"""Test `mlflow ui` and the report in a real Chromium.

To take the screenshots of the documentation, run an experiment of the default size:
`ADAPTKIT_SCREENSHOTS=docs/images pytest -m slow -n 0 tests/test_browser.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import pytest
from support import processes
from support.experiments import FOREIGN, TINY, Tracked
from support.servers import Page, mlflow_ui

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect
    from playwright.sync_api import Page as Tab

pytestmark = pytest.mark.slow

SCREENSHOTS = os.environ.get("ADAPTKIT_SCREENSHOTS")
KEPT = Path(SCREENSHOTS).resolve() if SCREENSHOTS else None

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

NAMES = ["full seed=0", "head seed=0", "lora rank=4 seed=0"]

#: state in which MLflow's assistant is closed; it covers the page at the first visit
NO_ASSISTANT = """
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
"""

EVIL = "<img src=x onerror=alert(1)>"


def adaptkit(folder: Path, cache: Path, *arguments: str) -> str:
    """Run the command line in a folder, in its own process; return its standard output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    done = processes.run(*arguments, folder=folder, environment=environment | {"ADAPTKIT_CACHE": str(cache)})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def three(browser: Browser, shared: Path, tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Tracked:
    """Run three strategies with two seeds; for screenshots, with five seeds at the default size."""
    folder = tmp_path_factory.mktemp("three")
    shutil.copy(empty_store, folder / "mlflow.db")
    size = ["--seeds", "0-4"] if KEPT else ["--seeds", "0,1", *TINY]
    arguments = ["-s", "full", "-s", "head", "-s", "lora", "-o", "lora.rank=4", *size, "--json"]
    return Tracked(folder, json.loads(adaptkit(folder, shared / "cache", "run", *arguments)))


@pytest.fixture(scope="module")
def page(three: Tracked) -> Iterator[Page]:
    """Serve the store of the three strategies with `mlflow ui`."""
    with mlflow_ui(three.folder) as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a headless Chromium."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'"
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """Open a tab in a new window."""
    context = browser.new_context(viewport={"width": 1400, "height": 800})
    context.set_default_timeout(60_000)
    context.add_init_script(NO_ASSISTANT)
    yield context.new_page()
    context.close()


def keep(tab: Tab, name: str) -> None:
    """Save a screenshot of the tab if screenshots are requested."""
    if KEPT:
        tab.screenshot(path=KEPT / f"{name}.png")


def at(page: Page, url: str) -> str:
    """Return a link that adaptkit printed, with the port of this server."""
    assert url.startswith("http://127.0.0.1:5000/#/experiments/")
    return url.replace("http://127.0.0.1:5000", page.address)


def outcome(three: Tracked, name: str) -> dict[str, Any]:
    """Return the record of a run in the `--json` output."""
    (run,) = (run for run in three.outcome["runs"] if f"{run['label']} seed={run['seed']}" == name)
    record: dict[str, Any] = run
    return record


def plotted(tab: Tab, within: str = "body") -> dict[str, list[float]]:
    """Return the lines of a chart: run -> values."""
    plot = tab.locator(f"{within} .js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    lines = plot.evaluate("plot => plot.data.map(line => [line.name, line.y])")
    return {name: values for name, values in lines if values}


def test_link_shows_accuracy_by_epoch(three: Tracked, page: Page, tab: Tab) -> None:
    tab.goto(at(page, three.outcome["ui_url"]))
    for name in NAMES:
        tab.get_by_role("link", name=name, exact=True).wait_for()
    assert tab.get_by_role("link", name="base small_cnn mnist5k").count() == 0
    keep(tab, "mlflow-charts")
    card = "[data-testid='experiment-view-compare-runs-card']:has-text('shifted/accuracy')"
    tab.get_by_placeholder("Search metric charts").fill("^shifted/accuracy$")
    tab.locator(f"{card} .js-plotly-plot .scatterlayer .trace").first.wait_for()
    lines = plotted(tab, card)
    assert set(lines) <= {f"{run['label']} seed={run['seed']}" for run in three.outcome["runs"]}
    for name in NAMES:
        assert lines[name] == [epoch["shifted_accuracy"] for epoch in outcome(three, name)["epochs"]]


def test_experiment_page_lists_runs_and_metrics(three: Tracked, page: Page, tab: Tab) -> None:
    columns = {
        "params.`strategy`": "strategy",
        "metrics.`final/shifted_accuracy`": "final/shifted_accuracy",
        "metrics.`final/test_accuracy`": "final/test_accuracy",
        "metrics.`params/trainable`": "params/trainable",
    }
    tab.goto(at(page, three.outcome["ui_url"]).replace("compareRunsMode=CHART", "compareRunsMode=TABLE"))
    tab.get_by_role("link", name=NAMES[0], exact=True).wait_for()  # the list of columns depends on the loaded runs
    tab.get_by_role("button", name="Columns").click()
    for column in [
        *columns.values(),
        "Dataset",
        "Source",
        "Models",
    ]:  # the last three are shown by default
        tab.get_by_placeholder("Search columns").fill(column)
        node = tab.locator("[class*='tree-treenode']").filter(has=tab.get_by_text(column, exact=True))
        node.locator("[class*='tree-checkbox']").first.click()
    tab.keyboard.press("Escape")
    tab.mouse.move(0, 0)
    for name in NAMES:
        run = outcome(three, name)
        link = tab.get_by_role("link", name=name, exact=True)
        row = link.locator("xpath=ancestor::*[@row-index]").get_attribute("row-index")
        shown = {key: tab.locator(f"[row-index='{row}'] [col-id='{key}']").inner_text() for key in columns}
        assert shown["params.`strategy`"] == run["strategy"]
        for key in ("final/shifted_accuracy", "final/test_accuracy", "params/trainable"):
            assert float(shown[f"metrics.`{key}`"]) == run["metrics"][key]
    keep(tab, "mlflow-runs")


@pytest.fixture
def comparing(page: Page, tab: Tab) -> Tab:
    """Open MLflow's comparison of three runs, in a window wide enough for its list of files."""
    runs = [page.runs()[name]["info"] for name in NAMES]
    ids, experiments = [run["run_id"] for run in runs], [runs[0]["experiment_id"]]
    tab.set_viewport_size({"width": 2200, "height": 1200})
    tab.goto(
        f"{page.address}/#/compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps(experiments))}"
    )
    tab.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for()
    return tab


def test_compare_page_shows_parameters(comparing: Tab) -> None:
    def row(name: str) -> list[str]:
        return (
            comparing.locator("tr").filter(has=comparing.get_by_text(name, exact=True)).locator("td").all_inner_texts()
        )

    comparing.locator("th").get_by_text("strategy", exact=True).wait_for()
    assert row("strategy") == ["full", "head", "lora"]
    assert row("strategy.rank") == ["", "", "4"]
    assert row("lr") == ["0.0015", "0.01", "0.005"]
    assert row("dataset") == ["mnist5k"] * 3
    if KEPT:
        comparing.set_viewport_size({"width": 1280, "height": 1000})
        for section in ("Visualizations", "Run details"):
            comparing.get_by_text(section, exact=True).click()
        comparing.get_by_text("Show diff only").first.click()
        comparing.get_by_text("base.epochs", exact=True).wait_for(state="hidden")
        keep(comparing, "mlflow-compare")


def test_compare_page_shows_confusion_matrices(comparing: Tab) -> None:
    open_artifact(comparing, "confusion_shifted.png")
    pictures = comparing.locator("img[alt='confusion_shifted.png']:visible")
    pictures.nth(2).wait_for()
    assert pictures.count() == 3
    boxes = [picture.bounding_box() for picture in pictures.all()]
    assert side_by_side(boxes)
    assert len({picture.get_attribute("src") for picture in pictures.all()}) == 3
    assert all(picture.evaluate("picture => picture.naturalWidth > 0") for picture in pictures.all())
    comparing.set_viewport_size({"width": 2200, "height": 750})
    pictures.nth(2).scroll_into_view_if_needed()
    keep(comparing, "mlflow-confusion")


def test_compare_page_shows_classification_reports(comparing: Tab, three: Tracked) -> None:
    open_artifact(comparing, "classification_report_shifted.txt")
    reports = comparing.locator("pre:visible").filter(has_text="macro avg")
    reports.nth(2).wait_for()
    assert reports.count() == 3
    assert side_by_side([report.bounding_box() for report in reports.all()])
    for name, text in zip(NAMES, reports.all_inner_texts(), strict=True):
        (line,) = (line for line in text.splitlines() if "accuracy" in line)
        assert float(line.split()[1]) == round(outcome(three, name)["metrics"]["final/shifted_accuracy"], 4)


SCROLL = """row => {
    for (let box = row.parentElement; box; box = box.parentElement)
        if (box.scrollHeight > box.clientHeight + 50) box.scrollTop += 450
}"""


def test_compare_page_links_to_metric_chart(comparing: Tab, three: Tracked) -> None:
    # The list of metrics renders only the rows in view.
    comparing.get_by_text("final/gain", exact=True).first.evaluate(SCROLL)
    comparing.get_by_text("shifted/accuracy", exact=True).first.evaluate("link => link.click()")
    comparing.locator(".js-plotly-plot .scatterlayer .trace").nth(2).wait_for()
    assert plotted(comparing) == {
        name: [epoch["shifted_accuracy"] for epoch in outcome(three, name)["epochs"]] for name in NAMES
    }
    comparing.set_viewport_size({"width": 1280, "height": 800})
    keep(comparing, "mlflow-metric")


def open_artifact(tab: Tab, name: str) -> None:
    """Select an artifact of the compared runs."""
    tab.get_by_text("Select a file to preview").nth(2).wait_for()
    tab.get_by_text(name, exact=True).click()


def side_by_side(boxes: list[FloatRect | None]) -> bool:
    """Return whether the boxes are in one row, from left to right, without overlap."""
    wide = [box for box in boxes if box is not None and box["width"] > 100]
    return len(wide) == len(boxes) and all(
        left["x"] + left["width"] <= right["x"] and left["y"] == right["y"] for left, right in itertools.pairwise(wide)
    )


def test_report_opens_in_mlflow(three: Tracked, page: Page, tab: Tab, shared: Path) -> None:
    printed = adaptkit(three.folder, shared / "cache", "compare", "--json")
    sentence = json.loads(printed)["sentences"][0]
    (run,) = (run["info"] for name, run in page.runs().items() if name.startswith("compare "))
    tab.goto(f"{page.address}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}/artifacts/report.html")
    report = tab.frame_locator("iframe")
    report.get_by_text(sentence).first.wait_for()
    report.locator("img").first.wait_for()
    assert report.locator("img").first.evaluate("picture => picture.naturalWidth > 0")


@pytest.fixture(scope="module")
def report(three: Tracked, shared: Path) -> Path:
    """Write a report of runs, some of which have HTML as the name of their arm.

    adaptkit refuses such names, but other programs can write them to the store.
    """
    from mlflow import MlflowClient

    folder = shared / "report"
    folder.mkdir()
    client = MlflowClient(tracking_uri=f"sqlite:///{shutil.copy(three.folder / 'mlflow.db', folder)}")
    for run in three.outcome["runs"]:
        if run["strategy"] == "head" and not KEPT:
            client.set_tag(run["run_id"], "adaptkit.arm", EVIL)
    adaptkit(folder, shared / "cache", "compare", "--output", "report", "--no-track")
    return folder / "report" / "report.html"


@pytest.mark.parametrize(
    ("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")], ids=["light", "dark", "phone"]
)
def test_report_opens_from_disk(browser: Browser, report: Path, width: int, scheme: Literal["light", "dark"]) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    tab = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("dialog", lambda dialog: messages.append(dialog.message))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(report.as_uri())
    pictures = tab.locator("img")
    assert pictures.count() >= 5
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        assert picture.is_visible()
        assert picture.evaluate("picture => picture.complete && picture.naturalWidth > 0")
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than the window"
    if KEPT:
        name = "report-phone" if width < 600 else "report-dark" if scheme == "dark" else "report"
        tab.evaluate("window.scrollTo(0, 0)")
        keep(tab, name)
        if name == "report":
            pictures.first.evaluate("picture => picture.scrollIntoView()")
            keep(tab, "report-figures")
    else:
        assert tab.get_by_text(EVIL).first.is_visible()
        assert tab.locator("img[src='x']").count() == 0
    context.close()
