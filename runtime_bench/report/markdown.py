"""report.md: short enough for a comment in a pull request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from runtime_bench.report.headline import budget_summary, why
from runtime_bench.report.rows import DECODE_AT_DEPTH, Row, budget_rows, fact_rows, metric_rows, outcome

# Characters that are markup in Markdown or HTML. Escaping `-` and `.` too would make file names unreadable.
_MARKUP = re.compile(r"([\\`*_\[\]|~#])")


def markdown(document: Mapping[str, Any]) -> str:
    """Return the report as GitHub Markdown. Names and facts are escaped."""
    blocks = [f"### {text(document['title'])}: {text(document['summary'])}"]
    marks = why(document)
    if marks:
        blocks.append("\n".join(f"> **{text(line)}**<br>" for line in marks).removesuffix("<br>"))
    rows = [
        (text(row.label), text(row.pruned), text(row.baseline), text(row.ratio), emphasis(row.verdict))
        for row in _main_rows(document)
    ]
    blocks.append(grid(("", "pruned", "baseline", "ratio [95% interval]", "verdict"), rows, "lrrrl"))
    budgets = budget_rows(document)
    if budgets:
        blocks.append(f"**Budgets: {text(budget_summary(document))}**")
        judged = [
            (text(name), text(what), text(limit), text(measured), emphasis(outcome(passed)))
            for name, what, limit, measured, passed in budgets
        ]
        blocks.append(grid(("budget", "of the pruned model", "limit", "measured", "result"), judged, "llrrl"))
    lines = [f"- {text(name)}: {text(value)}" for name, value in fact_rows(document)]
    lines += [f"- Note: {text(note)}" for note in document["notes"]]
    blocks.append("\n".join(lines))
    version, created = text(document["tool_version"]), text(document["created"])
    blocks.append(f"Measured with compact-edge {version}, {created}. To run it again:")
    blocks.append(_code(document["command"]))
    return "\n\n".join(blocks) + "\n"


def text(value: str) -> str:
    """Return a name as Markdown: on one line, without markup, HTML or a mention of a person."""
    line = " ".join("".join(character if character.isprintable() else " " for character in value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKUP.sub(r"\\\1", line)
    # GitHub notifies the person in `@name`, even if the character is an entity. A zero-width space prevents that.
    return re.sub(r"@(?=\w)", "@\u200b", line)


def _main_rows(document: Mapping[str, Any]) -> list[Row]:
    """Return the metrics for a comment, which must be short.

    The decode speed after each prompt is left out if the speed at each depth is known.
    """
    rows = metric_rows(document)
    decode = [row for row in rows if row.metric["group"] == "decode"]
    by_depth = [row for row in decode if row.metric["key"].startswith(DECODE_AT_DEPTH)]
    return [row for row in rows if not by_depth or row not in decode or row in by_depth]


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str) -> str:
    """Return a table. The cells are Markdown; `alignment` has `l` or `r` for each column."""
    rule = {"l": "---", "r": "--:"}
    lines = ["| " + " | ".join(row) + " |" for row in (header, [rule[kind] for kind in alignment], *rows)]
    return "\n".join(lines)


def emphasis(word: str) -> str:
    """Return a verdict, in bold if it is bad."""
    return f"**{text(word)}**" if word in ("worse", "FAIL") else text(word)


def _code(command: str) -> str:
    # A fence ends at the first equally long run of backticks, so it must be longer than every run inside.
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    line = " ".join("".join(character if character.isprintable() else " " for character in command).split())
    return f"{fence}sh\n{line}\n{fence}"
