"""report.html: one file to read and print. It has no script and loads nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runtime_bench.report import page
from runtime_bench.report.charts import interval
from runtime_bench.report.headline import budget_summary, same_file, standing, why
from runtime_bench.report.plots import plots
from runtime_bench.report.rows import (
    GROUPS,
    Row,
    budget_rows,
    fact_rows,
    first_metric,
    metric_rows,
    outcome,
    prompt_rows,
    throttling_line,
)
from runtime_bench.report.words import NONE, device_name, figure, ratio_words, subject_name

# Key figures: (keys, heading). The first key that was measured is shown.
_CARDS = (
    (("characters_per_s",), "Decode, same text"),
    (("ttft_s:chat", "ttft_s:"), "Time to first token"),
    (("decode_tokens_per_s:chat", "decode_tokens_per_s:"), "Decode"),
    (("peak_rss_bytes", "private_bytes"), "Memory"),
    (("size_bytes",), "File size"),
    (("bits_per_byte",), "Bits per byte"),
)
_SCOPES = {"ttft_s": "prompt {}", "decode_tokens_per_s": "after {}"}


def html(document: Mapping[str, Any]) -> str:
    """Return the report as a page. Every text of the document is escaped."""
    subjects = document["subjects"]
    drawn = plots(document)
    rows = metric_rows(document)
    content = [
        _header(document),
        page.section("Key figures", _cards(document)),
        page.section("Plots", page.legend(subjects["pruned"]["name"], subjects["baseline"]["name"]), drawn)
        if drawn
        else "",
        page.section("Budgets", _budgets(document)) if document["budgets"] else "",
        page.section("All metrics", _metrics(rows)),
        page.section("How it was measured", _facts(document)),
        page.section("Prompts", _prompts(document)) if document["prompts"] else "",
        page.section("Run it again", f"<pre>{page.words(document['command'])}</pre>"),
        _footer(document),
    ]
    return page.page(document["title"], [part for part in content if part])


def _header(document: Mapping[str, Any]) -> str:
    marks = standing(document)
    parts = [
        '<p class="kicker">On-device latency report</p>',
        f"<h1>{page.words(subject_name(document))}</h1>",
        f'<p class="device">on {page.words(device_name(document))}, against '
        f"{page.words(document['subjects']['baseline']['name'])}</p>",
        f'<p class="summary">{page.words(document["summary"])}</p>',
    ]
    budgets = budget_summary(document)
    if budgets:
        failed = any(budget["passed"] is False for budget in document["budgets"])
        passed = all(budget["passed"] is True for budget in document["budgets"])
        verdict = outcome(False if failed else True if passed else None)
        parts.append(f'<p class="line">{page.tag(verdict)} {page.words(budgets)}</p>')
    if marks:
        lines = "".join(f"<p>{page.words(line)}</p>" for line in why(document))
        parts.append(
            f'<div class="marks" role="note"><p><strong>{page.words(", ".join(marks))}</strong></p>{lines}</div>'
        )
    elif same_file(document):
        parts.append(f'<div class="warn" role="note"><p>{page.words(why(document)[0])}</p></div>')
    if document["throttling"]["verdict"] == "warning":
        parts.append(
            '<div class="warn" role="note"><p><strong>Throttling</strong>: '
            f"{page.words(throttling_line(document))}</p></div>"
        )
    return "<header>\n" + "\n".join(parts) + "\n</header>"


def _cards(document: Mapping[str, Any]) -> str:
    cards = []
    for keys, heading in _CARDS:
        metric = first_metric(document, keys)
        if metric is None:
            continue
        base, _, scope = metric["key"].partition(":")
        name = f"{heading}, {_SCOPES[base].format(scope)}" if base in _SCOPES else heading
        if metric["key"] == "private_bytes":
            name = f"{heading}, private" if metric["label"] == "Private memory" else f"{heading}, {metric['label']}"
        elif metric["key"] == "peak_rss_bytes":
            name = f"{heading}, peak RSS"
        value = NONE if metric["pruned"] is None else figure(metric["pruned"]["median"], metric["unit"])
        amount, _, unit = value.partition(" ")
        baseline = NONE if metric["baseline"] is None else figure(metric["baseline"]["median"], metric["unit"])
        baseline = baseline.removesuffix(f" {unit}") if unit else baseline
        # The interval may go to a separate line, but must not be broken.
        middle, bracket, ends = ratio_words(metric["ratio"]).partition(" [")
        ratio = f"<span>ratio {page.words(middle)}</span>" + (f"<span>[{page.words(ends)}</span>" if bracket else "")
        cards.append(
            f'<div class="card"><h3>{page.words(name)}</h3><p class="big">{page.words(amount)} '
            f'<small>{page.words(unit)}</small></p><p class="than">baseline {page.words(baseline)}</p>'
            f'<p class="foot">{ratio}{page.tag(metric["verdict"])}</p></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else '<p class="plain">Nothing was measured.</p>'


def _metrics(rows: list[Row]) -> str:
    reach = _reach(rows)
    header = (
        ("", ""),
        ("pruned", "n"),
        ("baseline", "n"),
        ("ratio [95% interval]", "n"),
        ("smaller | larger", ""),
        ("verdict", ""),
    )
    bodies = []
    for group in dict.fromkeys(row.metric["group"] for row in rows):
        members = [_metric(row, reach) for row in rows if row.metric["group"] == group]
        bodies.append(page.body(members, GROUPS.get(group, group), len(header)))
    caption = (
        "Medians over the records of each side. The drawing shows the ratio pruned/baseline and its interval on a "
        f"logarithmic scale from 1/{reach:.3g} to {reach:.3g}; the dotted line is 1."
    )
    return f'<div class="sheet">{page.table(caption, header, bodies)}</div>'


def _metric(row: Row, reach: float) -> str:
    ratio = row.metric["ratio"]
    tone = page.tone(row.verdict)
    drawn = "" if ratio is None else interval(ratio["low"], ratio["median"], ratio["high"], tone, reach)
    return page.row(
        row.label,
        [
            page.cell("pruned", page.words(row.pruned), "n"),
            page.cell("baseline", page.words(row.baseline), "n"),
            page.cell("ratio", page.words(row.ratio), "n"),
            page.cell("", drawn, "drawn"),
            page.cell("verdict", page.tag(row.verdict)),
        ],
    )


def _reach(rows: list[Row]) -> float:
    """Return the factor at the ends of the drawings: the smallest of a few round factors that covers every ratio."""
    ratios = [row.metric["ratio"] for row in rows if row.metric["ratio"] is not None]
    ends = [end for ratio in ratios for end in (ratio["low"], ratio["median"], ratio["high"]) if end is not None]
    largest = max((math.exp(min(abs(math.log(end)), 6.0)) for end in ends), default=1.0)
    return next((factor for factor in (1.25, 1.5, 2.0, 3.0, 5.0, 10.0) if factor >= largest), 10.0)


def _budgets(document: Mapping[str, Any]) -> str:
    header = (("budget", ""), ("of the pruned model", ""), ("limit", "n"), ("measured", "n"), ("result", ""))
    rows = [
        page.row(
            name,
            [
                page.cell("judged", page.words(what)),
                page.cell("limit", page.words(limit), "n"),
                page.cell("measured", page.words(measured), "n"),
                page.cell("result", page.tag(outcome(passed))),
            ],
        )
        for name, what, limit, measured, passed in budget_rows(document)
    ]
    caption = f"Limits of the target {document['target'] or ''}: compared with medians of the pruned model."
    sources = "".join(
        f"<li>{page.words(budget['name'])}: {page.words(budget['source'])}</li>" for budget in document["budgets"]
    )
    return (
        f'<div class="sheet">{page.table(caption, header, [page.body(rows)])}'
        '<details class="plain"><summary>Where the limits come from</summary>'
        f'<ul class="notes">{sources}</ul></details></div>'
    )


def _facts(document: Mapping[str, Any]) -> str:
    rows = fact_rows(document) + [("Note", note) for note in document["notes"]]
    return (
        '<div class="sheet"><dl>'
        + "".join(f"<dt>{page.words(name)}</dt><dd>{page.words(value)}</dd>" for name, value in rows)
        + "</dl></div>"
    )


def _prompts(document: Mapping[str, Any]) -> str:
    header = (("prompt", ""), ("characters", "n"), ("tokens, pruned", "n"), ("tokens, baseline", "n"), ("", ""))
    rows = [
        page.row(
            name,
            [
                page.cell("characters", page.words(characters), "n"),
                page.cell("tokens, pruned", page.words(pruned), "n"),
                page.cell("tokens, baseline", page.words(baseline), "n"),
                page.cell("", page.words(f"skipped: {skipped}" if skipped else "")),
            ],
        )
        for name, characters, pruned, baseline, skipped in prompt_rows(document)
    ]
    caption = "The same texts for both sides, each in its own vocabulary."
    return f'<div class="sheet">{page.table(caption, header, [page.body(rows)])}</div>'


def _footer(document: Mapping[str, Any]) -> str:
    return (
        f"<footer><p>Measured with compact-edge {page.words(document['tool_version'])}, "
        f"{page.words(document['created'])}. report.json has the same values for programs.</p></footer>"
    )
