"""The output of `compact-edge bench`: the main values of the report, and the path of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from compact_edge.terminal.console import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from compact_edge.bench.pipeline import BenchResult

# The groups of metrics on a terminal; report.md has all of them.
_GROUPS = ("size", "memory", "load", "ttft", "prefill", "decode", "text", "quality")
_LOG_WIDTH = 120
_RATIO = "ratio [95%]"
# Minimum width of a terminal, in columns, for intervals.
_WIDE = 76
# Short names: 80 columns leave about 20 for a name and 6 for a unit.
_LABELS: Mapping[str, str] = {
    "load_warm_s": "Load, warm",
    "load_cold_s": "Load, cold",
    "prefill_tokens_per_s": "Prefill",
    "prefill_characters_per_s": "Prefill",
    "characters_per_s": "Decode, same text",
    "s_per_1000_characters": "1,000 characters",
}
_UNITS: Mapping[str, str] = {"tokens/s": "tok/s", "characters/s": "char/s", "bits/byte": ""}
# Verdict -> text and colour. Other verdicts are not shown; a line below the table gives the reason.
_VERDICTS: Mapping[str, tuple[str, str]] = {
    "better": ("better", "green"),
    "worse": ("worse", "red"),
    "no difference": ("no diff", "dim"),
}
_RESULTS: Mapping[bool | None, tuple[str, str]] = {
    True: ("met", "green"),
    False: ("EXCEEDED", "bold red"),
    None: ("not judged", "yellow"),
}


def print_bench(result: BenchResult) -> None:
    """Write the summary to stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    # A pipe or a log has no width, and rich would wrap at 80 columns.
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    print_document(result.document, console)
    click.echo(f"report: {result.out / 'report.html'}")


def print_document(document: Mapping[str, Any], console: Console) -> None:
    """Write the main values of a report to a console. Lines are wrapped at words on a terminal only."""
    from rich.text import Text

    from runtime_bench.measuring.statistics import LEAST_PAIRS
    from runtime_bench.report.headline import budget_summary, why
    from runtime_bench.report.words import budget_name, counted, engine_name

    def say(line: str, style: str = "") -> None:
        console.print(Text(one_line(line), style=style), soft_wrap=not console.is_terminal)

    say(document["title"], "bold")
    say(document["summary"])
    for line in why(document):
        say(line, "yellow")
    table = _metrics(document, intervals=console.width >= _WIDE)
    if table.row_count:
        console.print()
        console.print(table)
        console.print()
    if any(metric["verdict"] == "not enough pairs" for metric in document["metrics"]):
        say(f"fewer than {LEAST_PAIRS} pairs: no interval, and no measurement is called better or worse")
        console.print()
    if document["budgets"]:
        console.print(_budgets(document))
        console.print()
        reasons: dict[str, list[str]] = {}
        for budget in document["budgets"]:
            if budget["passed"] is None:
                reasons.setdefault(str(budget["reason"]), []).append(budget_name(budget["name"]))
        for reason, names in reasons.items():
            say(f"{', '.join(names)} not judged: {reason}", "yellow")
        say(budget_summary(document))
    settings = document["settings"]
    threads, context = counted(settings["threads"], "thread"), settings["context"]
    pairs = counted(document["pairs"], "pair")
    say(f"{pairs}, batch size 1, {threads}, context {context}, {engine_name(document)}")
    for note in document["notes"]:
        say(f"note: {note}")


def _table(first: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    # On a narrow terminal only the first column becomes shorter, so numbers are never broken.
    table.add_column(first, overflow="ellipsis")
    for name in columns:
        # Ratios are left-aligned because their intervals differ in length.
        table.add_column(name, justify="left" if name in ("", _RATIO) else "right", no_wrap=True)
    return table


def _metrics(document: Mapping[str, Any], *, intervals: bool) -> Table:
    from rich.text import Text

    from runtime_bench.report.words import ratio_words

    table = _table("", "baseline", "pruned", "", _RATIO if intervals else "ratio", "")
    for metric in document["metrics"]:
        if metric["group"] not in _GROUPS:
            continue
        baseline, pruned, unit = _amounts(metric["unit"], _median(metric["baseline"]), _median(metric["pruned"]))
        ratio = ratio_words(metric["ratio"]).removesuffix(f" (n = {document['pairs']})")
        ratio = ratio if intervals else ratio.partition(" ")[0]
        text, style = _VERDICTS.get(metric["verdict"], ("", ""))
        table.add_row(_name(_label(metric)), baseline, pruned, unit, ratio, Text(text, style=style))
    return table


def _budgets(document: Mapping[str, Any]) -> Table:
    from rich.text import Text

    from runtime_bench.report.words import budget_name

    table = _table("budget", "measured", "limit", "", "")
    for budget in document["budgets"]:
        measured, limit, unit = _amounts(budget["unit"], budget["measured"], budget["limit"])
        text, style = _RESULTS[budget["passed"]]
        name, limit = budget_name(budget["name"]), f"{budget['bound']} {limit}"
        table.add_row(_name(name), measured, limit, unit, Text(text, style=style))
    return table


def _name(text: str) -> Any:
    from rich.text import Text

    return Text(one_line(text), no_wrap=True, overflow="ellipsis")


def _label(metric: Mapping[str, Any]) -> str:
    label = _LABELS.get(metric["key"], str(metric["label"]))
    return label.replace("Decode at depth", "Decode, depth").replace("Decode after", "Decode,")


def _amounts(unit: str, first: float | None, second: float | None) -> tuple[str, str, str]:
    """Return two values of one quantity as text, and their common unit."""
    from runtime_bench.report.words import NONE, digits

    known = [value for value in (first, second) if value is not None]
    if unit == "bytes":
        # GB only if both values are large enough, so that neither loses digits.
        low, high = min(known, default=0), max(known, default=0)
        scale, unit = (1e9, "GB") if low >= 1e9 else (1e6, "MB") if high >= 1e5 else (1e3, "kB")
        shown = [
            NONE if value is None else f"{value / scale:,.{2 if unit == 'GB' else 1}f}" for value in (first, second)
        ]
    elif unit == "bits/byte":
        shown = [NONE if value is None else f"{value:.3f}" for value in (first, second)]
    else:
        shown = [NONE if value is None else digits(value) for value in (first, second)]
    return shown[0], shown[1], _UNITS.get(unit, unit)


def _median(side: Mapping[str, Any] | None) -> float | None:
    return None if side is None else float(side["median"])
