"""report.md as GitHub would read it: rendered by an independent parser of Markdown."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime_bench.records import Sample
from runtime_bench.report.document import make_document
from runtime_bench.report.markdown import markdown, text
from runtime_bench.report.rows import budget_rows, metric_rows
from tests.runtime_bench import synthetic_run
from tests.runtime_bench.report.report_pages import HOSTILE, PARSER, cells, hostile_facts


def rendered(document: dict[str, Any]) -> str:
    return PARSER.render(markdown(document))


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
    assert re.search(r"<h3>.*Q8_0 on Raspberry Pi 5.*: decodes 1\.\d+ times as many characters per second", first)
    same = make_document(facts, synthetic_run.samples(speed={"pruned": 79.0, "baseline": 70.0}))
    assert "no difference shown in characters per second" in rendered(same).split("\n")[0]


def test_short_enough_for_a_comment() -> None:
    lines = markdown(make_document(synthetic_run.facts(), synthetic_run.samples())).splitlines()
    assert len(lines) < 70


def test_a_failed_budget_stands_out() -> None:
    budgets = tuple(replace(budget, limit=1.0) for budget in synthetic_run.facts().budgets)
    page = rendered(make_document(synthetic_run.facts(budgets=budgets), synthetic_run.samples()))
    assert "2 of 4 budgets" in page or "3 of 4 budgets" in page
    assert "<strong>FAIL</strong>" in page


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


def fact(document: dict[str, Any], name: str) -> str:
    found = re.search(rf"<li>{name}: (.*?)</li>", rendered(document), re.DOTALL)
    assert found is not None
    return found.group(1)


def test_facts_are_short_and_name_no_place_on_the_machine() -> None:
    engine = {
        "name": "llama-server",
        "version": "0.5.0",
        "path": "/home/me/.cache/engine",
        "variant": "x86-64-v3",
        "compiler": "GNU 12.2.0",
        "toolchain": "native",
        "flags": {f"GGML_{number}": "ON" for number in range(22)},
        "sha256": {"llama-server": "9" * 64},
        "cpu_features": ["AVX"],
    }
    document = make_document(
        synthetic_run.facts(engine=engine, settings={"batch_size": 1, "threads": 1}), synthetic_run.samples(1)
    )
    # A report of another version may still hold what this one leaves out.
    document["device"]["python"] = "/home/me/python"
    assert fact(document, "Engine") == "llama-server 0.5.0, variant x86-64-v3, toolchain native, compiler GNU 12.2.0"
    assert document["engine"]["flags"] == engine["flags"]
    assert fact(document, "Settings") == "batch size 1 (one user, as on the edge), threads 1"
    assert "/home" not in rendered(document)


def test_one_is_singular() -> None:
    facts = synthetic_run.facts()
    subjects = {side: replace(subject, threads=1) for side, subject in facts.subjects.items()}
    one = rendered(
        make_document(
            replace(facts, subjects=subjects, budgets=(replace(facts.budgets[0], limit=1.0),)), synthetic_run.samples(1)
        )
    )
    assert "(1 pair: no interval)" in one
    assert "1 of 1 budget of" in one
    assert "1 thread," in one
    two = rendered(make_document(facts, synthetic_run.samples(2)))
    assert "(2 pairs: no interval)" in two
    assert "4 threads," in two


def test_a_file_against_itself_is_said_beside_the_summary() -> None:
    from runtime_bench.report.html import html

    facts = synthetic_run.facts()
    same = replace(facts, subjects=dict.fromkeys(facts.subjects, facts.subjects["pruned"]))
    said = "both sides are the same file"
    for one, expected in ((same, True), (replace(same, emulated=True), True), (facts, False)):
        document = make_document(one, synthetic_run.samples())
        assert (said in rendered(document).split("<table>")[0]) is expected
        assert (said in html(document).split("Key figures")[0]) is expected


def test_memory_that_is_pythons_own() -> None:
    def with_python(sample: Sample) -> Sample:
        return replace(sample, buffers={"Python before loading": 95_000_000})

    document = make_document(synthetic_run.facts(), synthetic_run.samples(change=with_python))
    said = fact(document, "Memory")
    assert said.count("of which Python and packages before loading 95.0 MB") == 2
    assert "Memory: " not in rendered(make_document(synthetic_run.facts(), synthetic_run.samples()))
