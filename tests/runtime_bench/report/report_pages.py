"""Reports as readers see them, and names that try to break out of them."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from markdown_it import MarkdownIt

from runtime_bench.records import RunFacts
from runtime_bench.report.document import make_document
from tests.runtime_bench import synthetic_run

PARSER = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
HOSTILE = "a|b <script>alert(1)</script>\n# x\r\n| y | `z` *w* [l](http://e) @someone #12 &lt; \u202e \x1b[31m ~~s~~ \\"


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


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


VOID = {"meta", "br", "img", "link", "input", "hr"}


class Outline(HTMLParser):
    """Tags with attributes in order, and whether every one is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    return parser


def facts_of(name: str, **changes: Any) -> RunFacts:
    return synthetic_run.facts(device={"model": name}, **changes)


def run(name: str, pruned: float = 80.0, pairs: int = 6, **changes: Any) -> dict[str, Any]:
    samples = synthetic_run.samples(pairs, speed={"pruned": pruned, "baseline": 70.0})
    return make_document(facts_of(name, **changes), samples)
