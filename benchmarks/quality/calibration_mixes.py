"""Bits per byte of the pruned model on four kinds of text, for each calibration text and for mixes of them.

    python -m benchmarks.quality.calibration_mixes
    python -m benchmarks.quality.calibration_mixes --seeds 1,2 --only "self + stdlib"     # other seeds of one mix

`smollm2-135m` at ratio 0.2, method `compact`, in float32 through Transformers. Compare mixes by the kinds of text that
they do not contain: the last column is the loss on fiction, which no mix contains. Two mixes are measured with three
seeds. A finished cell is not computed again. A cell takes about 2 minutes on 2 cores. Writes the table of
`docs/quality.md`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
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
from compact.base.cache import Cache
from compact.calibration.calibration_set import SELF, STDLIB, STDLIB_PROSE
from compact.decide import decide
from compact.pruning.apply import prune
from compact.pruning.budget_options import PROPORTIONAL
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.sources.model_source import ModelSource, open_source
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.console import Console

NAME = "calibration-mixes"
WIKITEXT, PEPS = "wikitext", "peps"
UNPRUNED = "unpruned"
MIXES: tuple[tuple[str, ...], ...] = (
    (STDLIB_PROSE,),
    (WIKITEXT, PEPS),
    (STDLIB,),
    (WIKITEXT,),
    (PEPS,),
    (SELF,),
    (SELF, STDLIB_PROSE),
    (SELF, STDLIB),
    (SELF, WIKITEXT, PEPS),
    (STDLIB_PROSE, WIKITEXT, PEPS),
)
# Measured with every seed: the default, and the mix that was better on fiction with seed 0.
SEEDED = ((STDLIB_PROSE,), (SELF, STDLIB_PROSE))
# Source -> the kind of evaluation text that it belongs to. Both built-in texts are of the standard library.
_OWN_KIND = {WIKITEXT: "wikitext", PEPS: "technical", STDLIB: "stdlib", STDLIB_PROSE: "stdlib"}


def loss_elsewhere(bits: Mapping[str, float], unpruned: Mapping[str, float]) -> float:
    """Return the loss on fiction, which no mix contains: bits per byte relative to the unpruned model, less 1."""
    return bits["fiction"] / unpruned["fiction"] - 1


def measure(source: ModelSource, options: PruneOptions, texts: Mapping[str, str], store: Cache) -> dict[str, Any]:
    """One cell: draw the calibration, prune, evaluate."""
    console = Console()
    plan = decide(Context(source, options, store, console)).plan
    with tempfile.TemporaryDirectory() as work:
        prune(source, plan, Path(work), progress=console)
        bits = bits_per_byte(Path(work), texts)
    return {"vocab_size": plan.vocab_size, "intermediate_size": plan.intermediate_size, "bits_per_byte": bits}


def show(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the docs: means over the seeds. A star marks the kinds of text that the mix contains."""
    unpruned = cells[UNPRUNED]["bits_per_byte"]
    lines = [[UNPRUNED, "", *(f"{value:.3f}" for value in unpruned.values()), ""]]
    for mix in MIXES:
        found = [cell["bits_per_byte"] for name, cell in cells.items() if name.split("|")[0] == " + ".join(mix)]
        if not found:
            continue
        own = {_OWN_KIND.get(name) for name in mix}
        bits = {kind: mean(cell[kind] for cell in found) for kind in unpruned}
        shown = [f"{value:.3f}" + ("*" if kind in own else "") for kind, value in bits.items()]
        losses = [loss_elsewhere(cell, unpruned) for cell in found]
        spread = f" ±{(max(losses) - min(losses)) / 2:.1%}" if len(losses) > 1 else ""
        lines.append([" + ".join(mix), str(len(found)), *shown, f"{mean(losses):+.1%}{spread}"])
    return table(["calibration", "seeds", *unpruned, "loss on fiction"], lines)


@click.command(help=summary(__doc__))
@click.option("--model", default=DOCUMENTED, show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--ratio", default=0.2, show_default=True, help="Share of all parameters to remove.")
@click.option("--calibration-tokens", default=16_384, show_default=True, help="Tokens of the calibration.")
@click.option("--bytes", "n_bytes", default=7_500, show_default=True, help="Bytes to evaluate of every text.")
@click.option("--only", multiple=True, help="Only these mixes, each as 'a + b'.")
@click.option(
    "--seeds", default="0,1,2", show_default=True, help="Seeds; other than 0 only for some mixes, or those in --only."
)
def main(model: str, ratio: float, calibration_tokens: int, n_bytes: int, only: tuple[str, ...], seeds: str) -> None:
    """Measure the cells that are not recorded yet, and write the table."""
    quiet_libraries()
    store = cache()
    source = open_source(model, store, Console())
    texts = evaluation_texts(n_bytes)
    settings = {"model": source.name, "ratio": ratio, "tokens": calibration_tokens, "bytes_per_text": n_bytes}
    cells = Cells(result_name(NAME, model), settings)
    cells.get(UNPRUNED, lambda: {"bits_per_byte": bits_per_byte(source.directory, texts)})
    names = {"wikitext": "wikitext", "peps": "peps", **texts_to_learn_from()}
    for seed in map(int, seeds.split(",")):
        for mix in MIXES:
            label = " + ".join(mix)
            wanted = label in only if only else seed == 0 or mix in SEEDED
            if not wanted:
                continue
            options = PruneOptions(
                ratio=ratio,
                split=PROPORTIONAL,
                channel_grid=32,
                calibration=tuple(names.get(name, name) for name in mix),
                calibration_tokens=calibration_tokens,
                seed=seed,
            )
            cells.get(f"{label}|{seed}", lambda o=options: measure(source, o, texts, store))  # type: ignore[misc]
    if model == DOCUMENTED:
        write_table("quality.md", "quality.calibration_mixes", show(cells.cells))
    print(show(cells.cells), flush=True)


if __name__ == "__main__":
    main()
