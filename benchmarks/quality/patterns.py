"""What decides how much a cut costs, and on which text: score, calibration, ranking, split, repair, distillation.

    python -m benchmarks.quality.patterns

`smollm2-135m` at explicit sizes, calibrated on 32,768 tokens of the first 80% of WikiText-2's validation text, or of
this text and the Python enhancement proposals in equal shares. Evaluated in float32 on the last 20% of both, and on
fiction, which is in no calibration. A finished row is kept; about 3 minutes per row on 2 cores, 15 for the last one.
Writes the table of `docs/quality.md`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.common import (
    DOCUMENTED,
    Cells,
    bits_per_byte,
    cache,
    evaluation_texts,
    pruned_checkpoint,
    result_name,
    summary,
    table,
    texts_to_learn_from,
    write_table,
)
from compact.pruning.options import PruneOptions
from compact.pruning.recover_options import RecoverOptions
from compact.sources.model_source import open_source
from compact_edge.terminal.console import Console

NAME = "patterns"
KINDS = ("wikitext", "technical", "fiction")
RECOVERY_TOKENS = 65_536
# Number of byte and special tokens of this tokenizer. `vocab_floor` does not count them.
ALWAYS = 252


def rows() -> dict[str, PruneOptions]:
    """Name of a row -> options of the product."""
    files = texts_to_learn_from()
    wiki, both = (files["wikitext"],), tuple(files.values())
    corpus = Path(files["wikitext"])
    ffn = PruneOptions(intermediate_size=1024, calibration=wiki)
    words = PruneOptions(vocab_size=24_576, calibration=wiki)
    fewer = replace(words, vocab_size=16_384)
    joint = PruneOptions(vocab_size=24_576, intermediate_size=1280, calibration=wiki)
    default = replace(joint, calibration=())
    mixed = replace(joint, calibration=both)
    taught = RecoverOptions(text=both, tokens=RECOVERY_TOKENS)
    return {
        "FFN 1024, wikitext": ffn,
        "FFN 1024, wikitext, repair": replace(ffn, method="repair"),
        "FFN 1024, wikitext + peps": replace(ffn, calibration=both),
        "FFN 1024, wikitext + peps, repair": replace(ffn, calibration=both, method="repair"),
        "vocabulary 24,576 by merges": words,
        "vocabulary 24,576: 16,384 by merges, the rest by frequency in wikitext": replace(
            words, vocab_corpus=corpus, vocab_floor=16_384 - ALWAYS
        ),
        "vocabulary 24,576 by frequency in wikitext, default floor": replace(words, vocab_corpus=corpus),
        "vocabulary 16,384 by merges": fewer,
        "vocabulary 16,384 by frequency in wikitext alone": replace(fewer, vocab_corpus=corpus, vocab_floor=0),
        "24,576 / 1280, wikitext": joint,
        "24,576 / 1280, wikitext + peps": mixed,
        "24,576 / 1280, wikitext + peps, repair": replace(mixed, method="repair"),
        "16,384 / 1408, wikitext + peps, repair": replace(
            mixed, vocab_size=16_384, intermediate_size=1408, method="repair"
        ),
        "24,576 / 1280, wikitext + peps, repair, distill": replace(mixed, method="repair", recover=taught),
        "24,576 / 1280, wikitext + peps, repair to common tokens": replace(
            mixed, method="repair", repair_tokens="common"
        ),
        "24,576 / 1280, stdlib-prose": default,
        "24,576 / 1280, stdlib-prose, repair": replace(default, method="repair"),
    }


def show(cells: dict[str, dict[str, Any]]) -> str:
    """The table: parameters, and bits per byte on each kind of text."""
    lines = [
        [name, f"{cell['parameters'] / 1e6:.1f}M", *(f"{cell['bits_per_byte'][kind]:.3f}" for kind in KINDS)]
        for name, cell in cells.items()
    ]
    return table(["cut", "parameters", *KINDS], lines)


@click.command(help=summary(__doc__))
@click.option("--model", default=DOCUMENTED, show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--bytes", "n_bytes", default=24_000, show_default=True, help="Bytes to evaluate of every text.")
def main(model: str, n_bytes: int) -> None:
    """Compute the rows that are not recorded yet, print and record."""
    store = cache()
    source = open_source(model, store, Console())
    texts = evaluation_texts(n_bytes, KINDS)
    settings = {"model": source.name, "bytes_per_text": n_bytes, "recovery_tokens": RECOVERY_TOKENS}
    cells = Cells(result_name(NAME, model), settings)

    def score(directory: Path) -> dict[str, Any]:
        made = open_source(str(directory), store)
        return {"parameters": made.n_params, "bits_per_byte": bits_per_byte(directory, texts)}

    cells.get("unpruned", lambda: score(source.directory))
    for name, options in rows().items():
        cells.get(name, lambda options=options: score(pruned_checkpoint(source, options, store).directory))  # type: ignore[misc]
    print(show(cells.cells))
    if model == DOCUMENTED:
        write_table("quality.md", f"quality.{NAME}", show(cells.cells))


if __name__ == "__main__":
    main()
