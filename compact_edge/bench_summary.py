"""What `compact-edge bench` prints: the report's main figures on a terminal, and where the rest lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from compact_edge.console import one_line

if TYPE_CHECKING:
    from compact_edge.bench import BenchResult

# The rows of a terminal; report.md has all of them.
_GROUPS = ("size", "memory", "load", "ttft", "prefill", "decode", "text", "quality")
_LOG_WIDTH = 120
_COLOURS: Mapping[str, str] = {"better": "green", "worse": "red"}


def print_bench(result: BenchResult) -> None:
    """Write the summary to stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from runtime_bench.report.headline import budget_summary, why
    from runtime_bench.report.words import figure, plain, ratio_words

    document = result.document
    console = Console(highlight=False)
    # A pipe or a log has no width; rich would guess 80 and wrap there.
    soft = not console.is_terminal
    if soft:
        console.width = _LOG_WIDTH
    console.print(Text(one_line(str(document["title"])), style="bold"), soft_wrap=soft)
    console.print(Text(one_line(str(document["summary"]))), soft_wrap=soft)
    for line in why(document):
        console.print(Text(one_line(line), style="yellow"), soft_wrap=soft)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for name in ("baseline", "pruned", "ratio [95%]"):
        table.add_column(name, justify="right")
    table.add_column("")
    for metric in document["metrics"]:
        if metric["group"] in _GROUPS:
            values = [figure(_median(metric[side]), metric["unit"]) for side in ("baseline", "pruned")]
            said = str(metric["verdict"])
            table.add_row(
                one_line(metric["label"]),
                *values,
                ratio_words(metric["ratio"]),
                Text(said, style=_COLOURS.get(said, "")),
            )
    if table.row_count:
        console.print(table)
    for budget in document["budgets"]:
        mark = {True: "met", False: "EXCEEDED", None: "not judged"}[budget["passed"]]
        console.print(Text(f"budget {budget['name']}: {mark}"), soft_wrap=soft)
    if text := budget_summary(document):
        console.print(Text(text), soft_wrap=soft)
    engine = document["engine"]
    named = " ".join(plain(engine[key]) for key in ("name", "version") if engine.get(key))
    settings = document["settings"]
    threads = f"{settings['threads']} thread{'s' * (settings['threads'] != 1)}"
    how = f"batch size 1, {threads}, context {settings['context']}, {named}"
    pairs = document["pairs"]
    click.echo(one_line(f"{pairs} pair{'s' * (pairs != 1)}, {how}"))
    for note in document["notes"]:
        click.echo(one_line(f"note: {note}"))
    click.echo(f"report: {result.out / 'report.html'}")


def _median(side: Mapping[str, Any] | None) -> float | None:
    return None if side is None else float(side["median"])
