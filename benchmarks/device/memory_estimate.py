"""The estimate of llama.cpp's memory beside what its server has resident, on this machine's CPU.

    python -m benchmarks.device.memory_estimate --build BUILD [--work-dir DIR]
    python -m benchmarks.device.memory_estimate --table      # only write the table, from the recorded result

BUILD is the output of `compact-edge build smollm2-135m --ratio 0.2 --split proportional --target gguf
--with-baseline`. The other models have random weights and real tokenizers. They set the constants for a vocabulary
entry and for the program, at the top of exporters/gguf/memory.py and exporters/gguf/estimate.py; smollm2-135m checks
them. Needs the engine of `compact-edge engine build`. Writes the table of docs/size.md.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import cache, data_folder, record, recorded, summary, table, write_table

if TYPE_CHECKING:
    from exporters.gguf.memory import MemoryEstimate

SCRIPT, NAME = "device.memory_estimate", "memory-estimate"
DOCUMENT = "size.md"
CONTEXTS = (2048, 4096)
_SMALL: Mapping[str, tuple[str, str, int, int]] = {
    # name: (model_type, tokenizer, vocab_size, merges of the GGUF)
    "random weights, SmolLM2's tokenizer": ("llama", "smollm2", 49152, 48900),
    "random weights, Llama 3's tokenizer": ("llama", "llama3", 128256, 280147),
    "random weights, Qwen2's tokenizer": ("qwen2", "qwen2", 151936, 151387),
    "random weights, Gemma's tokenizer": ("gemma3_text", "gemma4", 262144, 0),
}
# llama.cpp's name of a feature -> the profiles' name.
_FEATURES = {"AVX2": "avx2", "AVX512": "avx512f", "NEON": "neon", "DOTPROD": "dotprod", "MATMUL_INT8": "i8mm"}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}


def small_config(model_type: str, vocab_size: int) -> dict[str, Any]:
    """config.json of a model of two layers; of six for Gemma 3, whose every sixth layer is of another kind."""
    gemma = model_type == "gemma3_text"
    return {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6 if gemma else 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "sliding_window": 512 if gemma else None,
        "vocab_size": vocab_size,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def artifacts(work: Path, build: Path) -> Iterator[tuple[str, Path, dict[str, Any], str, int]]:
    """Yield (name, file, config.json of the unpruned model, type, merges of its tokenizer) of every model."""
    from benchmarks.formats.families import family_checkpoint
    from benchmarks.formats.family_configs import RealModel
    from compact.architectures.published import published_model
    from exporters.gguf_writer.write import write_gguf

    for name, (model_type, tokenizer, vocab_size, merges) in _SMALL.items():
        config = small_config(model_type, vocab_size)
        folder, file = work / tokenizer, work / f"{tokenizer}.gguf"
        if not file.is_file():
            family_checkpoint(RealModel(name, tokenizer, True, config), folder, Path("no archive is needed"))
            write_gguf(folder, file, "Q8_0")
        yield name, file, config, "Q8_0", merges
    row = published_model("smollm2-135m")
    assert row is not None
    for name, part in (("smollm2-135m", "baseline"), ("smollm2-135m, a fifth removed", "gguf")):
        (file,) = (build / part).glob("*.gguf")
        yield name, file, row.config(), "IQ4_NL", row.merges


def measure(engine: Any, transport: Any, file: Path, context: int, text: str) -> dict[str, Any]:
    """Memory of the server's process, in bytes, after a prompt that is longer than a batch."""
    from runtime_bench.bench_artifact import read_artifact
    from runtime_bench.device.readings import read_memory
    from runtime_bench.engines.base import PlacedArtifact, Settings

    model = PlacedArtifact(str(file.parent), read_artifact(file))
    with engine.open(model, Settings(threads=1, context=context)) as session:
        session.warm_up()
        words = text.split()
        prompt = " ".join(words[:450])
        (tokens,) = session.count_tokens([prompt])
        session.generate("prompt", prompt, 2)
        memory = read_memory(transport, session.pid)
        return {
            "prompt_tokens": tokens,
            "rss": memory.rss,
            "peak_rss": memory.peak_rss,
            "rss_anon": memory.rss_anon,
            "rss_file": memory.rss_file,
            "buffers": dict(session.figures.buffers),
            # The engine uses only the kernels that it was compiled with, even if the CPU has more.
            "isa": [_FEATURES[name] for name in session.figures.engine["cpu_features"] if name in _FEATURES],
        }


def estimate(row: Mapping[str, Any]) -> MemoryEstimate:
    """The estimate for a recorded row."""
    from compact.pruning.budget import Sizes
    from exporters.gguf.memory import estimate_of_config

    return estimate_of_config(
        row["config"],
        Sizes(row["vocab_size"], row["intermediate_size"]),
        row["quant"],
        row["context"],
        isa=row["measured"]["isa"],
        embedding_quant="IQ4_NL" if row["quant"] == "IQ4_NL" else None,
        merges=row["merges"],
    )


def run(work: Path, build: Path) -> list[dict[str, Any]]:
    """Measure every model at every context length."""
    from compact.checkpoints.gguf_file import read_gguf
    from compact.forward.evaluate import read_text
    from runtime_bench.device.facts import read_facts
    from runtime_bench.engines.llama_server import LlamaServer
    from runtime_bench.toolchain.engine_folder import find_engine
    from runtime_bench.transports.registry import open_transport

    text = read_text(data_folder() / "text" / "wikitext2-valid.txt", split="held-out")
    with open_transport("local") as transport:
        folder = find_engine(cache(), platform.machine(), read_facts(transport).isa_features)
        if folder is None:
            raise SystemExit("error: no engine\nhint: compact-edge engine build")
        engine = LlamaServer(transport, folder)
        rows = []
        for name, file, config, quant, merges in artifacts(work, build):
            shapes = {name: tensor.shape for name, tensor in read_gguf(file).tensors.items()}
            for context in CONTEXTS:
                row: dict[str, Any] = {
                    "name": name,
                    "quant": quant,
                    "context": context,
                    "config": config,
                    "merges": merges,
                    "vocab_size": shapes["token_embd.weight"][0],
                    "intermediate_size": shapes["blk.0.ffn_gate.weight"][0],
                    "file_bytes": file.stat().st_size,
                    "measured": measure(engine, transport, file, context, text),
                }
                rows.append(row)
                peak = row["measured"]["peak_rss"]
                print(f"{name}, context {context}: {peak / 1e6:.1f} MB, {estimate(row).total / peak - 1:+.1%}")
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of docs/size.md. The estimates are computed by the current code."""
    header = ["model", "type", "context", "file", "KV cache", "compute", "memory, estimated", "measured", "difference"]
    lines = []
    for row in rows:
        measured = row["measured"]["peak_rss"]
        parts = estimate(row)
        megabytes = (row["file_bytes"], parts.kv_cache, parts.compute, parts.total, measured)
        lines.append(
            [row["name"], row["quant"], f"{row['context']:,}"]
            + [f"{value / 1e6:.1f} MB" for value in megabytes]
            + [f"{parts.total / measured - 1:+.1%}"]
        )
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--work-dir", type=Path, help="keep the random models here for the next run")
    parser.add_argument("--build", type=Path, help="output of compact-edge build, see the top of this script")
    parser.add_argument("--table", action="store_true", help="only write the table, from the recorded result")
    options = parser.parse_args()
    if not options.table:
        if options.build is None:
            parser.error("--build is needed")
        with tempfile.TemporaryDirectory() as scratch:
            rows = run(options.work_dir or Path(scratch), options.build)
        record(NAME, {"rows": rows})
    write_table(DOCUMENT, SCRIPT, show(recorded(NAME)["rows"]))


if __name__ == "__main__":
    main()
