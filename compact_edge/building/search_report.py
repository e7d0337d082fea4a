"""Shows the result of a search for sizes as a table and as a plot, from the plan's record (`PrunePlan.search`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from compact_edge.terminal.plot import Panel, Series, document
from runtime_bench.report.svg import Point

SPLIT_SVG = "split.svg"
_WIDTH = 140


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """Print a table, and notes below it, to stdout. The first column is left-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from compact_edge.terminal.console import one_line

    # A pipe or a log has no width. rich would assume 80 and wrap lines.
    soft = not sys.stdout.isatty()
    console = Console(highlight=False, width=_WIDTH if soft else None)
    table = Table(title=Text(one_line(title)), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, column in enumerate(header):
        words = one_line(column).replace("_", "\n" if console.width < _WIDTH else "_")
        table.add_column(Text(words), justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    # In a narrower terminal, lines overflow. Truncated figures would be wrong figures.
    terminal = console.width
    console.width = max(terminal, table.__rich_measure__(console, console.options.update(width=_WIDTH)).maximum)
    console.print(table)
    console.width = terminal
    for note in notes:
        console.print(Text(one_line(note)), soft_wrap=soft)


def print_search(search: Mapping[str, Any]) -> None:
    """Print the unpruned model and all evaluated sizes, with a mark at the chosen one."""
    texts = list(search["held_out_bytes"])
    sized = search["unpruned"]["bytes"] is not None
    header = [
        "",
        "vocab_size",
        "intermediate_size",
        "parameters",
        *(["file"] if sized else []),
        *texts,
        "mean",
        "worst",
    ]
    rows = [["unpruned", *_cells(search["unpruned"], texts, sized), "", ""]]
    for number, point in enumerate(search["points"]):
        name = "chosen" if number == search["chosen"] else ""
        rows.append([name, *_cells(point, texts, sized), change(point["mean_ratio"]), change(point["worst_ratio"])])
    shown = ", ".join(f"{name} {n_bytes:,}" for name, n_bytes in search["held_out_bytes"].items())
    print_table(
        f"Sizes evaluated for {budget_words(search['budget'])}",
        header,
        rows,
        [
            f"bits per byte: of the pruned model before any repair, on text that the calibration does not contain "
            f"({shown} bytes); mean and worst: change against the unpruned model, over the texts; chosen: minimum of a "
            "parabola through the sizes near the best"
        ],
    )


def _cells(entry: Mapping[str, Any], texts: Sequence[str], sized: bool) -> list[str]:
    return [
        str(entry["vocab_size"]),
        str(entry["intermediate_size"]),
        f"{entry['parameters'] / 1e6:.2f}M",
        *([f"{entry['bytes'] / 1e6:.2f} MB"] if sized else []),
        *(f"{entry['bits_per_byte'][name]:.3f}" for name in texts),
    ]


def change(ratio: float) -> str:
    """Format a ratio as a change: 1.043 becomes +4.3%."""
    return f"{ratio - 1:+.1%}"


def budget_words(budget: Mapping[str, Any]) -> str:
    """Return the option of the budget: `--ratio 0.2` or `--fit 60.00 MB`."""
    if budget["fit_bytes"] is not None:
        return f"--fit {budget['fit_bytes'] / 1e6:.2f} MB"
    return f"--ratio {budget['ratio']:g}"


def split_svg(search: Mapping[str, Any], model: str) -> str:
    """Return a plot of the evaluated sizes: the loss of each text by vocabulary size."""
    chosen = search["points"][search["chosen"]]
    whole = search["unpruned"]["bits_per_byte"]
    points = sorted(search["points"], key=lambda point: int(point["vocab_size"]))

    def sizes(point: Mapping[str, Any]) -> str:
        return f"{point['vocab_size']} / {point['intermediate_size']}"

    def series(name: str, values: Sequence[float], style: int) -> Series:
        tips = tuple(f"{sizes(p)}: {name} {change(value)}" for p, value in zip(points, values, strict=True))
        places = tuple(Point(p["vocab_size"], 100 * (v - 1)) for p, v in zip(points, values, strict=True))
        return Series(name, places, tips, style)

    lines = [series("mean of the texts", [point["mean_ratio"] for point in points], 0)]
    for number, (name, base) in enumerate(whole.items(), 1):
        lines.append(series(name, [point["bits_per_byte"][name] / base for point in points], 1 + (number - 1) % 5))
    title = f"{model}: how {budget_words(search['budget'])} is best split"
    ends = (points[0], points[-1])
    panel = Panel(
        title,
        "vocab_size, the rest of the budget comes from the FFN",
        "bits per byte, % above the unpruned model",
        tuple(lines),
        marked=(chosen["vocab_size"], f"chosen: {sizes(chosen)}"),
    )
    listed = "; ".join(f"{sizes(point)} {change(point['mean_ratio'])}" for point in points)
    return document(
        [panel],
        title,
        f"Bits per byte over the unpruned model's, mean of the texts, by vocab_size / intermediate_size from "
        f"{sizes(ends[0])} to {sizes(ends[1])}: {listed}. Chosen: {sizes(chosen)}.",
    )
