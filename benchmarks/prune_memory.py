"""Memory of pruning a large checkpoint: peak RssAnon of planning's calibration pass apart, and of applying a plan.

    python benchmarks/prune_memory.py --work DIR

Makes a random-weight Llama checkpoint of about 1 GB in DIR (kept for the next run), prunes it with the command in a
child process and samples the child's RssAnon in /proc (Linux). The limit for applying a plan is twice the largest
tensor plus 500 MB, whatever the model's size; the calibration pass holds the model itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import torch
from common import record, table

from compact.checkpoint import TensorSpec, read_index, write_checkpoint
from compact.source import TINY, open_source
from compact_edge.console import Console

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 9,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "vocab_size": 16384,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}

APPLY = """
import sys
from pathlib import Path
from compact.apply import apply_plan
from compact.plan import read_plan
from compact.source import open_directory
from compact.store import publish
source = open_directory(Path(sys.argv[1]), name="large", origin=sys.argv[1])
with publish(Path(sys.argv[3]), force=True) as work:
    apply_plan(source, read_plan(Path(sys.argv[2])), work)
"""


def make_checkpoint(directory: Path) -> None:
    """Random bfloat16 weights, written one tensor at a time, and `tiny`'s tokenizer."""
    hidden, inner = 2048, 6144
    shapes = {"model.embed_tokens.weight": (16384, hidden), "model.norm.weight": (hidden,)}
    for layer in range(9):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (2048, hidden),
            prefix + "self_attn.k_proj.weight": (512, hidden),
            prefix + "self_attn.v_proj.weight": (512, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, 2048),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    generator = torch.Generator().manual_seed(0)

    def produce(spec: TensorSpec) -> torch.Tensor:
        if len(spec.shape) == 1:
            return torch.ones(spec.shape, dtype=torch.bfloat16)
        return (torch.randn(spec.shape, generator=generator) * 0.02).to(torch.bfloat16)

    directory.mkdir(parents=True)
    write_checkpoint(directory, [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()], produce)
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    tiny = Path(__file__).parents[1] / "compact" / "models" / TINY
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, directory / name)


def peak_rss_anon(arguments: list[str]) -> tuple[int, float]:
    """Run a command; (peak RssAnon in bytes of the process and its children, seconds)."""
    started = time.monotonic()
    process = subprocess.Popen(arguments)
    peak = 0

    def sample() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, _rss_anon(process.pid))
            time.sleep(0.02)

    watcher = threading.Thread(target=sample)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        sys.exit(f"error: {' '.join(arguments)} ended with {code}")
    return peak, time.monotonic() - started


def _rss_anon(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where the checkpoint goes (3 GB).")
@click.option("--calibration-tokens", default=2048, show_default=True)
def main(work: Path, calibration_tokens: int) -> None:
    """Print and record the table."""
    model = work / "random-1gb"
    if not model.is_dir():
        make_checkpoint(model)
    tensors = read_index(model)
    size = sum(ref.n_bytes for ref in tensors.values())
    largest = max(ref.n_bytes for ref in tensors.values())
    command = [sys.executable, "-m", "compact_edge", "prune", str(model), "--ratio", "0.2", "--force"]
    out = work / "pruned"
    prune_peak, prune_seconds = peak_rss_anon(
        [*command, "--out", str(out), "--no-cache", "--calibration-tokens", str(calibration_tokens)]
    )
    apply_peak, apply_seconds = peak_rss_anon(
        [sys.executable, "-c", APPLY, str(model), str(out / "plan.json"), str(work / "applied")]
    )
    limit = 2 * largest + 500_000_000
    print(f"checkpoint {size / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")
    rows = [
        ["prune (calibration in float32)", f"{prune_peak / 1e6:.0f} MB", "-", f"{prune_seconds:.0f} s"],
        ["apply a plan", f"{apply_peak / 1e6:.0f} MB", f"{limit / 1e6:.0f} MB", f"{apply_seconds:.0f} s"],
    ]
    print(table(["step", "peak RssAnon", "limit", "wall"], rows))
    source = open_source(str(out), None, Console())  # type: ignore[arg-type]  # a directory needs no cache
    record(
        "prune-memory",
        {
            "checkpoint_bytes": size,
            "largest_tensor_bytes": largest,
            "limit_bytes": limit,
            "prune_rss_anon_bytes": prune_peak,
            "apply_rss_anon_bytes": apply_peak,
            "parameters_after": source.n_params,
        },
    )
    if apply_peak > limit:
        sys.exit("error: applying the plan took more than the limit")


if __name__ == "__main__":
    main()
