"""Shows the result of a search for sizes as a table and as a plot, from the plan's record (`PrunePlan.search`).

The record has one of three forms:

- `--split auto`: the evaluated sizes of one budget (`compact.search.find`).
- `--ratio`: the sizes with the smallest predicted loss (`compact.search.ratio`).
- limits such as `--fit`: a search over sizes and types (`compact_edge.front.record`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from compact.base.files import write_text
from compact.pruning.plan import PLAN, PrunePlan
from compact_edge.front.describe import cells, columns, front_note, is_front, limit_words, place_on_front
from compact_edge.front.plot import FRONT_SVG, search_svg
from compact_edge.terminal.console import one_line
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
    """Print how the sizes were found."""
    if is_front(search):
        print_front(search)
    elif "points" in search:
        _print_split(search)
    elif "predicted" in search:
        click.echo(one_line(predicted_line(search)))


def search_plot(search: Mapping[str, Any], model: str) -> tuple[str, str] | None:
    """Return file name and text of the plot of a search, or None if there is nothing to plot."""
    if is_front(search):
        return FRONT_SVG, search_svg(search, model)
    return (SPLIT_SVG, split_svg(search, model)) if "points" in search else None


def write_plot(folder: Path, plan: PrunePlan, model: str) -> None:
    """Write the plot of a plan's search into a folder, if there is something to plot."""
    drawn = None if plan.search is None else search_plot(plan.search, model)
    if drawn is not None:
        name, text = drawn
        write_text(folder / name, text)


def card_note(search: Mapping[str, Any]) -> str | None:
    """Return the note of a model card: how the sizes were found."""
    if is_front(search):
        return f"{front_note(search)} (`{PLAN}`, `search`; `{FRONT_SVG}`)"
    if "points" in search:
        return (
            f"sizes chosen by bits per byte on held-out text, of {len(search['points'])} judged "
            f"(`{PLAN}`, `search`; `{SPLIT_SVG}`)"
        )
    return f"{predicted_line(search)} (`{PLAN}`, `search`)" if "predicted" in search else None


def predicted_line(search: Mapping[str, Any]) -> str:
    """Return a line on sizes that were chosen by their predicted loss."""
    found = search["predicted"]
    return (
        f"sizes: {found['vocabulary_share']:.0%} of the removed parameters from the vocabulary "
        f"(predicted loss {found['loss']:+.1%}; vocabulary alone {found['loss_of_vocabulary_alone']:+.1%}, "
        f"FFN alone {found['loss_of_ffn_alone']:+.1%})"
    )


def print_front(search: Mapping[str, Any]) -> None:
    """Print the measured candidates with a mark at the chosen one, and where it is on the front."""
    texts = list(search["held_out_bytes"])
    memory = all(point["memory_bytes"] is not None for point in search["measured"])
    speed = all(point["characters_per_second"] is not None for point in search["measured"])
    rows = []
    for number, point in enumerate(search["measured"]):
        mark = "chosen" if number == search["chosen"] else ""
        rows.append([mark, *cells(point, texts, memory=memory, speed=speed)])
    print_table(
        f"Sizes and types measured for {limit_words(search['limits'])}, of {search['candidates']:,} predicted",
        ["", *columns(texts, memory=memory, speed=speed)],
        rows,
        [front_legend(search), place_on_front(search)],
    )


def front_legend(search: Mapping[str, Any]) -> str:
    """Return the note below a table of sizes and types."""
    return (
        f"bits per byte: of the file before any repair or training, on text that the calibration does not contain "
        f"({_text_bytes(search)} bytes); loss and worst: change against the unpruned float model, over the texts; loss "
        "includes rare tokens that the texts do not contain; predicted: before the file was measured"
    )


def _text_bytes(search: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {n_bytes:,}" for name, n_bytes in search["held_out_bytes"].items())


def _print_split(search: Mapping[str, Any]) -> None:
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
    print_table(
        f"Sizes evaluated for {budget_words(search['budget'])}",
        header,
        rows,
        [
            f"bits per byte: of the pruned model before any repair, on text that the calibration does not contain "
            f"({_text_bytes(search)} bytes); mean and worst: change against the unpruned model, over the texts; "
            "chosen: minimum of a parabola through the sizes near the best"
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
