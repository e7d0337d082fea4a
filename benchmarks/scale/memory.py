"""Memory and time of pruning, export and quantization on large checkpoints, beside llama.cpp's own tools.

    python -m benchmarks.scale.memory --work-dir DIR          # 1 GB, then 4 GB in shards: 45 GB of disk at most
    python -m benchmarks.scale.memory --work-dir DIR --gigabytes 1 --repeat 3

The checkpoints have random weights and stay in DIR for the next run. Each step runs in separate processes. The
RssAnon of these and their children is sampled in /proc (Linux):

- the whole `prune` command (`--method magnitude`: a calibration pass would have the model in memory);
- our GGUF writer to F16 beside `convert_hf_to_gguf.py`;
- our Q4_K_M (a float file, then the quantizer in a child) beside the same converter and `llama-quantize`.

Both programs run in alternating order on the same files. Exit code 1 if their output differs in a byte, or if memory
grows with the model.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import ROOT, record, summary, table
from benchmarks.gguf_compare import compare
from benchmarks.llamacpp import CONVERTER_WITH_PRETOKENIZER, build_tools, fetch_converter
from benchmarks.scale.probes import read_once, rss_anon

# Allowed in addition to twice the largest tensor: the interpreter, numpy, torch and buffers. In bytes.
ALLOWANCE = 500_000_000
# llama.cpp's name of the built-in model's pre-tokenizer. Its converter does not know the vocabulary.
PRE = "qwen2"
LAYERS = {1: 9, 4: 41}
SHARD_BYTES = 1_000_000_000
_OURS_F16 = """
import sys
from pathlib import Path
from exporters.gguf_writer.write import write_gguf
write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), "F16")
"""
_OURS_Q4_K_M = """
import sys
from pathlib import Path
from exporters.gguf.artifact import lossless_type
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.quantize import quantize_gguf
source, target = Path(sys.argv[1]), Path(sys.argv[2])
float_file = target.with_suffix(".float.gguf")
target.unlink(missing_ok=True)
write_gguf(source, float_file, lossless_type(source))
quantize_gguf(float_file, target, "Q4_K_M", n_threads=int(sys.argv[3]))
float_file.unlink()
"""


def config(layers: int) -> dict[str, Any]:
    """config.json of a Llama with `layers` layers."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "vocab_size": 16384, "tie_word_embeddings": True, "eos_token_id": 0,
    }  # fmt: skip


def sharded_checkpoint(out: Path, layers: int, **changes: Any) -> Path:
    """A checkpoint of random bfloat16 weights in shards of 1 GB, with the built-in model's tokenizer.

    Args:
        out: its directory; an existing checkpoint is kept.
        layers: number of layers.
        changes: values that replace those of `config`.
    """
    import torch

    from compact.architectures.layout import expected_shapes
    from compact.architectures.table import family_of
    from compact.checkpoints.writers import TensorSpec, write_checkpoint

    if (out / "config.json").is_file():
        return out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    values = config(layers) | changes
    shapes = expected_shapes(family_of(values, "config.json"), values, 1 << 20, "config.json")
    rng = np.random.default_rng(0)

    def produce(spec: TensorSpec) -> torch.Tensor:
        drawn = torch.from_numpy(rng.standard_normal(spec.shape, dtype=np.float32))
        return (drawn * 0.02 + (1.0 if len(spec.shape) == 1 else 0.0)).to(torch.bfloat16)

    specs = [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]
    write_checkpoint(out, specs, produce, max_shard_bytes=SHARD_BYTES)
    tiny = ROOT / "compact" / "models" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, out / name)
    (out / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return out


@dataclass(frozen=True)
class Run:
    """Peak RssAnon in bytes and wall seconds."""

    peak: int
    seconds: float


def measure(*commands: Sequence[str | Path], path: str = str(ROOT)) -> Run:
    """Run commands one after another. Returns the largest peak of a process with its children, and the total time."""
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CI": "true"}
    peak, started = 0, time.perf_counter()
    for command in commands:
        with subprocess.Popen(
            [str(part) for part in command], env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            found: list[int] = [0]
            watcher = threading.Thread(target=_watch, args=(process, found))
            watcher.start()
            errors = process.communicate()[1]
            watcher.join()
        if process.returncode:
            sys.exit(f"error: {command[-3:]} ended with {process.returncode}\n{errors.decode()[-2000:]}")
        peak = max(peak, found[0])
    return Run(peak, time.perf_counter() - started)


def _watch(process: subprocess.Popen[bytes], found: list[int]) -> None:
    import psutil

    while process.poll() is None:
        try:
            family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        except psutil.Error:
            break
        found[0] = max(found[0], sum(rss_anon(pid) for pid in family))
        time.sleep(0.02)


def in_turn(repeat: int, *runs: Callable[[], Run]) -> list[Run]:
    """Make each of `runs` `repeat` times, in alternating order. Returns largest peak and median time of each."""
    found: list[list[Run]] = [[] for _ in runs]
    for number in range(repeat):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for index in order:
            found[index].append(runs[index]())
    return [Run(max(r.peak for r in each), statistics.median(r.seconds for r in each)) for each in found]


def of_size(gigabytes: int, work: Path, repeat: int, threads: int) -> dict[str, Any]:
    """All measurements on one checkpoint."""
    from compact.checkpoints.shards import read_index

    model = sharded_checkpoint(work / f"random-{gigabytes}gb", LAYERS[gigabytes])
    tensors = read_index(model)
    converter, tools = fetch_converter(work), build_tools(work, 2)
    convert: list[str | Path] = [
        sys.executable,
        "-c",
        CONVERTER_WITH_PRETOKENIZER,
        converter / "convert_hf_to_gguf.py",
        PRE,
        model,
        "--outtype",
    ]
    theirs_path = str(converter / "gguf-py")
    ours, theirs, middle = work / "ours.gguf", work / "theirs.gguf", work / "middle.gguf"
    prune: list[str | Path] = [
        sys.executable,
        "-m",
        "compact_edge",
        "prune",
        model,
        "--method",
        "magnitude",
        "--force",
        "--no-cache",
    ]
    result: dict[str, Any] = {
        "checkpoint_bytes": sum(ref.n_bytes for ref in tensors.values()),
        "shards": len({ref.file for ref in tensors.values()}),
        "largest_tensor_bytes": max(ref.n_bytes for ref in tensors.values()),
        "threads": threads,
        "repeat": repeat,
    }
    read_once(ref.file for ref in tensors.values())
    pruned = measure([*prune, "--ratio", "0.2", "--split", "proportional", "--out", work / "pruned"])
    shutil.rmtree(work / "pruned")
    result["prune"] = {"ours": vars(pruned)}
    mine, their = in_turn(
        repeat,
        lambda: measure([sys.executable, "-c", _OURS_F16, model, ours]),
        lambda: measure([*convert, "f16", "--outfile", theirs], path=theirs_path),
    )
    result["F16"] = {"ours": vars(mine), "llama.cpp": vars(their), "differences": compare(ours, theirs)[0]}
    mine, their = in_turn(
        repeat,
        lambda: measure([sys.executable, "-c", _OURS_Q4_K_M, model, ours, str(threads)]),
        lambda: measure(
            [*convert, "bf16", "--outfile", middle],
            [tools / "llama-quantize", middle, theirs, "Q4_K_M", str(threads)],
            path=theirs_path,
        ),
    )
    result["Q4_K_M"] = {"ours": vars(mine), "llama.cpp": vars(their), "differences": compare(ours, theirs)[0]}
    for file in (ours, theirs, middle):
        file.unlink(missing_ok=True)
    return result


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    size = f"{result['checkpoint_bytes'] / 1e9:.1f} GB, {result['shards']} shards"
    rows = []
    for step in ("prune", "F16", "Q4_K_M"):
        mine, their = result[step]["ours"], result[step].get("llama.cpp")
        cells = [size, step, f"{mine['peak'] / 1e6:.0f} MB", f"{mine['seconds']:.1f} s"]
        if their is None:
            rows.append([*cells, "-", "-", "-", "-"])
            continue
        differences = result[step]["differences"]
        ratio = f"{their['seconds'] / mine['seconds']:.2f}"
        equal = "equal" if not differences else f"{len(differences)} differences"
        rows.append([*cells, f"{their['peak'] / 1e6:.0f} MB", f"{their['seconds']:.1f} s", ratio, equal])
    return rows


HEADER = ("checkpoint", "step", "RssAnon", "time", "llama.cpp's RssAnon", "its time", "ratio of times", "bytes")


@click.command(help=summary(__doc__))
@click.option(
    "--work-dir", type=click.Path(path_type=Path), required=True, help="Keeps checkpoints and tools between runs."
)
@click.option(
    "--gigabytes",
    type=click.Choice(["1", "4"]),
    multiple=True,
    default=["1", "4"],
    show_default=True,
    help="Sizes of the checkpoints.",
)
@click.option("--repeat", default=1, show_default=True, help="Timed runs of each program.")
@click.option("--threads", default=2, show_default=True, help="Threads of both quantizers.")
def main(work_dir: Path, gigabytes: Sequence[str], repeat: int, threads: int) -> None:
    """Print and record the table."""
    work = work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results = {size: of_size(int(size), work, repeat, threads) for size in gigabytes}
    print(table(HEADER, [row for result in results.values() for row in rows_of(result)]))
    record("memory", {"sizes": results})
    failed = False
    for result in results.values():
        limit = 2 * result["largest_tensor_bytes"] + ALLOWANCE
        for step in ("prune", "F16", "Q4_K_M"):
            for line in result[step].get("differences", [])[:5]:
                print(f"{step}: {line}")
            failed |= bool(result[step].get("differences")) or result[step]["ours"]["peak"] > limit
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
