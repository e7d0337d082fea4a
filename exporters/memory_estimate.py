"""Memory of llama.cpp's server with a GGUF, before there is one: what its process will have resident on a CPU.

The parts follow the sources of llama.cpp (the release in llama-cpp-python 0.3.36):

- weights: the file is mapped, and pages that were read stay resident (`llama-model-loader.cpp`, `init_mappings`);
- repacked: a second copy of the matrices that the CPU's kernels want interleaved (`ggml-cpu/repack.cpp`,
  `ggml_repack_get_optimal_repack_type`); a tied head is another tensor than the embedding there;
- KV cache: all of it is cleared when it is made (`llama-kv-cache.cpp`); layers with a sliding window hold the window
  and one batch (`llama-kv-cache-iswa.cpp`);
- compute: what one batch of `n_ubatch` tokens needs at the widest place, which is the FFN (`llama-context.cpp`,
  `sched_reserve`; `ggml-alloc.c`), and the activations as the matrix kernels want them (`ggml-cpu.c`,
  `ggml_graph_plan`). The server asks for the logits of one position, so a large vocabulary costs no more here;
- tokenizer and program: measured (`benchmarks/device/memory_estimate.py`), for they follow from no shape.

Docs: docs/size.md has the estimate beside what was measured.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compact.budget import Sizes
from compact.families import family_of
from compact.family import Family
from compact.layer_shapes import layer_shapes, linear_shape, per_layer_size
from compact.numbers import number
from exporters.gguf_estimate import estimated_sizes, merges_of
from exporters.gguf_size import GgufSizes
from exporters.quant_rules import Choice, TensorShape, category

# llama.cpp's `n_ubatch`, and what it rounds a context and a window's cells up to.
MICRO_BATCH = 512
_CELLS = 256
_F16, _F32 = 2, 4
# Activations become Q8_0 for the kernels of 4-bit and 8-bit weights: 34 bytes for 32 values.
_QUANTISED_ACTIVATIONS = 34 / 32
# Resident bytes of a vocabulary entry and of a merge in llama.cpp's tables, and of llama-server itself: least squares
# over the models with random weights in benchmarks/results/memory-estimate.json.
ENTRY_BYTES, MERGE_BYTES = 173, 108
PROGRAM_BYTES = 15_100_000

# ISA features -> GGML type -> rows that a matrix must be a multiple of to be repacked.
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
        """All of them."""
        return self.weights + self.repacked + self.kv_cache + self.compute + self.tokenizer + self.program

    def as_dict(self) -> dict[str, int]:
        """Bytes by part, and `total`."""
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
    """Resident memory of llama-server with one slot, on a CPU, flash attention on, the whole context used.

    Args:
        model: tensors and types (`exporters.gguf_size.gguf_sizes`, `exporters.gguf_estimate.estimated_sizes`).
        config: config.json of the unpruned model, its sizes checked.
        family: the row of the family table.
        sizes: vocabulary and FFN of the pruned model.
        context: positions of the key-value cache.
        isa: the CPU's features, as a device profile names them; None counts every repacking that some CPU does.
        kv_bytes: of a key or value: 2 for float16, llama.cpp's default.
        merges: of the unpruned tokenizer in a GGUF, where that is known.
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
    """`estimate_memory` of a model of which only the configuration is known.

    Args:
        config: config.json of the unpruned model, its sizes checked.
        sizes: vocabulary and FFN of the pruned model.
        quant, embedding_quant: types, as llama.cpp names them.
        context, isa, merges: as for `estimate_memory`.

    Raises:
        UsageError: an unknown type. UnsupportedArchitectureError: no row of the family table fits.
    """
    family = family_of(config, "config.json")
    model = estimated_sizes(config, family, quant, embedding_quant=embedding_quant, merges=merges)
    return estimate_memory(model, config, family, sizes, context=context, isa=isa, merges=merges)


def kv_cache_bytes(config: Mapping[str, Any], family: Family, context: int, kv_bytes: int = _F16) -> int:
    """Keys and values of every layer, or its state, as llama-server makes room for them with one slot.

    Args:
        config: config.json, its sizes checked.
        family: the row of the family table.
        context: positions asked for.
        kv_bytes: of a key or value.
    """
    layers = zip(layer_shapes(family, config), _layer_cells(config, family, context), strict=True)
    linear = linear_shape(family, config)
    total = 0
    for layer, cells in layers:
        if layer.linear and linear is not None:
            # A state of its own size for each head, and what the convolution looks back at; both float32.
            state = linear.values * linear.key_dim + (linear.kernel - 1) * linear.channels
            total += _F32 * state
        elif layer.own_kv:
            total += 2 * layer.kv_heads * layer.head_dim * kv_bytes * cells
    return total


def _layer_cells(config: Mapping[str, Any], family: Family, context: int) -> list[int]:
    """Positions that each layer's cache holds."""
    every = _padded(context)
    sliding = family.sliding_layers(config)
    if sliding is None:
        return [every] * int(config["num_hidden_layers"])
    few = window_cells(config, family, context)
    return [few if layer else every for layer in sliding]


def window_cells(config: Mapping[str, Any], family: Family, context: int) -> int:
    """Positions that the cache of a sliding-window layer holds: the window and one batch (`size_swa`).

    Raises DamagedFileError for a window that is no number.
    """
    default = next(number.default for number in family.numbers if number.config == "sliding_window")
    window = int(number(config.get("sliding_window") or default or 0, "sliding_window", "config.json"))
    every = _padded(context)
    return _padded(min(every, window + min(MICRO_BATCH, every)))


def compute_bytes(config: Mapping[str, Any], family: Family, sizes: Sizes, context: int) -> int:
    """Buffers of the graph for one batch, and of the kernels.

    Inputs: the tokens' embeddings (room is made for them even where ids are given) and a float16 mask for each kind of
    cache. At the widest place three hidden states are alive beside gate, up and their product, or beside queries, keys,
    values and the attention's output.
    """
    layers = layer_shapes(family, config)
    hidden, tokens = int(config["hidden_size"]), min(MICRO_BATCH, context)
    inner = sizes.intermediate_size * max(layer.ffn_width for layer in layers)
    queries = int(config["num_attention_heads"]) * max(layer.head_dim for layer in layers)
    keys = max(layer.kv_heads * layer.head_dim for layer in layers)
    # What all layers get from a per-layer embedding, looked up and then with the projection added.
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
    """GGML type -> rows that a matrix must be a multiple of to be repacked on such a CPU."""
    found: dict[str, int] = {}
    for features, rules in _REPACKED:
        if isa is None or features.issubset(isa):
            found = {**rules, **found}
    return found


def _is_repacked(tensor: TensorShape, kind: str, rules: Mapping[str, int], *, tied: bool) -> bool:
    """Only what is multiplied is repacked; the embedding is where it is the head too."""
    looked_up = category(tensor.name) is Choice.EMBEDDING and (tensor.name != "token_embd.weight" or not tied)
    if len(tensor.shape) != 2 or looked_up:
        return False
    return kind in rules and tensor.shape[1] % rules[kind] == 0
