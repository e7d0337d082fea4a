"""The page in a real browser: nothing loaded, nothing logged, readable on a phone, in light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime_bench.report.combine import combine
from runtime_bench.report.document import make_document
from runtime_bench.report.html import html
from runtime_bench.report.rows import metric_rows
from tests.runtime_bench import synthetic_run
from tests.runtime_bench.report.report_pages import HOSTILE, hostile_facts
from tests.runtime_bench.report.report_pages import run as a_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# WCAG 2.2, 1.4.3: contrast of every text against what is painted behind it.
CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4); };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll('main *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const style = getComputedStyle(e);
    if (!own || ['title', 'desc'].includes(e.tagName) || e.getClientRects().length === 0) continue;
    const front = light(parse(e.tagName === 'text' ? style.fill : style.color));
    const back = light(behind(e));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) low.push(`${e.tagName} ${e.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return low;
}"""
# Boxes of text in a drawing that reach out of it, or lie on each other.
LABELS = """() => {
  const wrong = [];
  for (const svg of document.querySelectorAll('svg[role=img]')) {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([words, box], index) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1) wrong.push(`${words} reaches out`);
      for (const [other, b] of boxes.slice(index + 1))
        if (box.left < b.right - 1 && b.left < box.right - 1 && box.top < b.bottom - 4 && b.top < box.bottom - 4)
          wrong.push(`${words} on ${other}`);
    });
  }
  return wrong;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as api:
        engine = api.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield engine
        engine.close()


DOCUMENT = make_document(synthetic_run.facts(), synthetic_run.samples())
PAGES = {
    "run": lambda: html(DOCUMENT),
    "partial": lambda: html(
        make_document(synthetic_run.facts(status="partial", reason="x", emulated=True), synthetic_run.samples(2))
    ),
    "nothing": lambda: html(make_document(synthetic_run.facts(status="not measured", reason="x"), [])),
    "hostile": lambda: html(make_document(hostile_facts(HOSTILE * 4), synthetic_run.samples(2))),
    "long name": lambda: html(make_document(hostile_facts("x" * 300), synthetic_run.samples(2))),
    "combined": lambda: combine(
        [
            a_run("Raspberry Pi 5"),
            a_run("A phone with a name that is long indeed", 95),
            a_run("laptop", engine={"name": "onnxruntime", "version": "1.32"}),
            a_run("emulator", emulated=True),
        ]
    )["html"],
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_reads_well(name: str, browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(PAGES[name](), encoding="utf-8")
    page = browser.new_page()
    logged: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("dialog", lambda dialog: (logged.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    for width in (360, 820, 1070, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"scrolls sideways at {width}"
        assert page.evaluate(LABELS) == [], width
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate(CONTRAST) == [], scheme
    assert len(backgrounds) == 2
    assert logged == []
    assert requests == [path.as_uri()]
    page.close()


def test_the_policy_lets_nothing_run(browser: Any, tmp_path: Path) -> None:
    """A script that somehow got in would not run: the policy is tried with one put there on purpose."""
    path = tmp_path / "report.html"
    path.write_text(html(DOCUMENT).replace("</main>", "<script>document.title = 'ran'</script></main>"), "utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.title() == DOCUMENT["title"]
    page.close()


def test_the_page_shows_the_figures_of_the_document(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(DOCUMENT), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    table = page.get_by_role("table").nth(1)
    shown = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in table.locator("tbody tr:not(.group)").all()
    }
    rows = metric_rows(DOCUMENT)
    assert len(rows) == len(shown)
    for row in rows:
        pruned, baseline, ratio, _, said = shown[row.label]
        assert (pruned, baseline, ratio) == (row.pruned, row.baseline, row.ratio)
        assert said.endswith(row.verdict)
    assert page.locator("th[scope=col]").count() > 10
    page.close()


def test_plots_have_a_mark_for_every_figure(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(DOCUMENT), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    figures = page.locator("figure")
    assert figures.count() == 4
    depths, prompts = len(synthetic_run.DEPTHS), len(synthetic_run.PROMPTS)
    assert figures.nth(0).locator(".mark").count() == 2 * depths
    assert figures.nth(0).locator(".whisker").count() == 3 * 2 * depths
    bars = figures.nth(1).locator(".bar")
    assert bars.count() == 2 * prompts
    # The longest bar is the slowest prompt, and lengths are in the proportion of the figures.
    widths = [bars.nth(index).bounding_box()["width"] for index in range(bars.count())]
    values = [
        metric[side]["median"]
        for metric in DOCUMENT["metrics"]
        if metric["group"] == "ttft"
        for side in ("pruned", "baseline")
    ]
    scale = max(widths) / max(values)
    assert widths == pytest.approx([value * scale for value in values], rel=0.05, abs=2)
    assert figures.nth(2).locator("polyline").count() == 2
    assert figures.nth(3).locator(".mark").count() == 2
    # Not by colour alone: one side's marks are circles, the other's squares.
    assert page.locator("circle.mark.baseline").count() == 0
    assert page.locator("rect.mark.pruned").count() == 0
    page.close()


def test_folded_rows_are_still_a_table(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(DOCUMENT), encoding="utf-8")
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto(path.as_uri())
    assert page.get_by_role("table").count() == 3
    assert page.get_by_role("rowheader", name="Peak RSS").count() == 1
    page.close()


def test_printed_on_white(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(DOCUMENT), encoding="utf-8")
    page = browser.new_page()
    page.emulate_media(media="print", color_scheme="dark")
    page.goto(path.as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRAST) == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
