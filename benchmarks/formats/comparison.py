"""One table of a model in every format: size, bits per byte and characters per second, pruned and unpruned.

    python -m benchmarks.formats.comparison [--model smollm2-135m] [--ratio 0.2] [--threads 1]

Transformers in float32, GGUF through llama.cpp and ONNX through onnxruntime and onnxruntime-genai, on the same text and
with the same number of threads. Bits per byte are measured on the standard library's held-out modules. Speed is the
short run of the build's summary: a prompt of 256 tokens of that text, then 64 tokens one at a time, median of three.
Run it on an idle machine. Writes a table of docs/onnx.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common import cache, record, summary, table, write_table
from compact.calibration.evaluation_text import NAME, default_evaluation_text
from compact.forward.evaluate import evaluate_checkpoint
from compact.forward.load import load_model
from compact.pruning.apply import prune
from compact.pruning.budget_options import PROPORTIONAL
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.planning import make_plan
from compact.sources.model_source import open_source
from compact_edge.building.variant import sizes_by_part
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.console import Console
from exporters.base import Format
from exporters.format_values import Request, Variant
from exporters.gguf.format import GgufFormat
from exporters.onnx.format import OnnxFormat
from exporters.short_run import SPEED_RUNS, short_run
from targets.profile import load_profile

MODEL = "smollm2-135m"
GGUF_TYPES = ("F16", "Q8_0", "Q4_K_M", "Q4_0")
ONNX_TYPES = ("fp32", "int8", "int4")


def transformers_row(side: str, request: Request, text: str, threads: int) -> dict[str, Any]:
    """The row of the checkpoint itself, in float32."""
    import torch

    torch.set_num_threads(threads)
    evaluation = evaluate_checkpoint(request.checkpoint, text, device="cpu", dtype="float32", progress=Console())
    run = short_run(request.checkpoint, text)
    model = load_model(request.checkpoint)
    decodes, prefills = [], []
    for _ in range(SPEED_RUNS):
        prefill, decode = timed(model, run.ids, run.decode_tokens)
        prefills.append(prefill)
        decodes.append(decode)
    size = sum(path.stat().st_size for path in request.checkpoint.glob("*.safetensors"))
    decode = run.decode_tokens / statistics.median(decodes)
    return {
        "side": side,
        "format": "Transformers",
        "type": "float32",
        "size_bytes": size,
        "bits_per_weight": 8 * size / sizes_by_part(request.checkpoint)["total"],
        "bits_per_byte": evaluation.bits_per_byte,
        "prefill_tokens_per_second": len(run.ids) / statistics.median(prefills),
        "decode_tokens_per_second": decode,
        "decode_characters_per_second": decode * run.characters_per_token,
    }


def timed(model: Any, ids: Sequence[int], n_decode: int) -> tuple[float, float]:
    """Seconds for the prompt, and for the `n_decode` tokens after it (greedy, with a key-value cache)."""
    import torch

    with torch.inference_mode():
        started = time.perf_counter()
        output = model(input_ids=torch.tensor([list(ids)]), use_cache=True, logits_to_keep=1)
        middle = time.perf_counter()
        for _ in range(n_decode):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    return middle - started, time.perf_counter() - middle


def artifact_row(side: str, made: Format, request: Request, text: str, threads: int) -> dict[str, Any]:
    """The row of one artifact."""
    console = Console()
    artifact = made.make(request, cache(), console)
    evaluation = made.evaluate(artifact, text, threads=threads, progress=console, label=f"{side} {made.quant}")
    measured = made.measure(Variant(side, request.checkpoint, request.checkpoint_id, artifact), text, None, threads)
    assert evaluation is not None and measured is not None
    return {
        "side": side,
        "format": made.name.upper(),
        "type": made.quant,
        "size_bytes": artifact.size_bytes,
        "bits_per_weight": artifact.bits_per_weight,
        "bits_per_byte": evaluation.bits_per_byte,
        "prefill_tokens_per_second": measured.prefill,
        "decode_tokens_per_second": measured.decode,
        "decode_characters_per_second": measured.decode * measured.characters_per_token,
        "resident_bytes": measured.speed.resident_bytes,
    }


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the docs: a row for each type, before and after pruning."""
    lines = []
    for before, after in zip(
        *([row for row in rows if row["side"] == side] for side in ("original", "pruned")), strict=True
    ):
        cells = [f"{before['format']} {before['type']}"]
        for row in (before, after):
            cells += [f"{row['size_bytes'] / 1e6:.1f}", f"{row['bits_per_weight']:.2f}", f"{row['bits_per_byte']:.3f}"]
            cells.append(f"{row['decode_characters_per_second']:.0f}")
        lines.append(cells)
    columns = ("MB", "bits per weight", "bits per byte", "characters/s")
    header = ["format and type", *(f"{side} {name}" for side in ("unpruned", "pruned") for name in columns)]
    return table(header, lines)


def main() -> None:
    """Make every artifact, measure it, print and record the table."""
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--model", default=MODEL, help="built-in name, directory or GGUF file")
    parser.add_argument("--ratio", type=float, default=0.2, help="share of all parameters to remove")
    parser.add_argument("--threads", type=int, default=1, help="threads of each program")
    arguments = parser.parse_args()
    quiet_libraries(arguments.model)
    console, store = Console(), cache()
    source = open_source(arguments.model, store, console)
    options = PruneOptions(ratio=arguments.ratio, split=PROPORTIONAL, channel_grid=32)
    calibration = calibration_for(Context(source, options, store, console))
    plan = make_plan(Context(source, options, store, console).with_value(calibration_for, calibration))
    pruned = store.get_or_make("pruned-bench", plan.id, lambda work: prune(source, plan, work, progress=console))
    original = Request(
        label="original",
        checkpoint=source.directory,
        checkpoint_id=source.id,
        name=source.name,
        description="unpruned",
        published=False,
        source=source,
        calibration=calibration,
        pre=plan.pre,
        unpruned=source.directory,
    )
    smaller = replace(original, label="pruned", checkpoint=pruned, checkpoint_id=plan.id, plan_id=plan.id)
    gguf, onnx = load_profile("gguf"), load_profile("onnx")
    formats: list[Format] = [GgufFormat.resolve(gguf, source, quant=name) for name in GGUF_TYPES]
    formats += [OnnxFormat.resolve(onnx, source, quant=name) for name in ONNX_TYPES]
    text = default_evaluation_text()
    rows: list[dict[str, Any]] = []
    for side, request in (("original", original), ("pruned", smaller)):
        rows.append(transformers_row(side, request, text, arguments.threads))
        print(json.dumps(rows[-1]), flush=True)
        for each in formats:
            rows.append(artifact_row(side, each, request, text, arguments.threads))
            print(json.dumps(rows[-1]), flush=True)
    print(show(rows))
    if arguments.model == MODEL:
        write_table("size.md", "formats.comparison", show(rows))
    record(
        f"formats-{source.name}",
        {
            "text": NAME,
            "ratio": arguments.ratio,
            "threads": arguments.threads,
            "vocab_size": plan.vocab_size,
            "intermediate_size": plan.intermediate_size,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
