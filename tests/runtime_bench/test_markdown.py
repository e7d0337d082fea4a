"""report.md as GitHub would read it: rendered by an independent parser of Markdown."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from runtime_bench.report.document import make_document
from runtime_bench.report.markdown import markdown, text
from runtime_bench.report.rows import budget_rows, metric_rows
from tests.runtime_bench import synthetic_run

PARSER = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
HOSTILE = "a|b <script>alert(1)</script>\n# x\r\n| y | `z` *w* [l](http://e) @someone #12 &lt; \u202e \x1b[31m ~~s~~ \\"


def rendered(document: dict[str, Any]) -> str:
    return PARSER.render(markdown(document))


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_the_table_shows_the_figures_of_the_document() -> None:
    document = make_document(synthetic_run.facts(), synthetic_run.samples())
    table = cells(rendered(document))
    by_name = {row[0]: row for row in table}
    assert by_name["File size"][1:4] == ["115.5 MB", "144.8 MB", "0.80 (exact)"]
    assert by_name["Bits per byte, wikitext-2 (test)"][4] == "<strong>worse</strong>"
    for row in metric_rows(document):
        if row.label in by_name:
            assert by_name[row.label][1:4] == [row.pruned, row.baseline, row.ratio]
    for name, _, limit, measured, _ in budget_rows(document):
        assert by_name[name][2:4] == [limit, measured]
    wanted = {"Peak RSS", "RssAnon", "RssFile", "TTFT, chat", "Decode at depth 512", "Inter-token latency, p99"}
    assert wanted <= by_name.keys()


def test_the_heading_is_the_finding() -> None:
    facts = synthetic_run.facts()
    faster = make_document(facts, synthetic_run.samples(speed={"pruned": 100.0, "baseline": 70.0}))
    first = rendered(faster).split("\n")[0]
    assert re.search(r"<h3>.*Q8_0 on Raspberry Pi 5.*: decodes 1\.\d+ times as many characters a second", first)
    same = make_document(facts, synthetic_run.samples(speed={"pruned": 79.0, "baseline": 70.0}))
    assert "no difference shown in characters a second" in rendered(same).split("\n")[0]


def test_short_enough_for_a_comment() -> None:
    lines = markdown(make_document(synthetic_run.facts(), synthetic_run.samples())).splitlines()
    assert len(lines) < 70


def test_a_failed_budget_stands_out() -> None:
    budgets = tuple(replace(budget, limit=1.0) for budget in synthetic_run.facts().budgets)
    page = rendered(make_document(synthetic_run.facts(budgets=budgets), synthetic_run.samples()))
    assert "2 of 4 budgets" in page or "3 of 4 budgets" in page
    assert "<strong>FAIL</strong>" in page


def hostile_facts(name: str) -> Any:
    facts = synthetic_run.facts()
    return synthetic_run.facts(
        device={name: name, "model": name},
        device_spec=name,
        engine={"name": name, "version": name},
        settings={name: [name, {name: name}]},
        subjects={side: replace(subject, name=name, quant=name) for side, subject in facts.subjects.items()},
        prompts=(replace(facts.prompts[0], name=name), replace(facts.prompts[1], name=f"{name}2", skipped=name)),
        bits_per_byte_text=name,
        target=name,
        notes=(name,),
        unlike=(name,),
        status="partial",
        reason=name,
        command=name,
        created=name,
        tool_version=name,
    )


@pytest.mark.parametrize("name", [HOSTILE, "|", "``` ````", "<img src=x onerror=y>", "\n\n# h\n\n", "--- | ---"])
def test_hostile_names_change_nothing_but_the_words(name: str) -> None:
    plain = rendered(make_document(hostile_facts("plain"), synthetic_run.samples()))
    page = rendered(make_document(hostile_facts(name), synthetic_run.samples()))

    def tags(html: str) -> list[str]:
        return re.findall(r"</?[a-z0-9]+", html)

    assert tags(page) == tags(plain)
    assert "\x1b" not in page
    assert "\u202e" not in page


@given(st.text(max_size=60))
@example(HOSTILE)
@example("_a_ __b__ *c*")
def test_escaped_text_renders_as_itself(value: str) -> None:
    from html import unescape

    shown = PARSER.render(f"| x |\n| --- |\n| q{text(value)}q |\n")
    cell = re.search(r"<td>(.*?)</td>", shown, re.DOTALL)
    assert cell is not None
    assert "<" not in cell.group(1)
    expected = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    assert unescape(cell.group(1)).replace("\u200b", "") == f"q{expected}q".replace("\u200b", "")


def test_nobody_is_notified() -> None:
    assert not re.search(r"@\w", text("by @someone and a@b"))
