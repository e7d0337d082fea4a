"""report.html parsed as a document: well formed, self-contained, and nothing of it comes from a name."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_bench.report.document import make_document
from runtime_bench.report.html import html
from runtime_bench.report.page import page as whole_page
from runtime_bench.report.svg import DARK, LIGHT, tick_labels, ticks
from tests.runtime_bench import synthetic_run
from tests.runtime_bench.report.report_pages import HOSTILE, VOID, hostile_facts, outline

ALLOWED_VOID = {"meta", "br"}


RUNS: dict[str, Any] = {
    "ten pairs": (synthetic_run.facts(), synthetic_run.samples()),
    "two pairs": (synthetic_run.facts(), synthetic_run.samples(2)),
    "one side": (synthetic_run.facts(), synthetic_run.samples(1)[:1]),
    "nothing": (synthetic_run.facts(status="not measured", reason="no device"), []),
    "bare": (
        synthetic_run.facts(
            prompts=(), depths=(), budgets=(), target=None, notes=(), device={}, engine={}, settings={}
        ),
        synthetic_run.samples(),
    ),
    "one depth": (synthetic_run.facts(depths=(512,)), synthetic_run.samples()),
    "hostile": (hostile_facts(HOSTILE), synthetic_run.samples()),
}


@pytest.mark.parametrize("name", RUNS)
def test_pages_are_well_formed_and_load_nothing(name: str) -> None:
    page = html(make_document(*RUNS[name]))
    found = outline(page)
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert tags & VOID <= ALLOWED_VOID
    attributes = {attribute for _, names in found.tags for attribute in names}
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "style", "srcset")}
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower()


def test_the_page_has_the_colours_of_the_pictures() -> None:
    style = whole_page("a", [])
    light, dark = (re.findall(r"--([a-z]+): (#[0-9a-f]{6})", part) for part in style.split("@media screen", 1))
    names = {"pruned": "blue", "baseline": "orange", "good": "green", "bad": "red"}
    for colours, palette in ((dict(light), LIGHT), (dict(dark), DARK)):
        assert {key: colours[key] for key in names} == {key: palette[name] for key, name in names.items()}
        for key in ("paper", "ink", "soft", "grid"):
            assert colours[key] == palette[key]


@pytest.mark.parametrize("name", [HOSTILE, "<script>x</script>", '"><img src=x>', "'", "|", "\n", "&amp;", "]]>"])
def test_hostile_names_change_nothing_but_the_words(name: str) -> None:
    plain = outline(html(make_document(hostile_facts("plain"), synthetic_run.samples())))
    page = outline(html(make_document(hostile_facts(name), synthetic_run.samples())))
    assert page.tags == plain.tags


def test_a_name_is_shown_as_it_is() -> None:
    page = outline(html(make_document(hostile_facts("<b> & 'c'"), synthetic_run.samples())))
    assert any("<b> & 'c'" in words for words in page.words)


def test_drawings_tell_their_figures_to_those_who_cannot_see_them() -> None:
    page = html(make_document(synthetic_run.facts(), synthetic_run.samples()))
    drawings = re.findall(r'<svg viewBox="[^"]*" role="img" aria-labelledby="(\S+) (\S+)">(.*?)</svg>', page, re.DOTALL)
    assert len(drawings) == 4
    for title, description, inside in drawings:
        assert re.search(rf'<title id="{title}">[^<]+</title>', inside)
        text = re.search(rf'<desc id="{description}">([^<]+)</desc>', inside)
        assert text is not None
        assert "pruned" in text.group(1)


def test_marks_of_a_run_that_is_not_to_be_ranked_come_first() -> None:
    page = html(make_document(synthetic_run.facts(unlike=("types differ",), emulated=True), synthetic_run.samples()))
    assert page.index("EMULATED, UNLIKE PAIR</strong>") < page.index("Key figures")
    assert "types differ" in page


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.integers(2, 9))
def test_ticks_span_the_values_and_are_told_apart(a: float, b: float, count: int) -> None:
    low, high = min(a, b), max(a, b)
    if 0 < high - low < max(abs(low), abs(high)) * 1e-9:
        return
    found = ticks(low, high, count)
    slack = (found[-1] - found[0]) * 1e-6
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= count + 3
    labels = tick_labels(found)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(("low", "high"), [(0.0, 5e-324), (-5e-324, 5e-324), (1.0, 1.0), (0.0, 0.0)])
def test_ticks_of_values_that_are_all_but_equal(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert len(set(tick_labels(found))) == len(found) >= 2
