"""How a budget is shared between vocabulary and FFN: the fixed rule and the search (`--split auto`).

    python -m benchmarks.quality.splits                        # rule and search at three ratios
    python -m benchmarks.quality.splits --weights 1,2,3 --ratios 0.2 --bytes 6000

`smollm2-135m`, calibrated on 32,768 tokens of the first 80% of WikiText-2's validation text and of the Python
enhancement proposals in equal shares. The search evaluates on held-out text of both. The table has the last 20% of
both, and fiction, in float32. A finished row is not computed again. A search takes about 10 minutes on 2 cores. Writes
the table of `docs/quality.md`.

A weight is the share that the vocabulary loses, divided by the share that the FFN loses. `--weights` measures several
weights with the default calibration. `compact.pruning.budget.VOCABULARY_WEIGHT` was chosen with the results, which are
in `docs/quality.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import mean
from typing import Any

import click

from benchmarks.common import (
    DOCUMENTED,
    Cells,
    bits_per_byte,
    cache,
    evaluation_texts,
    pruned_checkpoint,
    record,
    result_name,
    summary,
    table,
    texts_to_learn_from,
    write_table,
)
from compact.forward.evaluate import evaluate_checkpoint
from compact.pruning.budget import count_parts
from compact.pruning.budget_options import PROPORTIONAL
from compact.pruning.importance import vocabulary_grid
from compact.pruning.options import PruneOptions
from compact.pruning.sizes import parts_at
from compact.sources.model_source import ModelSource, open_source
from compact_edge.terminal.console import Console

NAME = "splits"
KINDS = ("wikitext", "technical", "fiction")


def show(cells: dict[str, dict[str, Any]]) -> str:
    """The table of `docs/quality.md`: sizes and bits per byte of each ratio and split."""
    lines = []
    for name, cell in cells.items():
        ratio, split = name.split("|")
        bits = [f"{cell['bits_per_byte'][kind]:.3f}" for kind in KINDS]
        sizes = [f"{cell['parameters'] / 1e6:.1f}M", str(cell["vocab_size"]), str(cell["intermediate_size"])]
        lines.append([ratio, split, *sizes, *bits])
    lines.sort(key=lambda line: (float(line[0]), line[1] == "auto"))
    return table(["ratio", "split", "parameters", "vocab_size", "intermediate_size", *KINDS], lines)


def measure_weights(source: ModelSource, ratio: float, weights: Sequence[float], tokens: int, n_bytes: int) -> None:
    """Print and record bits per byte of a ratio that is split by each weight.

    Args:
        source: the model.
        ratio: share of all parameters to remove.
        weights: share that the vocabulary loses, over the share that the FFN loses.
        tokens: of the calibration.
        n_bytes: evaluated of every text.
    """
    store, console = cache(), Console()
    parts = count_parts(source.tensors, source.config)
    texts = evaluation_texts(n_bytes)
    rows, figures = [], []
    for weight in weights:
        share = ratio * parts.total / (weight * parts.vocabulary + parts.ffn)
        inner = round(source.intermediate_size * (1 - share) / 32) * 32
        left = ratio * parts.total - (source.intermediate_size - inner) * parts.per_channel
        exact = source.vocab_size - left / parts.per_row
        # All weights share the grid of one calibration pass.
        vocab = min(vocabulary_grid(source.vocab_size, 256), key=lambda size, exact=exact: abs(size - exact))  # type: ignore[misc]
        options = PruneOptions(vocab_size=vocab, intermediate_size=inner, channel_grid=32, calibration_tokens=tokens)
        made = pruned_checkpoint(source, options, store)
        bits = {
            kind: evaluate_checkpoint(
                made.directory, content, device="cpu", dtype="float32", progress=console, label=f"{weight:g} {kind}"
            ).bits_per_byte
            for kind, content in texts.items()
        }
        average = mean(bits.values())
        shown = [f"{value:.3f}" for value in (*bits.values(), average)]
        rows.append([f"{weight:g}", str(vocab), str(inner), *shown])
        figures.append(
            {
                "weight": weight,
                "vocab_size": vocab,
                "intermediate_size": inner,
                "mean": round(average, 4),
                "bits_per_byte": {kind: round(value, 4) for kind, value in bits.items()},
            }
        )
        print(table(["weight", "vocab_size", "intermediate_size", *texts, "mean"], rows))
    record(
        f"budget-split-{source.name}-{ratio:g}",
        {"model": source.name, "ratio": ratio, "bytes_per_text": n_bytes, "calibration": "default", "rows": figures},
    )


@click.command(help=summary(__doc__))
@click.option("--model", default=DOCUMENTED, show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--ratios", default="0.1,0.2,0.35", show_default=True, help="Shares of all parameters to remove.")
@click.option("--bytes", "n_bytes", default=24_000, show_default=True, help="Bytes to evaluate of every text.")
@click.option("--weights", help="Measure these weights instead, such as 1,2,3.")
@click.option("--calibration-tokens", default=16_384, show_default=True, help="With --weights.")
def main(model: str, ratios: str, n_bytes: int, *, weights: str | None, calibration_tokens: int) -> None:
    """Compute the rows that are not recorded yet, print and record; or measure weights."""
    store = cache()
    source = open_source(model, store, Console())
    if weights:
        for ratio in map(float, ratios.split(",")):
            measure_weights(
                source, ratio, [float(weight) for weight in weights.split(",")], calibration_tokens, n_bytes
            )
        return
    texts = evaluation_texts(n_bytes, KINDS)
    cells = Cells(result_name(NAME, model), {"model": source.name, "bytes_per_text": n_bytes})
    calibration = tuple(texts_to_learn_from().values())
    fixed = PruneOptions(channel_grid=32, calibration=calibration)

    def score(options: PruneOptions) -> dict[str, Any]:
        made = pruned_checkpoint(source, options, store)
        sizes = asdict(made.plan.sizes) | {"parameters": parts_at(source, made.plan.sizes).total}
        return {**sizes, "bits_per_byte": bits_per_byte(made.directory, texts), "search": made.plan.search}

    for ratio in map(float, ratios.split(",")):
        for name, split in (("fixed rule", PROPORTIONAL), ("auto", "auto")):
            cells.get(f"{ratio:g}|{name}", lambda r=ratio, s=split: score(replace(fixed, ratio=r, split=s)))  # type: ignore[misc]
    print(show(cells.cells))
    if model == DOCUMENTED:
        write_table("quality.md", f"quality.{NAME}", show(cells.cells))


if __name__ == "__main__":
    main()
