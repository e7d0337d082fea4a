"""Estimates the resident memory of llama.cpp's server on a CPU for a GGUF that does not exist yet.

The parts follow the sources of llama.cpp (the release in llama-cpp-python 0.3.36):

- weights: the file is mapped, and pages that were read stay resident (`llama-model-loader.cpp`, `init_mappings`).
- repacked: a second, interleaved copy of some matrices for the CPU's kernels (`ggml-cpu/repack.cpp`,
  `ggml_repack_get_optimal_repack_type`). A tied head is a separate tensor from the embedding there.
- KV cache: all of it is cleared when it is created, so all of it is resident (`llama-kv-cache.cpp`). Layers with a
  sliding window hold the window and one batch (`llama-kv-cache-iswa.cpp`).
- compute: the buffers for one batch of `n_ubatch` tokens at the widest point of the graph, which is the FFN
  (`llama-context.cpp`, `sched_reserve`; `ggml-alloc.c`), and the activations in the format of the matrix kernels
  (`ggml-cpu.c`, `ggml_graph_plan`). The server computes the logits of one position, so a large vocabulary adds little.
- tokenizer and program: measured (`benchmarks/device/memory_estimate.py`), because they cannot be derived from shapes.

docs/size.md compares the estimate with measurements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compact.architectures.family import Family
from compact.architectures.layer_shapes import layer_shapes, linear_shape, per_layer_size
from compact.architectures.table import family_of
from compact.base.numbers import number
from compact.pruning.budget import Sizes
from exporters.gguf.estimate import estimated_sizes, merges_of
from exporters.gguf.size import GgufSizes
from exporters.llamacpp.quant_rules import Choice, TensorShape, category

# llama.cpp's `n_ubatch`; and the number of cells that it rounds contexts and windows up to.
MICRO_BATCH = 512
_CELLS = 256
_F16, _F32 = 2, 4
# The kernels of 4-bit and 8-bit weights convert activations to Q8_0: 34 bytes for 32 values.
_QUANTISED_ACTIVATIONS = 34 / 32
# Resident bytes per vocabulary entry and per merge in llama.cpp's tables, and of llama-server itself. Fitted by least
# squares to the models with random weights in benchmarks/results/memory-estimate.json.
ENTRY_BYTES, MERGE_BYTES = 173, 108
PROGRAM_BYTES = 15_100_000

# (ISA features, GGML type -> divisor). A matrix is repacked if its number of rows is a multiple of the divisor.
_NEON = {"Q4_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8, "IQ4_NL": 4, "Q8_0": 4}
_AVX2 = {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8}
_REPACKED: tuple[tuple[frozenset[str], Mapping[str, int]], ...] = (
    (frozenset({"neon", "dotprod"}), _NEON),
    (frozenset({"neon", "i8mm"}), {name: rows for name, rows in _NEON.items() if name != "IQ4_NL"}),
    (frozenset({"avx2"}), _AVX2),
    (frozenset({"avx512f"}), {"Q2_K": 8}),
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Resident bytes by part."""

    weights: int
    repacked: int
    kv_cache: int
    compute: int
    tokenizer: int
    program: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.repacked + self.kv_cache + self.compute + self.tokenizer + self.program

    def as_dict(self) -> dict[str, int]:
        """Return the bytes by part, and `total`."""
        return {**asdict(self), "total": self.total}


def estimate_memory(
    model: GgufSizes,
    config: Mapping[str, Any],
    family: Family,
    sizes: Sizes,
    *,
    context: int,
    isa: Collection[str] | None,
    kv_bytes: int = _F16,
    merges: int | None = None,
) -> MemoryEstimate:
    """Estimate the resident memory of llama-server: one slot, on a CPU, flash attention on, whole context used.

    Args:
        model: tensors and types (`exporters.gguf.size.gguf_sizes`, `exporters.gguf.estimate.estimated_sizes`).
        config: config.json of the unpruned model with checked sizes.
        family: the row of the family table.
        sizes: vocabulary and FFN sizes of the pruned model.
        context: positions of the key-value cache.
        isa: the CPU's features as in a device profile. None: count every repacking that any CPU does.
        kv_bytes: bytes per key or value element; 2 for float16, llama.cpp's default.
        merges: merges of the unpruned tokenizer in a GGUF, if known.
    """
    tensors = model.file_tensors(sizes)
    rules = _rules(isa)
    tied = not any(each.tensor.name == "output.weight" for each in tensors)
    pairs = merges_of(config, family, merges) / int(config["vocab_size"])
    repacked = sum(each.n_bytes for each in tensors if _is_repacked(each.tensor, each.type, rules, tied=tied))
    return MemoryEstimate(
        weights=sum(each.n_bytes for each in tensors),
        repacked=repacked,
        kv_cache=kv_cache_bytes(config, family, context, kv_bytes),
        compute=compute_bytes(config, family, sizes, context),
        tokenizer=round(sizes.vocab_size * (ENTRY_BYTES + MERGE_BYTES * pairs)),
        program=PROGRAM_BYTES,
    )


def estimate_of_config(
    config: Mapping[str, Any],
    sizes: Sizes,
    quant: str,
    context: int,
    *,
    isa: Collection[str] | None = None,
    embedding_quant: str | None = None,
    merges: int | None = None,
) -> MemoryEstimate:
    """Estimate as `estimate_memory` does, from the configuration alone.

    Args:
        config: config.json of the unpruned model with checked sizes.
        sizes: vocabulary and FFN sizes of the pruned model.
        quant, embedding_quant: names of llama.cpp types.
        context, isa, merges: as for `estimate_memory`.

    Raises:
        UsageError: a type is unknown.
        UnsupportedArchitectureError: the model does not match any row of the family table.
    """
    family = family_of(config, "config.json")
    model = estimated_sizes(config, family, quant, embedding_quant=embedding_quant, merges=merges)
    return estimate_memory(model, config, family, sizes, context=context, isa=isa, merges=merges)


def kv_cache_bytes(config: Mapping[str, Any], family: Family, context: int, kv_bytes: int = _F16) -> int:
    """Return the bytes that llama-server with one slot allocates for keys and values, or for recurrent state.

    Args:
        config: config.json with checked sizes.
        family: the row of the family table.
        context: requested positions.
        kv_bytes: bytes per key or value element.
    """
    layers = zip(layer_shapes(family, config), _layer_cells(config, family, context), strict=True)
    linear = linear_shape(family, config)
    total = 0
    for layer, cells in layers:
        if layer.linear and linear is not None:
            # One state per head, and the previous inputs of the convolution. Both are float32.
            state = linear.values * linear.key_dim + (linear.kernel - 1) * linear.channels
            total += _F32 * state
        elif layer.own_kv:
            total += 2 * layer.kv_heads * layer.head_dim * kv_bytes * cells
    return total


def _layer_cells(config: Mapping[str, Any], family: Family, context: int) -> list[int]:
    """Return the number of positions in the cache of each layer."""
    every = _padded(context)
    sliding = family.sliding_layers(config)
    if sliding is None:
        return [every] * int(config["num_hidden_layers"])
    few = window_cells(config, family, context)
    return [few if layer else every for layer in sliding]


def window_cells(config: Mapping[str, Any], family: Family, context: int) -> int:
    """Return the positions in the cache of a sliding-window layer: the window and one batch (`size_swa`).

    Raises:
        DamagedFileError: the window is not a number.
    """
    default = next(number.default for number in family.numbers if number.config == "sliding_window")
    window = int(number(config.get("sliding_window") or default or 0, "sliding_window", "config.json"))
    every = _padded(context)
    return _padded(min(every, window + min(MICRO_BATCH, every)))


def compute_bytes(config: Mapping[str, Any], family: Family, sizes: Sizes, context: int) -> int:
    """Return the bytes of the buffers of the graph for one batch, and of the kernels.

    The inputs are the tokens' embeddings (allocated even if ids are given) and a float16 mask per kind of cache. At the
    widest point, three hidden states are live together with gate, up and their product, or with queries, keys, values
    and the attention's output.
    """
    layers = layer_shapes(family, config)
    hidden, tokens = int(config["hidden_size"]), min(MICRO_BATCH, context)
    inner = sizes.intermediate_size * max(layer.ffn_width for layer in layers)
    queries = int(config["num_attention_heads"]) * max(layer.head_dim for layer in layers)
    keys = max(layer.kv_heads * layer.head_dim for layer in layers)
    # Inputs of all layers from a per-layer embedding: once as looked up, once with the projection added.
    per_layer = 2 * len(layers) * per_layer_size(family, config)
    masks = _F16 * _padded(context)
    if family.sliding_layers(config) is not None:
        masks += _F16 * window_cells(config, family, context)
    widest = 3 * hidden + max(3 * inner, 2 * queries + 2 * keys)
    kernels = round(max(hidden, inner, queries) * _QUANTISED_ACTIVATIONS)
    return tokens * (_F32 * (hidden + widest + per_layer) + masks + kernels) + _F32 * sizes.vocab_size


def _padded(cells: int) -> int:
    return -(-cells // _CELLS) * _CELLS


def _rules(isa: Collection[str] | None) -> dict[str, int]:
    """Return GGML type -> divisor of the rows for repacking, for a CPU with these features."""
    found: dict[str, int] = {}
    for features, rules in _REPACKED:
        if isa is None or features.issubset(isa):
            found = {**rules, **found}
    return found


def _is_repacked(tensor: TensorShape, kind: str, rules: Mapping[str, int], *, tied: bool) -> bool:
    """Return whether a tensor is repacked.

    Only multiplied matrices are repacked, so an embedding is repacked only if it is also the head.
    """
    looked_up = category(tensor.name) is Choice.EMBEDDING and (tensor.name != "token_embd.weight" or not tied)
    if len(tensor.shape) != 2 or looked_up:
        return False
    return kind in rules and tensor.shape[1] % rules[kind] == 0
