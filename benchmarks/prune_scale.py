"""Time and memory of the calibration pass, beside a plain forward pass and the whole model in memory.

    python benchmarks/prune_scale.py --work-dir DIR                  # 1 GB of random weights in 24 layers, 4096 tokens
    python benchmarks/prune_scale.py --work-dir DIR --repeat 3 --threads 2
    python benchmarks/prune_scale.py --work-dir DIR --device cuda    # see prune_scale_cuda.py

Each of these runs in a process of its own, in turn, on the same checkpoint and tokens, in float32:

- forward: a plain forward pass of Transformers' backbone; only the pass is timed, not the loading.
- naive: the same model in memory whole, with hooks that sum act2.
- act2: `collect_scores`, layer by layer; reading the weights is timed too.
- act2 + H: the same pass with X^T X of every layer's `down_proj`.

RssAnon is sampled in /proc (Linux) and counted above its value after the imports. The rate of matrix products that the
pass with H is judged by is measured in the process that collects H.
Exit code 1 where a limit is broken.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import record, table, write_table  # noqa: E402
from benchmarks.memory import _rss_anon, make_checkpoint  # noqa: E402

if TYPE_CHECKING:
    import torch

SCRIPT = "prune_scale"
# 24 layers of 19.8M parameters and 21M of embeddings: 1 GB in bfloat16.
SHAPE = {"hidden_size": 1280, "intermediate_size": 4096, "num_attention_heads": 20, "num_key_value_heads": 4,
         "head_dim": 64}  # fmt: skip
LAYERS = 24
EDGES = 64
MODES = ("forward", "naive", "act2", "act2 + H")
ACT2_LIMIT, H_LIMIT, MEMORY_LIMIT = 1.15, 1.25, 0.25


def sequences_of(tokens: int, length: int, vocab_size: int) -> list[list[int]]:
    import numpy as np

    ids = np.random.default_rng(0).integers(0, vocab_size, tokens).tolist()
    return [ids[at : at + length] for at in range(0, tokens, length)]


class Both:
    """Sums act2 and H of a layer, one H alive at a time; what a repair collects."""

    def __init__(self, size: int, device: str) -> None:
        self.size, self.device = size, device

    def begin(self, layer: int) -> None:
        import torch

        from compact.gram import Gram

        del layer
        self.gram = Gram(self.size, self.device)
        self.squares = torch.zeros((EDGES + 1, self.size), dtype=torch.float64, device=self.device)

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        import torch

        from compact.importance import _add_squares

        del layer, batch
        buckets = torch.zeros(activations.shape[0], dtype=torch.int64, device=activations.device)
        _add_squares(self.squares, activations, buckets)
        self.gram.add(activations)

    def end(self, layer: int) -> None:
        del layer
        self.gram.value()


def hooked(model: Any, sums: torch.Tensor) -> None:
    """Have every layer's `down_proj` add its inputs' squares: what a first version of this would do."""

    def add(number: int, activations: torch.Tensor) -> None:
        sums[number] += activations.double().square().sum(0)

    for number, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(lambda _module, inputs, number=number: add(number, inputs[0][0]))


def gemm_rate(size: int, device: str, dtype: torch.dtype) -> float:
    """Multiply-adds a second of X^T X over 1024 positions."""
    import torch

    x = torch.randn(1024, size, device=device).to(dtype)
    seconds = [timed(lambda: torch.mm(x.T, x), device) for _ in range(4)]
    return 1024 * size * size / statistics.median(seconds[1:])


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of `run`, the device's work included."""
    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def child(mode: str, model_dir: Path, tokens: int, length: int, threads: int) -> dict[str, Any]:
    """One measurement, in this process; what the parent reads from stdout."""
    import torch
    from transformers import LlamaForCausalLM

    from compact.importance import collect_scores
    from compact.layerwise import LayerStream
    from compact.load import load_model

    torch.set_num_threads(threads)
    del LlamaForCausalLM  # its module is loaded now, as it is in every mode
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    sequences = sequences_of(tokens, length, config["vocab_size"])
    result: dict[str, Any] = {"after_imports": _rss_anon_here()}
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


def _rss_anon_here() -> int:
    import os

    return _rss_anon(os.getpid())


def measure(mode: str, model: Path, tokens: int, length: int, threads: int) -> dict[str, Any]:
    """Run a mode in a process of its own; add the peak of its RssAnon above the value after its imports."""
    import os

    # Threads that wait asleep: spinning ones would be timed by whatever else the machine does.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE",
           "OMP_NUM_THREADS": str(threads)}  # fmt: skip
    line = [sys.executable, __file__, "--work-dir", str(model), "--child", mode, "--tokens", str(tokens)]
    line += ["--sequence-length", str(length), "--threads", str(threads)]
    peak = 0
    with subprocess.Popen(line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

        def watch() -> None:
            nonlocal peak
            while process.poll() is None:
                peak = max(peak, _rss_anon(process.pid))
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
    """What is judged, from the medians of times and the largest peaks."""
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
    """The table."""
    found = ratios(result)
    judged = {
        "act2": f"{found['act2']:.2f} of forward (limit {ACT2_LIMIT})",
        "act2 + H": f"{found['act2 + H']:.2f} of forward and products (limit {H_LIMIT})",
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
    head = f"{setting}; the products of H alone would take {found['products_seconds']:.1f} s."
    return head + "\n\n" + table(("pass", "time", "ratio", "RssAnon above imports", "ratio"), rows)


def on_the_cpu(work: Path, tokens: int, length: int, repeat: int, threads: int) -> bool:
    """Measure, print, record; whether all limits hold."""
    from compact.checkpoint import read_index

    model = make_checkpoint(work / "random-24-layers", LAYERS, **SHAPE)
    tensors = read_index(model)
    for file in {ref.file for ref in tensors.values()}:  # read once, so that no mode finds the file cache cold
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
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


@click.command()
@click.option("--work-dir", type=click.Path(path_type=Path), required=True, help="Kept between runs.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--tokens", default=4096, show_default=True)
@click.option("--sequence-length", default=512, show_default=True)
@click.option("--repeat", default=1, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--child", "mode", type=click.Choice(MODES), hidden=True)
def main(
    work_dir: Path, device: str, tokens: int, sequence_length: int, repeat: int, threads: int, mode: str | None
) -> None:
    """Measure and record."""
    if mode is not None:
        print(json.dumps(child(mode, work_dir, tokens, sequence_length, threads)))
        return
    work = work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if device == "cuda":
        from benchmarks.prune_scale_cuda import on_cuda

        sys.exit(0 if on_cuda(work) else 1)
    sys.exit(0 if on_the_cpu(work, tokens, sequence_length, repeat, threads) else 1)


if __name__ == "__main__":
    main()
