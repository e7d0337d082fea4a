"""Every way to make an ONNX model of one checkpoint: size, mean KL to float32 and bits per byte.

    python -m benchmarks.formats.onnx_types [--ratios 0,0.2] [--configs fp32,int8,int4:default_last,...]

A config is a type, with `:algo_config` and `/block_size` if they are not the default. The gate's limits come from here
too (a pruned model's KL over the unpruned model's). Bits per byte are on 24 kB of the standard library's held-out
modules. Writes a table of docs/onnx.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import cache, evaluation_texts, pruned_checkpoint, record, summary, table, write_table
from compact.checkpoints.shards import read_index
from compact.pruning.budget_options import PROPORTIONAL
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.sources.model_source import open_source
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.console import Console
from exporters.gate import POSITIONS, reference_for
from exporters.onnx.artifact import make_onnx_artifact
from exporters.onnx.ort_engine import OnnxEngine
from exporters.onnx.parity import onnx_mean_kl
from exporters.onnx.scoring import evaluate_onnx
from exporters.onnx.types import ALGORITHMS, OnnxOptions, onnx_options

MODEL = "smollm2-135m"
CONFIGS = ("fp32", "fp16", "int8", *(f"int4:{name}" for name in ALGORITHMS), "int4:default_last/64", "int4:default/64")


def parse(config: str) -> OnnxOptions:
    """Options from the spelling `int4:rtn/64`."""
    named, _, size = config.partition("/")
    quant, _, algo = named.partition(":")
    return onnx_options(quant, algo_config=algo or None, block_size=int(size) if size else None)


def main() -> None:
    """Make and measure every config at every ratio."""
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--model", default=MODEL, help="built-in name, directory or GGUF file")
    parser.add_argument("--ratios", default="0,0.2", help="shares of all parameters to remove")
    parser.add_argument("--configs", default=",".join(CONFIGS), help="types and their settings")
    parser.add_argument("--bytes", type=int, default=24_000, help="bytes of text to evaluate")
    parser.add_argument("--threads", type=int, default=1, help="threads of each program")
    arguments = parser.parse_args()
    quiet_libraries(arguments.model)
    console, store = Console(), cache()
    source = open_source(arguments.model, store, console)
    text = evaluation_texts(arguments.bytes, ("stdlib",))["stdlib"]
    rows: list[dict[str, Any]] = []
    for ratio in (float(value) for value in arguments.ratios.split(",")):
        # k_quant needs an even number of blocks in a row.
        options = PruneOptions(ratio=ratio, split=PROPORTIONAL, channel_grid=64)
        texts = calibration_for(Context(source, options, store, console)).texts
        if ratio:
            made = pruned_checkpoint(source, options, store)
            directory, identity = made.directory, made.plan.id
        else:
            directory, identity = source.directory, source.id
        reference = reference_for(directory, texts, greedy=False)
        n_params = sum(ref.n_elements for ref in read_index(directory).values())
        for config in arguments.configs.split(","):
            started = time.monotonic()
            artifact = make_onnx_artifact(directory, identity, source.name, parse(config), store, console)
            seconds = time.monotonic() - started
            with OnnxEngine(artifact.folder, n_ctx=POSITIONS, n_threads=arguments.threads) as engine:
                kl = onnx_mean_kl(reference, engine)
            scored = evaluate_onnx(artifact.folder, text, threads=arguments.threads, progress=console)
            rows.append(
                {
                    "ratio": ratio,
                    "config": config,
                    "size_bytes": artifact.size_bytes,
                    "bits_per_weight": 8 * artifact.size_bytes / n_params,
                    "embedding": artifact.embedding_type,
                    "mean_kl": kl,
                    "bits_per_byte": scored.bits_per_byte,
                    "seconds": round(seconds, 1),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    record(f"onnx-types-{source.name}", {"model": arguments.model, "bytes": arguments.bytes, "rows": rows})
    print(show(rows))
    if arguments.model == MODEL:
        write_table("onnx.md", "formats.onnx_types", show(rows))


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the docs."""
    header = ("ratio", "type", "model files", "bits per weight", "embedding", "mean KL", "bits per byte")
    return table(
        header,
        [
            [
                *(f"{row['ratio']:g}", row["config"].replace(":", ", ").replace("/", ", blocks of ")),
                *(f"{row['size_bytes'] / 1e6:.1f} MB", f"{row['bits_per_weight']:.2f}", row["embedding"]),
                *(f"{row['mean_kl']:.3g}", f"{row['bits_per_byte']:.3f}"),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
