"""Size, KL and bits per byte of GGUF types, before and after pruning.

    python -m benchmarks.formats.gguf_types --quants F16,BF16,Q8_0,Q4_0,IQ4_NL --ratios 0.1,0.2,0.35
    python -m benchmarks.formats.gguf_types --quants Q4_0,Q4_1,Q5_0,IQ4_NL,IQ4_NL/IQ4_NL,Q4_K_M --bytes 8000
    python -m benchmarks.formats.gguf_types --model tiny --quants all --ratios none --bytes 6000 --name types

The gate's limits and the profiles' default types come from these figures. `all` is every type that llama.cpp quantises
to; `benchmarks/pages/types_doc.py` writes those figures into docs/types.md. A type that does not fit the model's rows
is recorded with the reason. `IQ4_NL/Q5_1` quantises the embedding to the second type. KL is to the same model in
float32 (Transformers), over 512 positions of the calibration text, as in the parity gate. `smollm2-135m` is itself
dequantised from Q4_1, so that its ranking of 4-bit types favours Q4_1; the ranking by `tiny` does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.common import cache, evaluation_texts, pruned_checkpoint, record, summary, table
from compact.base.errors import BudgetError
from compact.calibration.calibration_set import Calibration
from compact.pruning.budget_options import PROPORTIONAL
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.sources.model_source import open_source
from compact_edge.terminal.console import Console
from exporters.gate import POSITIONS, Reference, mean_kl, reference_for
from exporters.gguf.artifact import Export, GgufArtifact, make_artifact
from exporters.gguf.scoring import evaluate_gguf
from exporters.llamacpp.engine import LlamaEngine
from exporters.llamacpp.quant_types import QUANTS


def measure(artifact: GgufArtifact, reference: Reference, texts: dict[str, str]) -> dict[str, Any]:
    """Size, KL and bits per byte of one file."""
    with LlamaEngine(artifact.path, n_ctx=POSITIONS) as engine:
        kl = mean_kl(reference, engine)
    bits = {
        kind: evaluate_gguf(artifact.path, text, threads=1, progress=Console(), label=f"{artifact.quant} {kind}")
        for kind, text in texts.items()
    }
    return {
        "size_bytes": artifact.size_bytes,
        "bits_per_weight": round(artifact.summary.bits_per_weight, 3),
        "embedding_type": artifact.embedding_type,
        "mean_kl": float(f"{kl:.4g}"),
        "bits_per_byte": {kind: round(value.bits_per_byte, 4) for kind, value in bits.items()},
    }


@click.command(help=summary(__doc__))
@click.option("--model", default="smollm2-135m", show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--quants", default="F16,BF16,Q8_0,Q4_0,Q4_1,Q5_0,IQ4_NL,IQ4_NL/IQ4_NL", show_default=True, help="Types.")
@click.option("--ratios", default="0.2", show_default=True, help="`none`: the unpruned model only.")
@click.option("--grid", default=32, show_default=True, help="intermediate_size is a multiple of this.")
@click.option("--calibration-tokens", default=16384, show_default=True, help="Tokens of the calibration.")
@click.option(
    "--bytes", "n_bytes", default=0, show_default=True, help="Bytes to evaluate of every text; 0: KL and size only."
)
@click.option("--kinds", default="wikitext,technical,fiction,stdlib", show_default=True, help="Kinds of text.")
@click.option("--name", default="gguf-types", show_default=True, help="Name of the file of results.")
def main(
    *,
    model: str,
    quants: str,
    ratios: str,
    grid: int,
    calibration_tokens: int,
    n_bytes: int,
    kinds: str,
    name: str,
) -> None:
    """Print and record the table."""
    store, console = cache(), Console()
    source = open_source(model, store, console)
    texts = evaluation_texts(n_bytes, kinds.split(",")) if n_bytes else {}
    drawn = PruneOptions(calibration_tokens=calibration_tokens)
    calibration: Calibration = calibration_for(Context(source, drawn, store))
    models: list[tuple[str, Path, str]] = [("0", source.directory, source.id)]
    for ratio in ratios.split(",") if ratios != "none" else ():
        options = PruneOptions(
            ratio=float(ratio), split=PROPORTIONAL, channel_grid=grid, calibration_tokens=calibration_tokens
        )
        made = pruned_checkpoint(source, options, store)
        models.append((ratio, made.directory, made.plan.id))
    rows, figures = [], []
    for ratio, directory, identity in models:
        reference = reference_for(directory, calibration.texts, greedy=False)
        for spelled in QUANTS if quants == "all" else quants.split(","):
            quant, _, embedding = spelled.partition("/")
            export = Export(
                checkpoint=directory,
                checkpoint_id=identity,
                quant=quant,
                name="benchmark",
                embedding_quant=embedding or None,
                texts=calibration.texts,
                texts_id=calibration.id,
            )
            try:
                artifact = make_artifact(export, store, console)
            except BudgetError as error:
                figures.append({"ratio": float(ratio), "quant": spelled, "refused": error.message})
                print(f"{spelled}: {error.message}")
                continue
            result = measure(artifact, reference, texts)
            figures.append({"ratio": float(ratio), "quant": spelled, **result})
            rows.append(
                [
                    ratio,
                    spelled,
                    f"{result['size_bytes'] / 1e6:.1f} MB",
                    f"{result['bits_per_weight']:.2f}",
                    result["embedding_type"],
                    f"{result['mean_kl']:.4g}",
                    *(f"{value:.3f}" for value in result["bits_per_byte"].values()),
                ]
            )
            print(table(["ratio", "type", "size", "bits/weight", "token_embd", "mean KL", *texts], rows[-1:]))
    print(table(["ratio", "type", "size", "bits/weight", "token_embd", "mean KL", *texts], rows))
    record(
        f"{name}-{source.name}",
        {"model": source.name, "calibration_tokens": calibration_tokens, "bytes": n_bytes, "rows": figures},
    )


if __name__ == "__main__":
    main()
