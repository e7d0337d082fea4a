"""Time and memory of the calibration pass, beside a plain forward pass and the whole model in memory.

    python -m benchmarks.scale.prune_scale --work-dir DIR        # 1 GB of random weights in 24 layers, 4096 tokens
    python -m benchmarks.scale.prune_scale --work-dir DIR --repeat 3 --threads 2
    python -m benchmarks.scale.prune_scale --work-dir DIR --device cuda    # see prune_scale_cuda.py

Each pass runs in its own process, in alternating order, on the same checkpoint and tokens, in float32:

- forward: a plain forward pass of Transformers' backbone. Only the pass is timed, not the loading.
- naive: the same model whole in memory, with hooks that sum act2.
- act2: `collect_scores`, layer by layer. The time includes reading the weights.
- act2 + H: the same pass with X^T X of every layer's `down_proj`.

RssAnon is sampled in /proc (Linux) and counted above its value after the imports. The limit of the pass with H uses the
rate of matrix products, which the same process measures. Exit code 1 if a limit is broken. Writes the table of
docs/performance.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.common import ROOT, record, summary, table, write_table
from benchmarks.scale.memory import sharded_checkpoint
from benchmarks.scale.probes import EDGES, add_squares, read_once, rss_anon, sequences_of, timed
from benchmarks.scale.prune_scale_cuda import on_cuda

if TYPE_CHECKING:
    import torch

SCRIPT = "scale.prune_scale"
# 24 layers of 19.8M parameters and 21M of embeddings: 1 GB in bfloat16.
SHAPE = {"hidden_size": 1280, "intermediate_size": 4096, "num_attention_heads": 20, "num_key_value_heads": 4,
         "head_dim": 64}  # fmt: skip
LAYERS = 24
MODES = ("forward", "naive", "act2", "act2 + H")
ACT2_LIMIT, H_LIMIT, MEMORY_LIMIT = 1.15, 1.25, 0.25


class Both:
    """Sums act2 and H of a layer, as a repair does. Holds one H at a time."""

    def __init__(self, size: int, device: str) -> None:
        self.size, self.device = size, device

    def begin(self, layer: int) -> None:
        import torch

        from compact.repair.gram import Gram

        del layer
        self.gram = Gram(self.size, self.device)
        self.squares = torch.zeros((EDGES + 1, self.size), dtype=torch.float64, device=self.device)

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        import torch

        del layer, batch
        buckets = torch.zeros(activations.shape[0], dtype=torch.int64, device=activations.device)
        add_squares(self.squares, activations, buckets)
        self.gram.add(activations)

    def end(self, layer: int) -> None:
        del layer
        self.gram.value()


def hooked(model: Any, sums: torch.Tensor) -> None:
    """Hook every layer's `down_proj`, so that it adds the squares of its inputs to `sums` [layers, channels]."""

    def add(number: int, activations: torch.Tensor) -> None:
        sums[number] += activations.double().square().sum(0)

    for number, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(lambda _module, inputs, number=number: add(number, inputs[0][0]))


def gemm_rate(size: int, device: str, dtype: torch.dtype) -> float:
    """Multiply-adds per second of X^T X over 1024 positions."""
    import torch

    x = torch.randn(1024, size, device=device).to(dtype)
    seconds = [timed(lambda: torch.mm(x.T, x), device) for _ in range(4)]
    return 1024 * size * size / statistics.median(seconds[1:])


def child(mode: str, model_dir: Path, tokens: int, length: int, threads: int) -> dict[str, Any]:
    """Make one measurement in this process. The parent reads the result from stdout."""
    import torch
    from transformers import LlamaForCausalLM

    from compact.forward.layerwise import LayerStream
    from compact.forward.load import load_model
    from compact.pruning.importance import collect_scores

    torch.set_num_threads(threads)
    del LlamaForCausalLM  # imported only so that its module is loaded in every mode
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    sequences = sequences_of(tokens, length, config["vocab_size"])
    result: dict[str, Any] = {"after_imports": rss_anon(os.getpid())}
    if mode in ("forward", "naive"):
        model = load_model(model_dir)
        if mode == "naive":
            hooked(model, torch.zeros((LAYERS, config["intermediate_size"]), dtype=torch.float64))

        def forward() -> None:
            with torch.inference_mode():
                for ids in sequences:
                    model.model(input_ids=torch.tensor([ids]), use_cache=False)

        result["seconds"] = timed(forward, "cpu")
    elif mode == "act2":
        edges = tuple(range(EDGES, 0, -1))[::-1]
        buckets = [token % (EDGES + 1) for token in range(config["vocab_size"])]
        result["seconds"] = timed(lambda: collect_scores(model_dir, sequences, buckets, edges, device="cpu"), "cpu")
    else:
        stream = LayerStream(model_dir, sequences, device="cpu")
        result["seconds"] = timed(lambda: stream.run(Both(stream.intermediate_size, "cpu")), "cpu")
        result["gemm_rate"] = gemm_rate(stream.intermediate_size, "cpu", torch.float32)
    return result


def measure(mode: str, model: Path, tokens: int, length: int, threads: int) -> dict[str, Any]:
    """Run a mode in its own process. Adds `peak`: the largest RssAnon, above the value after its imports."""
    # Waiting threads sleep: spinning ones compete with other work on the machine, which changes the time.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE",
           "OMP_NUM_THREADS": str(threads)}  # fmt: skip
    line = [
        sys.executable,
        "-m",
        "benchmarks.scale.prune_scale",
        "--work-dir",
        str(model),
        "--child",
        mode,
        "--tokens",
        str(tokens),
    ]
    line += ["--sequence-length", str(length), "--threads", str(threads)]
    peak = 0
    with subprocess.Popen(line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

        def watch() -> None:
            nonlocal peak
            while process.poll() is None:
                peak = max(peak, rss_anon(process.pid))
                time.sleep(0.01)

        watcher = threading.Thread(target=watch)
        watcher.start()
        out, errors = process.communicate()
        watcher.join()
    if process.returncode:
        sys.exit(f"error: {mode} ended with {process.returncode}\n{errors.decode()[-2000:]}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return {**result, "peak": peak - result["after_imports"]}


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """The ratios that have limits, from the median times and the largest peaks."""
    modes = result["modes"]
    seconds = {mode: statistics.median(run["seconds"] for run in runs) for mode, runs in modes.items()}
    peaks = {mode: max(run["peak"] for run in runs) for mode, runs in modes.items()}
    rate = statistics.median(run["gemm_rate"] for run in modes["act2 + H"])
    products = result["tokens"] * result["layers"] * result["intermediate_size"] ** 2 / rate
    return {
        "act2": seconds["act2"] / seconds["forward"],
        "act2 + H": seconds["act2 + H"] / (seconds["forward"] + products),
        "memory": peaks["act2"] / peaks["naive"],
        "memory with H": peaks["act2 + H"] / peaks["naive"],
        "products_seconds": products,
    }


def show(result: dict[str, Any]) -> str:
    """The part of docs/performance.md: a line of settings, and the table."""
    found = ratios(result)
    judged = {
        "act2": f"{found['act2']:.2f} of forward (limit {ACT2_LIMIT})",
        "act2 + H": f"{found['act2 + H']:.2f} of forward + products (limit {H_LIMIT})",
    }
    memory = {
        "act2": f"{found['memory']:.2f} of naive (limit {MEMORY_LIMIT})",
        "act2 + H": f"{found['memory with H']:.2f} of naive",
    }
    rows = []
    for mode, runs in result["modes"].items():
        seconds = statistics.median(run["seconds"] for run in runs)
        peak = max(run["peak"] for run in runs)
        rows.append([mode, f"{seconds:.1f} s", judged.get(mode, "-"), f"{peak / 1e6:.0f} MB", memory.get(mode, "-")])
    size = f"{result['checkpoint_bytes'] / 1e9:.2f} GB in {result['layers']} layers"
    setting = f"{size}, {result['tokens']:,} tokens, {result['threads']} threads, median of {result['repeat']}"
    head = f"{setting}; the matrix products of H = X^T X alone would take {found['products_seconds']:.1f} s."
    return head + "\n\n" + table(("pass", "time", "ratio", "peak RssAnon, minus that of the imports", "ratio"), rows)


def on_the_cpu(work: Path, tokens: int, length: int, repeat: int, threads: int) -> bool:
    """Measure, print, record and write the table. Return whether all limits are met."""
    from compact.checkpoints.shards import read_index

    model = sharded_checkpoint(work / "random-24-layers", LAYERS, **SHAPE)
    tensors = read_index(model)
    read_once(ref.file for ref in tensors.values())
    modes: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for number in range(repeat):
        for mode in MODES if number % 2 == 0 else reversed(MODES):
            modes[mode].append(measure(mode, model, tokens, length, threads))
            print(f"{mode}: {modes[mode][-1]}")
    result = {
        "checkpoint_bytes": sum(ref.n_bytes for ref in tensors.values()),
        "layers": LAYERS,
        "intermediate_size": SHAPE["intermediate_size"],
        "tokens": tokens,
        "sequence_length": length,
        "threads": threads,
        "repeat": repeat,
        "modes": modes,
    }
    print(show(result))
    record("prune-scale", result)
    write_table("performance.md", SCRIPT, show(result))
    found = ratios(result)
    return found["act2"] <= ACT2_LIMIT and found["act2 + H"] <= H_LIMIT and found["memory"] <= MEMORY_LIMIT


@click.command(help=summary(__doc__))
@click.option("--work-dir", type=click.Path(path_type=Path), required=True, help="Keeps the checkpoint between runs.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device of all passes."
)
@click.option("--tokens", default=4096, show_default=True, help="Tokens of the calibration.")
@click.option("--sequence-length", default=512, show_default=True, help="Tokens per sequence.")
@click.option("--repeat", default=1, show_default=True, help="Runs of each pass.")
@click.option("--threads", default=1, show_default=True, help="Threads of each program.")
@click.option("--child", "mode", type=click.Choice(MODES), hidden=True)
def main(
    *, work_dir: Path, device: str, tokens: int, sequence_length: int, repeat: int, threads: int, mode: str | None
) -> None:
    """Measure and record."""
    if mode is not None:
        print(json.dumps(child(mode, work_dir, tokens, sequence_length, threads)))
        return
    work = work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if device == "cuda":
        sys.exit(0 if on_cuda(work) else 1)
    sys.exit(0 if on_the_cpu(work, tokens, sequence_length, repeat, threads) else 1)


if __name__ == "__main__":
    main()
