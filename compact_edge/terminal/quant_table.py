"""`--quant list`: the types that a model can be made in, by format, as tables or as JSON."""

from __future__ import annotations

import sys
from typing import Any

from compact_edge.terminal.console import print_json
from exporters.registry import formats

_WIDTH = 140


def print_quants(*, as_json: bool) -> None:
    """Write the list to stdout. No model is opened."""
    if as_json:
        report: dict[str, Any] = {}
        for each in formats():
            report |= each.quant_report()
        print_json(report)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A pipe or a log has no width; rich would guess 80 and break the lines there.
    soft = not sys.stdout.isatty()
    console = Console(highlight=False, width=_WIDTH if soft else None)
    for listed in (table for each in formats() for table in each.quant_tables()):
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in listed.columns:
            shown.add_column(column.title, justify="right" if column.right else "left", no_wrap=not column.wraps)
        for row in listed.rows:
            shown.add_row(*row)
        console.print(shown)
        for line in listed.notes:
            console.print(Text(line), soft_wrap=soft)
