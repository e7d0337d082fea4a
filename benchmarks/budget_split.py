"""How a ratio is best split between vocabulary and FFN: what `compact.budget.VOCABULARY_WEIGHT` was set by.

    python benchmarks/budget_split.py

For each weight (share that the vocabulary loses, over the share that the FFN loses) the sizes of a ratio are computed,
the model is pruned and bits per byte are measured on text of other kinds than the calibration.
"""

from __future__ import annotations

import click
from common import cache, evaluation_texts, pruned_checkpoint, record, table

from compact.budget import count_parts
from compact.evaluate import evaluate_checkpoint
from compact.importance import vocabulary_grid
from compact.prune_options import PruneOptions
from compact.source import open_source
from compact_edge.console import Console


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--ratio", default=0.2, show_default=True)
@click.option("--weights", default="0.5,1,1.5,2,3", show_default=True)
@click.option("--calibration-tokens", default=16384, show_default=True)
@click.option("--bytes", "n_bytes", default=12_000, show_default=True, help="Evaluated of every text.")
def main(model: str, ratio: float, weights: str, calibration_tokens: int, n_bytes: int) -> None:
    """Print and record the table."""
    store, console = cache(), Console()
    source = open_source(model, store, console)
    parts = count_parts(source.tensors, source.config)
    texts = evaluation_texts(n_bytes)
    rows, figures = [], []
    for text in weights.split(","):
        weight = float(text)
        share = ratio * parts.total / (weight * parts.vocabulary + parts.ffn)
        inner = round(source.intermediate_size * (1 - share) / 32) * 32
        left = ratio * parts.total - (source.intermediate_size - inner) * parts.per_channel
        exact = source.vocab_size - left / parts.per_row
        # On the grid of one calibration pass: all weights share it.
        vocab = min(vocabulary_grid(source.vocab_size, 256), key=lambda size: abs(size - exact))
        options = PruneOptions(
            vocab_size=vocab, intermediate_size=inner, channel_grid=32, calibration_tokens=calibration_tokens
        )
        made = pruned_checkpoint(source, options, store)
        bits = {
            kind: evaluate_checkpoint(
                made.directory, content, device="cpu", dtype="float32", progress=console, label=f"{text} {kind}"
            ).bits_per_byte
            for kind, content in texts.items()
        }
        mean = sum(bits.values()) / len(bits)
        rows.append([text, str(vocab), str(inner), *(f"{value:.3f}" for value in bits.values()), f"{mean:.3f}"])
        figures.append(
            {
                "weight": weight,
                "vocab_size": vocab,
                "intermediate_size": inner,
                "mean": round(mean, 4),
                "bits_per_byte": {kind: round(value, 4) for kind, value in bits.items()},
            }
        )
        print(table(["weight", "vocab_size", "intermediate_size", *texts, "mean"], rows))
    record(
        f"budget-split-{source.name}-{ratio:g}",
        {"model": source.name, "ratio": ratio, "bytes_per_text": n_bytes, "calibration": "default", "rows": figures},
    )


if __name__ == "__main__":
    main()
