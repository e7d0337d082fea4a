"""Bits per byte before and after pruning, at several ratios, on held-out text of four kinds.

    python -m benchmarks.quality.ratios --model smollm2-135m
    python -m benchmarks.quality.ratios --model tiny

Ratios are split by the fixed rule (`--split proportional`). `smollm2-135m` is calibrated on the first 80% of
WikiText-2's validation text, `tiny` on its default text. Compare the kinds of text that the calibration does not
contain. Runs in float32 through Transformers, in about 20 minutes on 2 cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from benchmarks.common import cache, evaluation_texts, pruned_checkpoint, record, summary, table, wikitext_train
from compact.forward.evaluate import evaluate_checkpoint
from compact.pruning.budget_options import PROPORTIONAL
from compact.pruning.options import PruneOptions
from compact.sources.model_source import TINY, open_source
from compact_edge.terminal.console import Console


@click.command(help=summary(__doc__))
@click.option("--model", default="smollm2-135m", show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--ratios", default="0.1,0.2,0.35", show_default=True, help="Shares of all parameters to remove.")
@click.option("--calibration", multiple=True, help="Default: WikiText-2 (first 80%), for tiny its own default.")
@click.option("--calibration-tokens", default=32768, show_default=True, help="Tokens of the calibration.")
@click.option("--bytes", "n_bytes", default=24_000, show_default=True, help="Bytes to evaluate of every text.")
def main(model: str, ratios: str, calibration: tuple[str, ...], calibration_tokens: int, n_bytes: int) -> None:
    """Print and record the table."""
    store, console = cache(), Console()
    source = open_source(model, store, console)
    texts = evaluation_texts(n_bytes)
    with tempfile.TemporaryDirectory() as scratch:
        named = calibration or (() if model == TINY else (str(wikitext_train(Path(scratch))),))
        places: list[tuple[str, int, int, int, Path]] = [
            ("0", source.n_params, source.vocab_size, source.intermediate_size, source.directory)
        ]
        for ratio in ratios.split(","):
            options = PruneOptions(
                ratio=float(ratio),
                split=PROPORTIONAL,
                channel_grid=32,
                calibration=named,
                calibration_tokens=calibration_tokens,
            )
            made = pruned_checkpoint(source, options, store)
            size = open_source(str(made.directory), store).n_params
            places.append((ratio, size, made.plan.vocab_size, made.plan.intermediate_size, made.directory))
    rows, figures = [], []
    for ratio, size, vocab, inner, directory in places:
        bits = {
            kind: evaluate_checkpoint(
                directory, content, device="cpu", dtype="float32", progress=console, label=f"{ratio} {kind}"
            ).bits_per_byte
            for kind, content in texts.items()
        }
        rows.append([ratio, f"{size / 1e6:.1f}M", str(vocab), str(inner), *(f"{value:.3f}" for value in bits.values())])
        figures.append(
            {
                "ratio": float(ratio),
                "parameters": size,
                "vocab_size": vocab,
                "intermediate_size": inner,
                "bits_per_byte": {kind: round(value, 4) for kind, value in bits.items()},
            }
        )
    print(table(["ratio", "parameters", "vocab_size", "intermediate_size", *texts], rows))
    record(
        f"quality-{source.name}",
        {
            "model": source.name,
            "bytes_per_text": n_bytes,
            "calibration": " + ".join(calibration) or "default",
            "calibration_tokens": calibration_tokens,
            "rows": figures,
        },
    )


if __name__ == "__main__":
    main()
