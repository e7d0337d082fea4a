"""Make a self-contained HTML page, and the parts that pages have in common."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

from runtime_bench.report.charts import marker
from runtime_bench.report.svg import line

GOOD, BAD, CALM = "good", "bad", "calm"
_SIGNS = {"better": "✓ ", "worse": "✗ ", "pass": "✓ ", "FAIL": "✗ ", "no difference": "= "}


@cache
def _style() -> str:
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole HTML document.

    Its content security policy forbids loading and scripts. It allows the one style sheet by its hash.
    """
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{words(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def words(value: str) -> str:
    """Escape a text for HTML, on one line and without unprintable characters such as right-to-left marks."""
    return escape(" ".join("".join(character if character.isprintable() else " " for character in value).split()))


def tone(verdict: str) -> str:
    """Return the class of a verdict: `good`, `bad` or `calm`."""
    return GOOD if verdict in ("better", "pass") else BAD if verdict in ("worse", "FAIL") else CALM


def tag(verdict: str) -> str:
    """Return a verdict with a sign, so that it does not depend on colour."""
    return f'<span class="tag {tone(verdict)}">{_SIGNS.get(verdict, "")}{words(verdict)}</span>'


def section(heading: str, *body: str) -> str:
    """Return a heading with its content. The heading is a constant text of this package."""
    return f"<section>\n<h2>{heading}</h2>\n" + "\n".join(body) + "\n</section>"


def legend(pruned: str, baseline: str) -> str:
    """Return the legend: the mark of each side."""
    items = "".join(
        f'<li><svg viewBox="0 0 34 14" aria-hidden="true">{line(0, 7, 34, 7, f"curve {kind}")}'
        f"{marker(17, 7, kind, radius=5)}</svg><span>{kind}: {words(name)}</span></li>"
        for kind, name in (("pruned", pruned), ("baseline", baseline))
    )
    return f'<ul class="legend">{items}</ul>'


def plot(heading: str, note: str, drawing: str, *, wide: bool = False) -> str:
    """Return a plot with its heading and one line on how to read it."""
    below = f"<p>{words(note)}</p>" if note else ""
    start = '<figure class="wide">' if wide else "<figure>"
    return f"{start}\n<figcaption><h3>{words(heading)}</h3>{below}</figcaption>\n{drawing}\n</figure>"


def cell(label: str, content: str, kind: str = "") -> str:
    """Return a cell of a table that folds on narrow screens. `content` is HTML, `label` is the name of the column."""
    shown = f' data-label="{escape(label)}"' if label else ""
    return f'<td role="cell"{shown}' + (f' class="{kind}"' if kind else "") + f">{content}</td>"


def table(caption: str, header: Sequence[tuple[str, str]], bodies: Sequence[str]) -> str:
    """Return a table of rows grouped in `bodies`; `header` has (name, class) of each column.

    Roles are explicit, because a screen reader does not announce a table that CSS turns into blocks.
    """
    heads = "".join(
        f'<th scope="col" role="columnheader"{f" class={kind!r}" if kind else ""}>{words(name)}</th>'
        for name, kind in header
    )
    return (
        f'<table class="fold" role="table"><caption>{words(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead>' + "\n".join(bodies) + "</table>"
    )


def row(name: str, cells: Sequence[str]) -> str:
    """Return one row with its name as the heading."""
    return f'<tr role="row"><th scope="row" role="rowheader">{words(name)}</th>{"".join(cells)}</tr>'


def body(rows: Sequence[str], group: str = "", columns: int = 0) -> str:
    """Return a group of rows, with its name above them if it has a name."""
    head = f'<th scope="rowgroup" role="rowheader" colspan="{columns}">{words(group)}</th>'
    first = [f'<tr role="row" class="group">{head}</tr>'] if group else []
    return '<tbody role="rowgroup">' + "\n".join([*first, *rows]) + "</tbody>"
