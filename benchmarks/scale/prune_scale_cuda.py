"""The CUDA part of prune_scale.py: large shapes with random weights made on the device, and one real model's plan.

- 8B shape, 256 x 2048 tokens: seconds of the act2 pass against one forward pass of the whole model on the same card,
  and the peak of the device's memory.
- 70B shape, whose layers are made when they are needed: memory after a few layers and after all layers, which must be
  equal.
- smollm2-135m: the plan of CUDA float32 against the CPU's, which may differ only in channels whose scores are equal to
  1e-5; and the share of kept channels that is equal in bfloat16.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import cache, record
from benchmarks.scale.probes import EDGES, add_squares, sequences_of, timed

if TYPE_CHECKING:
    import numpy as np
    import torch

GB = 1 << 30
VOCAB_SIZE = 128256
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
    "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "max_position_embeddings": 8192, "vocab_size": VOCAB_SIZE, "tie_word_embeddings": False,
}  # fmt: skip
SHAPES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}


def random_weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A random tensor on the device; a name always gives the same one."""
    import zlib

    import torch

    generator = torch.Generator("cuda").manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16) * 0.02
    return drawn + 1 if len(shape) == 1 else drawn


class Act2:
    """Sums act2 of each layer, and records the device's peak memory."""

    def __init__(self) -> None:
        self.allocated: list[int] = []

    def begin(self, layer: int) -> None:
        del layer

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        import torch

        del layer
        if batch == 0:
            self.sums = torch.zeros((EDGES + 1, activations.shape[1]), dtype=torch.float64, device="cuda")
        buckets = torch.arange(activations.shape[0], device="cuda") % (EDGES + 1)
        add_squares(self.sums, activations, buckets)

    def end(self, layer: int) -> None:
        import torch

        del layer
        self.allocated.append(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()


def large(shape: str, work: Path, tokens: int, *, whole: bool) -> dict[str, Any]:
    """Measure the act2 pass of a shape; with `whole`, also a forward pass of the whole model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from compact.forward.layerwise import LayerStream

    directory = work / f"shape-{shape}"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**LLAMA, **SHAPES[shape]}), encoding="utf-8")
    sequences = sequences_of(tokens, 2048, VOCAB_SIZE)
    stream = LayerStream(directory, sequences, device="cuda", dtype="bfloat16", weights=random_weights)
    visitor = Act2()
    torch.cuda.reset_peak_memory_stats()
    result: dict[str, Any] = {"tokens": tokens, "seconds": timed(lambda: stream.run(visitor), "cuda")}
    result["allocated"] = visitor.allocated
    torch.cuda.empty_cache()
    if whole:
        with torch.device("cuda"):
            config = AutoConfig.from_pretrained(directory, local_files_only=True)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

        def forward() -> None:
            with torch.inference_mode():
                for ids in sequences:
                    model.model(input_ids=torch.tensor([ids], device="cuda"), use_cache=False)

        with torch.inference_mode():
            model.model(input_ids=torch.tensor([sequences[0]], device="cuda"), use_cache=False)
        result["forward_seconds"] = timed(forward, "cuda")
        result["ratio"] = result["seconds"] / result["forward_seconds"]
    return result


def plans() -> dict[str, Any]:
    """Compare the plans of smollm2-135m by CPU float32, CUDA float32 and CUDA bfloat16."""
    from compact.pruning.budget_options import PROPORTIONAL
    from compact.pruning.calibration_choice import calibration_for
    from compact.pruning.channel_scores import act2_scores
    from compact.pruning.context import Context
    from compact.pruning.options import PruneOptions
    from compact.pruning.planning import make_plan
    from compact.pruning.ranking import rank_vocabulary
    from compact.pruning.sizes import sizes_of
    from compact.sources.model_source import open_source

    store = cache()
    source = open_source("smollm2-135m", store)
    cpu = PruneOptions(ratio=0.2, split=PROPORTIONAL, device="cpu", dtype="float32")
    kept = {
        name: make_plan(Context(source, options, store))
        for name, options in {
            "cpu": cpu,
            "cuda": replace(cpu, device="cuda"),
            "cuda bfloat16": replace(cpu, device="cuda", dtype="bfloat16"),
        }.items()
    }

    def overlap(name: str) -> float:
        pairs = zip(kept["cpu"].kept_channels, kept[name].kept_channels, strict=True)
        return sum(len(set(a) & set(b)) for a, b in pairs) / sum(map(len, kept["cpu"].kept_channels))

    context = Context(source, cpu, store)
    vocab_size = sizes_of(source, context.once(rank_vocabulary), cpu).vocab_size
    scores = act2_scores(context, context.once(calibration_for), vocab_size).at(vocab_size)
    swapped = [
        swapped_beyond(row, a, b)
        for row, a, b in zip(scores, kept["cpu"].kept_channels, kept["cuda"].kept_channels, strict=True)
    ]
    return {
        "overlap_float32": overlap("cuda"),
        "swapped_float32": sum(swapped),
        "overlap_bfloat16": overlap("cuda bfloat16"),
    }


def swapped_beyond(scores: np.ndarray[Any, Any], kept: list[int], other: list[int], relative: float = 1e-5) -> int:
    """How many channels are in one choice only although their scores differ.

    Args:
        scores: [intermediate_size] by which the first choice was made.
        kept, other: the two choices.
        relative: scores that differ by less count as equal.
    """
    only, instead = set(kept) - set(other), set(other) - set(kept)
    if not only:
        return 0
    best = max(scores[channel] for channel in instead)
    return sum(bool(scores[channel] - best > relative * scores[channel]) for channel in only)


def on_cuda(work: Path) -> bool:
    """Measure, print, record. Returns whether time and memory are within their limits."""
    import torch

    result: dict[str, Any] = {
        "card": torch.cuda.get_device_name(),
        "smollm2-135m": plans(),
        "8B": large("8B", work, 256 * 2048, whole=True),
        "70B": large("70B", work, 16 * 2048, whole=False),
    }
    print(json.dumps({**result, "70B": {**result["70B"], "allocated": "see the record"}}, indent=2))
    record("prune-scale-cuda", result)
    later = result["70B"]["allocated"][2:]
    flat = max(later) - min(later) < GB // 4
    return bool(flat and result["8B"]["ratio"] <= 1.15 and result["smollm2-135m"]["swapped_float32"] == 0)
