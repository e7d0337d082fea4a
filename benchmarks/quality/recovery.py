"""What distillation after the cut gives: by learning rate, and by budget.

    python -m benchmarks.quality.recovery --part rate
    python -m benchmarks.quality.recovery --part budget

`smollm2-135m` at ratio 0.2, repaired, then trained with the unpruned model as teacher, on the first 80% of WikiText-2's
validation text and of the Python enhancement proposals, unless the row says otherwise. It is never trained on fiction
and stdlib. A finished row is kept and not computed again; 65,536 tokens take 10 to 14 minutes on 2 cores, 1,048,576
tokens take 4.4 hours. Writes the table of `docs/quality.md`.
"""

from __future__ import annotations

import time
from typing import Any

import click

from benchmarks.common import (
    DOCUMENTED,
    Cells,
    bits_per_byte,
    cache,
    evaluation_texts,
    result_name,
    summary,
    table,
    texts_to_learn_from,
    write_table,
)
from compact.decide import decide, pruned_checkpoint
from compact.pruning.budget_options import PROPORTIONAL
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.recover_options import LEARNING_RATE, RecoverOptions
from compact.sources.model_source import open_source
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.console import Console

NAME = "recovery"
RATIO = 0.2
SHORT = 65_536
MIX = "wikitext + peps"
REPAIRED = "pruned and repaired"
Row = tuple[str, float, int]  # text, learning rate, tokens

PARTS: dict[str, list[Row]] = {
    "rate": [(MIX, rate, SHORT) for rate in (1e-4, 3e-4, 1e-3)],
    "budget": [(f"self + {MIX}", LEARNING_RATE, 1_048_576)],
}


def options_of(row: Row | None) -> PruneOptions:
    """Options of the pruning and of the training of a row."""
    files = texts_to_learn_from()
    recover = None
    if row is not None:
        text, rate, tokens = row
        names = tuple(files.get(name, name) for name in text.split(" + "))
        recover = RecoverOptions(text=names, learning_rate=rate, tokens=tokens)
    return PruneOptions(
        ratio=RATIO,
        split=PROPORTIONAL,
        channel_grid=32,
        calibration=tuple(files.values()),
        method="repair",
        recover=recover,
    )


def key_of(row: Row) -> str:
    """The key of a row's cell."""
    text, rate, tokens = row
    return f"{text}, rate {rate:g}, {tokens} tokens"


def show(cells: dict[str, dict[str, Any]]) -> str:
    """The table: bits per byte, and their rise over the unpruned model's."""
    base = cells["unpruned"]["bits_per_byte"]
    known = ["unpruned", REPAIRED, *(key_of(row) for part in PARTS.values() for row in part)]
    rows = []
    for name, cell in sorted(cells.items(), key=lambda item: known.index(item[0])):
        bits = cell["bits_per_byte"]
        minutes = f"{cell['seconds'] / 60:.0f}" if "seconds" in cell else ""
        rows.append([name, minutes, *(f"{bits[k]:.3f} (+{bits[k] / base[k] - 1:.1%})" for k in base)])
    return table(["model, or what it was trained on", "minutes", *base], rows)


@click.command(help=summary(__doc__))
@click.option("--model", default=DOCUMENTED, show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, required=True, help="What to measure.")
@click.option("--bytes", "n_bytes", default=24_000, show_default=True, help="Bytes to evaluate of every text.")
def main(model: str, parts: tuple[str, ...], n_bytes: int) -> None:
    """Compute the rows that are not recorded yet, print and record."""
    quiet_libraries()
    store, console = cache(), Console()
    source = open_source(model, store, console)
    texts = evaluation_texts(n_bytes)
    cells = Cells(
        result_name(NAME, model), {"model": source.name, "ratio": RATIO, "method": "repair", "bytes_per_text": n_bytes}
    )

    def compute(row: Row | None) -> dict[str, Any]:
        start = time.monotonic()
        decision = decide(Context(source, options_of(row), store, console))
        seconds = round(time.monotonic() - start, 1)
        directory, _ = pruned_checkpoint(source, decision, store)
        cell: dict[str, Any] = {"bits_per_byte": bits_per_byte(directory, texts)}
        if row is not None:
            recovery = decision.plan.recovery
            history = None if recovery is None else recovery["history"]
            # After an interruption, only the history has the time of the whole training.
            cell |= {"seconds": history[-1]["seconds"] if history else seconds, "history": history}
            cell |= {"learning_rate": row[1]}
        return cell

    cells.get("unpruned", lambda: {"bits_per_byte": bits_per_byte(source.directory, texts)})
    cells.get(REPAIRED, lambda: compute(None))
    for row in (row for part in parts for row in PARTS[part]):
        cells.get(key_of(row), lambda row=row: compute(row))  # type: ignore[misc]
    print(show(cells.cells))
    if model == DOCUMENTED:
        write_table("quality.md", f"quality.{NAME}", show(cells.cells))


if __name__ == "__main__":
    main()
